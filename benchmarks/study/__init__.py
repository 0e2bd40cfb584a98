"""The study of the losses on real tables: machinery and protocol."""

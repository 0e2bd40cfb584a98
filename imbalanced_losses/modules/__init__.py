"""Floor 5: the losses as ``nn.Module`` shells. They hold state and check values; the mathematics is in ``losses``."""

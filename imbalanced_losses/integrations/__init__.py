"""Adapters to training frameworks. Frameworks are optional: each is imported only by its own adapter."""

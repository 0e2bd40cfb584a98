"""Adapters to training frameworks, which are extras: a framework is imported with the adapter that needs it."""

"""Floor 4: the losses as pure functions. One file holds one config, its per-class function and its loss."""

"""Floor 1: scores and masks in, tensors out."""

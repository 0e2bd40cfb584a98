"""Kernels over pairs and ranks of scores, as opaque operators with a gradient in closed form."""

from imbalanced_losses.kernels.ranks.discordance import discordant_pairs
from imbalanced_losses.kernels.ranks.pair_sums import soft_counts
from imbalanced_losses.kernels.ranks.precision import missed_precision
from imbalanced_losses.kernels.ranks.upper_bound import bounded_missed_precision

__all__ = ["bounded_missed_precision", "discordant_pairs", "missed_precision", "soft_counts"]

"""What the losses at a fixed recall share: the threshold that finds it, and the soft false-positive rate there."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.kernels.missed_recall import missed_recall
from imbalanced_losses.kernels.recall_threshold import check_recall, recall_threshold
from imbalanced_losses.losses._ranking import RankingConfig
from imbalanced_losses.pool import Pool
from imbalanced_losses.settings import check_choice, check_fields
from imbalanced_losses.spread import describe_temperature, scaled_temperature

__all__ = ["AtRecall", "AtRecallConfig", "describe_at_recall", "measure_at_recall"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AtRecallConfig(RankingConfig):
    """The options of a loss at a fixed recall."""

    recall: float = 0.8
    threshold_gradient: Literal["stop", "implicit"] = "implicit"

    def __post_init__(self) -> None:
        RankingConfig.__post_init__(self)
        check_fields(self, recall=check_recall, threshold_gradient=partial(check_choice, choices=("stop", "implicit")))


class AtRecall(NamedTuple):
    """A pool at its threshold, of each class ``[C]``.

    ``soft_fpr`` has the gradient, and is 0 where not ``valid``: without positive or without negative weight.
    """

    soft_fpr: Tensor
    threshold: Tensor
    found: Tensor
    positive_weight: Tensor
    negative_weight: Tensor
    valid: Tensor

    def diagnostics(self) -> dict[str, Tensor]:
        """The threshold, and the recall that it reaches; ``nan`` at invalid classes."""
        recall = (self.found / self.positive_weight).to(self.threshold.dtype)
        measures = {"threshold": self.threshold, "recall": recall}
        return {name: torch.where(self.valid, value, torch.nan) for name, value in measures.items()}


def measure_at_recall(pool: Pool, cfg: AtRecallConfig) -> AtRecall:
    """Find the threshold, and soften the comparison of the negatives with it."""
    weight = pool.row_weight
    threshold, found, positive_weight = recall_threshold(pool.scores, pool.positive, weight, cfg.recall)
    # the misses of negated scores are the alerts
    soft_fpr, _, negative_weight = missed_recall(
        -pool.scores,
        -threshold,
        pool.negative & (positive_weight > 0)[:, None],
        weight,
        scaled_temperature(pool, cfg.tau_scale).expand(len(pool.scores)),
        pool.positive & (weight > 0) if cfg.threshold_gradient == "implicit" else None,
        weight,
    )
    valid = negative_weight > 0
    return AtRecall(soft_fpr, threshold[:, 0], found, positive_weight, negative_weight, valid)


def describe_at_recall(pool: Pool, cfg: AtRecallConfig) -> dict[str, Tensor]:
    """The diagnostics of a pool."""
    return {**measure_at_recall(pool, cfg).diagnostics(), **describe_temperature(pool, cfg.tau_scale)}

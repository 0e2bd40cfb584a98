"""What the partial AUC at a budget reads off a pool: reference, thresholds, scale, and who counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imbalanced_losses.kernels.quantile import masked_quantile
from imbalanced_losses.kernels.trimming import without_top_share
from imbalanced_losses.pool import Pool
from imbalanced_losses.spread import QUARTILES, spread

if TYPE_CHECKING:
    from imbalanced_losses.losses.pauc_at_budget import PAUCAtBudgetConfig

__all__ = [
    "Budget",
    "measure_budget",
    "negatives_in_band",
    "numerator_rows",
    "numerator_weight",
    "reference_population",
]

# A reference whose spread is at most this has no scale to measure distances by.
SMALLEST_SCALE = 1e-12


def numerator_rows(pool: Pool, cfg: PAUCAtBudgetConfig) -> Tensor:
    """Bool ``[C, M]``: the positives that count in the numerator."""
    return pool.positive & pool.live if cfg.pos_numerator == "live" else pool.positive


def numerator_weight(pool: Pool, cfg: PAUCAtBudgetConfig, numerator: Tensor) -> Tensor:
    """``[C, M]``: the weight of the positives in the numerator, above the floor on the true-positive rate."""
    if cfg.min_tpr == 0:
        return pool.row_weight
    return without_top_share(pool.scores, numerator, pool.row_weight, cfg.min_tpr)


def reference_population(pool: Pool, cfg: PAUCAtBudgetConfig) -> Tensor:
    """Bool ``[C, M]``: rows whose quantiles the thresholds are."""
    return (pool.negative if cfg.budget_basis == "fpr" else pool.valid) & pool.iid


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The reference [C, M], thresholds [C, K] from t_alpha to t_beta, scale [C] and effective temperature [C].

    ``measurable [C]``: whether there is an iid negative.
    """

    reference: Tensor
    thresholds: Tensor
    scale: Tensor
    tau: Tensor
    measurable: Tensor


def measure_budget(pool: Pool, cfg: PAUCAtBudgetConfig) -> Budget:
    """Read thresholds and scale off the reference population, with one sort."""
    reference = reference_population(pool, cfg)
    negative = reference if cfg.budget_basis == "fpr" else pool.negative & pool.iid
    n_knots = cfg.n_knots if cfg.surrogate == "trapezoid" else 2
    knots = (cfg.alpha + (cfg.beta - cfg.alpha) * k / (n_knots - 1) for k in range(1, n_knots - 1))
    levels = (1 - cfg.alpha, *(1 - knot for knot in knots), 1 - cfg.beta)
    quartiles = QUARTILES if cfg.tau_scale == "iqr" else ()
    quantiles = masked_quantile(
        pool.scores, reference, (*levels, *quartiles), cfg.quantile_interpolation, pool.row_count
    )
    thresholds = quantiles[:, : len(levels)]
    if cfg.tau_scale == "none":
        scale = torch.ones_like(thresholds[:, 0])
    else:
        scale = spread(pool, reference, _size(quantiles, thresholds, cfg), SMALLEST_SCALE, thresholds[:, -1:])
    limits = torch.finfo(scale.dtype)  # the scale of finite scores may be too large for their dtype
    return Budget(
        reference=reference,
        thresholds=thresholds,
        scale=scale,
        tau=(pool.temperature * scale).clamp(limits.tiny, limits.max),
        measurable=negative.any(-1),
    )


def _size(quantiles: Tensor, thresholds: Tensor, cfg: PAUCAtBudgetConfig) -> Tensor | None:
    """``[C]``: the interquartile range or the width of the band; None stands for the standard deviation."""
    if cfg.tau_scale == "std":
        return None
    return quantiles[:, -2] - quantiles[:, -1] if cfg.tau_scale == "iqr" else thresholds[:, 0] - thresholds[:, -1]


def negatives_in_band(pool: Pool, budget: Budget) -> Tensor:
    """Bool [C, M]: ``t_beta <= s <= t_alpha``."""
    scores = pool.scores.detach()
    return pool.negative & (scores.clamp(budget.thresholds[:, -1:], budget.thresholds[:, :1]) == scores)

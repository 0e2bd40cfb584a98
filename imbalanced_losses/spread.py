"""The spread of scores: the unit of a temperature that one setting makes right for scores of any scale."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values
from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.kernels.quantile import Interpolation, masked_quantile
from imbalanced_losses.pool import Pool

__all__ = ["QUARTILES", "TAU_SCALES", "TauScale", "describe_temperature", "scaled_temperature", "spread"]

TauScale = Literal["none", "std", "iqr"]
TAU_SCALES: tuple[TauScale, ...] = ("none", "std", "iqr")
QUARTILES = (0.75, 0.25)


def scaled_temperature(pool: Pool, tau_scale: TauScale, interpolation: Interpolation = "linear") -> Tensor:
    """The pool's temperature in score units: ``[]`` if it is in these already, else ``[C]``, without gradient.

    The unit is the standard deviation or the interquartile range of each class's scores, over all rows that are not
    ignored.
    """
    if tau_scale == "none":
        return pool.temperature
    size = None
    if tau_scale == "iqr":
        quartiles = masked_quantile(pool.scores, pool.valid, QUARTILES, interpolation, pool.row_count)
        size = quartiles[:, 0] - quartiles[:, 1]
    limits = torch.finfo(pool.scores.dtype)
    # the losses divide by it
    return (pool.temperature * spread(pool, pool.valid, size)).clamp(limits.tiny, limits.max)


def describe_temperature(pool: Pool, tau_scale: TauScale, interpolation: Interpolation = "linear") -> dict[str, Tensor]:
    """``tau_eff [C]``, the diagnostic: the temperature in score units, if it was given in others."""
    return {} if tau_scale == "none" else {"tau_eff": scaled_temperature(pool, tau_scale, interpolation)}


def spread(
    pool: Pool, rows: Tensor, size: Tensor | None = None, smallest: float = 0.0, origin: Tensor | None = None
) -> Tensor:
    """``size [C]``; where it is at most ``smallest`` the standard deviation, and where that is at most it, too, 1.

    The standard deviation is that of the scores in ``rows [C, M]`` (bool). Without ``size`` it comes first. A head that
    starts at zero, or scores that are mostly equal, must get a gradient; an empty class has a spread of 1. ``origin
    [C, 1]`` is a quantile of the scores, if one is at hand: it saves the search for one of them.
    """
    if size is not None and may_branch_on_values(size) and float(size.amin()) > smallest:
        return size
    deviation = _standard_deviation(pool, rows, origin)
    fallback = deviation.masked_fill(deviation <= smallest, 1)
    return fallback if size is None else torch.where(size > smallest, size, fallback)


def _standard_deviation(pool: Pool, rows: Tensor, origin: Tensor | None) -> Tensor:
    """``[C]``: that of the population of which ``rows`` are the sample; 0 if there are none."""
    scores = pool.scores.detach().to(accumulation_dtype(pool.scores.device))  # no square overflows or vanishes
    # from one of the scores: that of equal scores is 0 then, also where their mean is rounded
    if origin is None:
        highest = torch.where(rows, scores, -torch.inf).amax(-1, keepdim=True)
        offset = torch.where(rows, scores - highest, 0)  # an empty class has none
    else:
        offset = scores - origin
    counts = pool.count(rows)
    share = counts / counts.sum(-1, keepdim=True).clamp_min(1)  # no count is below 1
    deviation = offset - (offset * share).sum(-1, keepdim=True)
    return (deviation * deviation * share).sum(-1).sqrt().to(pool.scores.dtype)

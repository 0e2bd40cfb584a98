"""Masked and weighted means and sums.

Every division by a count or a total weight is here, except the fused mean of small focal losses.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values
from imbalanced_losses.dtypes import accumulation_dtype

__all__ = [
    "Elements",
    "Reduction",
    "mean_over_weight",
    "reduce_classes",
    "reduce_elements",
    "sum_elements",
    "weighted_mean",
]

Reduction = Literal["mean", "sum", "none"]
Elements = tuple[Tensor, Tensor | None, Tensor | None]
"""Arguments of :func:`reduce_elements`: a loss per element, a mask of those that count, and their weights."""


def mean_over_weight(total: Tensor, total_weight: Tensor) -> Tensor:
    """``total / total_weight``, or 0 where the total weight is 0."""
    return total / (total_weight + (total_weight == 0))


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of ``values [..., M]`` over the last axis, with ``weights [..., M] >= 0``; 0 if all are 0."""
    wide = weights.to(accumulation_dtype(weights.device))  # a sum of large weights leaves float32
    return mean_over_weight((values * wide).sum(-1), wide.sum(-1)).to(values.dtype)


def reduce_classes(loss: Tensor, valid: Tensor, reduction: Reduction) -> Tensor:
    """Reduce per-class losses ``[C]``, which are 0 where invalid, over the valid classes.

    ``"mean"`` and ``"sum"`` return a 0-dim tensor (0 if no class is valid), ``"none"`` returns ``[C]`` with ``nan`` at
    invalid classes.
    """
    if reduction == "none":
        return torch.where(valid, loss, torch.nan)
    if reduction == "sum" or len(loss) == 1:
        return loss.sum()
    if may_branch_on_values(valid) and valid.all():  # one operator instead of four
        return loss.mean()
    return loss.sum() / valid.sum().clamp_min(1)


def reduce_elements(loss: Tensor, counted: Tensor | None, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce a loss per element ``[N, ...]``, which is 0 at elements that do not count.

    Parameters
    ----------
    loss : Tensor [N, ...]
    counted : Tensor [N, ...], bool, optional
        The elements whose number or total weight ``"mean"`` divides by; all of them if left out.
    weights : Tensor [N], or one that broadcasts to [N, ...] with a first axis of N, optional
        Non-negative. Ones give bit for bit the same result as no weights: both divide a sum by a total weight.
    reduction : {"mean", "sum", "none"}
        ``"none"`` returns the weighted loss ``[N, ...]``.
    """
    if reduction == "mean" and weights is None and counted is None:
        return loss.sum() / max(1, loss.numel())  # the backward of mean() writes a tensor of the loss's size
    if reduction == "mean":
        total, total_weight = sum_elements(loss, counted, weights)
        return total / total_weight.clamp_min(1) if weights is None else mean_over_weight(total, total_weight)
    loss = loss if weights is None else loss * _of_elements(weights, loss)
    return loss.sum() if reduction == "sum" else loss


def sum_elements(loss: Tensor, counted: Tensor | None, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return numerator and denominator of the mean: the sum of weighted losses, and their number or total weight."""
    if weights is None:
        return loss.sum(), torch.full((), loss.numel(), device=loss.device) if counted is None else counted.sum()
    weights = _of_elements(weights, loss)
    # in the loss's layout, so that broadcast weights are summed in the same order as expanded ones
    total_weight = weights.expand_as(loss).contiguous() if counted is None else torch.where(counted, weights, 0)
    return (loss * weights).sum(), total_weight.sum()


def _of_elements(weights: Tensor, loss: Tensor) -> Tensor:
    """Reshape weights of rows ``[N]``, or of elements, so that they broadcast to a loss ``[N, ...]``."""
    return weights.reshape(weights.shape + (1,) * (loss.dim() - weights.dim())).to(loss.dtype)

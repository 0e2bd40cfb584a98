"""Masked and weighted means and sums.

Every division by a count or a total weight happens here, except the fused mean of few focal losses.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values

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
"""What :func:`reduce_elements` takes: a loss per element, which of them count, their weights."""


def mean_over_weight(total: Tensor, total_weight: Tensor) -> Tensor:
    """``total / total_weight``, or 0 where the total weight is 0."""
    return total / (total_weight + (total_weight == 0))


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of ``values [..., M]`` under ``weights [..., M] >= 0`` over the last axis; 0 where all weights are 0."""
    return mean_over_weight((values * weights).sum(-1), weights.sum(-1))


def reduce_classes(loss: Tensor, valid: Tensor, reduction: Reduction) -> Tensor:
    """Reduce per-class losses ``[C]``, which are 0 where invalid, over the valid classes.

    ``"mean"`` and ``"sum"`` give a 0-dim tensor (0 if no class is valid), ``"none"`` gives ``[C]`` with ``nan`` at each
    invalid class.
    """
    if reduction == "none":
        return torch.where(valid, loss, torch.nan)
    if reduction == "sum" or len(loss) == 1:
        return loss.sum()
    if may_branch_on_values(valid) and valid.all():  # one operator for four
        return loss.mean()
    return loss.sum() / valid.sum().clamp_min(1)


def reduce_elements(loss: Tensor, counted: Tensor | None, weights: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce a loss per element ``[N, ...]`` that is 0 where it does not count.

    Parameters
    ----------
    loss : Tensor [N, ...]
    counted : Tensor [N, ...], bool, optional
        The elements whose number or total weight ``"mean"`` divides by; all of them if left out.
    weights : Tensor [N], or one that broadcasts to [N, ...] with a first axis of N, optional
        Non-negative. Left out is the same as ones, to the last bit: both divide a sum by a total weight.
    reduction : {"mean", "sum", "none"}
        ``"none"`` gives the weighted loss ``[N, ...]``.
    """
    if reduction == "mean" and weights is None and counted is None:
        return loss.sum() / max(1, loss.numel())  # not mean(), whose backward writes a tensor of the loss's size
    if reduction == "mean":
        total, total_weight = sum_elements(loss, counted, weights)
        return total / total_weight.clamp_min(1) if weights is None else mean_over_weight(total, total_weight)
    loss = loss if weights is None else loss * _of_elements(weights, loss)
    return loss.sum() if reduction == "sum" else loss


def sum_elements(loss: Tensor, counted: Tensor | None, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The two sums whose quotient is the mean of :func:`reduce_elements`: of weighted losses, of what counts."""
    if weights is None:
        return loss.sum(), torch.full((), loss.numel(), device=loss.device) if counted is None else counted.sum()
    weights = _of_elements(weights, loss)
    # laid out as the loss, so that weights that broadcast add up in the same order as expanded ones
    total_weight = weights.expand_as(loss).contiguous() if counted is None else torch.where(counted, weights, 0)
    return (loss * weights).sum(), total_weight.sum()


def _of_elements(weights: Tensor, loss: Tensor) -> Tensor:
    """Weights of rows ``[N]``, or of elements, as they broadcast to a loss ``[N, ...]``."""
    return weights.reshape(weights.shape + (1,) * (loss.dim() - weights.dim())).to(loss.dtype)

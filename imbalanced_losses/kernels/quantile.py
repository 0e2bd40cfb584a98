"""Order statistics of masked rows, and the gradient of a threshold that follows its scores.

``torch.quantile`` takes no mask, refuses half types and more than 2^24 elements; these functions do not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses.kernels.ordering import argsort_rows, sorts_by_integers
from imbalanced_losses.precision import widest_dtype, working_dtype

__all__ = ["INTERPOLATIONS", "Interpolation", "follow_scores", "masked_quantile"]

Interpolation = Literal["linear", "lower", "higher", "nearest", "midpoint"]
INTERPOLATIONS = ("linear", "lower", "higher", "nearest", "midpoint")
ROUNDINGS = {"lower": torch.floor, "higher": torch.ceil, "nearest": torch.round}

# Of a row. Measured on 2 CPU cores, in ms: the largest 1.5% / 5% / 25% of 262,144 values 2.3 / 3.6 / 7.5, sorting all
# by integers 1.5; of 100 x 2,048 values 0.18 / 1.0 / 2.0, sorting 2.3 to 3.7.
LARGE_SHARE = 1 / 16


def masked_quantile(
    values: Tensor,
    mask: Tensor,
    levels: tuple[float, ...],
    interpolation: Interpolation,
    stands_for: Tensor | None = None,
) -> Tensor:
    """Quantiles of each row over the elements that the mask keeps, as ``torch.quantile`` defines them.

    Parameters
    ----------
    values : Tensor [R, M], floating point, M >= 1
    mask : Tensor [R, M], bool
    levels : tuple of K floats in [0, 1]
    interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        Of the position ``level * (n - 1)`` among the n kept elements in ascending order.
    stands_for : Tensor [M], optional
        As how many equal elements each one counts, at least 1; n is their sum.

    Returns
    -------
    Tensor [R, K]
        0 in rows without a kept element. Detached. Cost: O(R M) for levels in the upper tail, else one sort for any
        number of levels.
    """
    if stands_for is not None:
        return _counted_quantile(values.detach(), mask * stands_for, levels, interpolation)
    count = mask.sum(-1, keepdim=True)
    kept = torch.where(mask, values.detach().to(working_dtype(values)), -torch.inf)
    descending = _argsort_largest(kept, min(levels))
    last = (count - 1).clamp_min(0).to(widest_dtype(values.device))
    position = last * levels[0] if len(levels) == 1 else torch.cat([last * level for level in levels], -1)

    def element(position: Tensor) -> Tensor:
        return kept.gather(-1, descending.gather(-1, (last - position).long()))

    quantiles = _interpolate(element, position, interpolation)
    return torch.where(count > 0, quantiles, 0).to(values.dtype)


def _counted_quantile(
    values: Tensor, counts: Tensor, levels: tuple[float, ...], interpolation: Interpolation
) -> Tensor:
    """:func:`masked_quantile` of rows in which each element is there ``counts [R, M]`` times; 0 masks it."""
    kept = torch.where(counts > 0, values.to(working_dtype(values)), torch.inf)
    ascending = argsort_rows(kept)
    upto = counts.gather(-1, ascending).to(widest_dtype(values.device)).cumsum(-1)
    total = upto[:, -1:]
    position = torch.cat([(total - 1).clamp_min(0) * level for level in levels], -1)

    def element(position: Tensor) -> Tensor:
        place = (upto[:, None] <= position[..., None]).sum(-1)
        return kept.gather(-1, ascending.gather(-1, place.clamp_max(upto.shape[1] - 1)))

    quantiles = _interpolate(element, position, interpolation)
    return torch.where(total > 0, quantiles, 0).to(values.dtype)


def _argsort_largest(values: Tensor, level: float) -> Tensor:
    """Indices of each row in descending order, down to its quantile at ``level`` however many -inf it ends with.

    Of n <= M elements at most ``ceil((1 - level) * (n - 1))`` lie above that quantile: M gives a static bound.
    """
    size = values.shape[1]
    needed = min(size, math.ceil((1 - level) * (size - 1)) + 2)  # one for the element itself, one for rounding
    if needed > LARGE_SHARE * size and sorts_by_integers(values):
        return argsort_rows(-values)
    return values.topk(needed, -1).indices


def _interpolate(element: Callable[[Tensor], Tensor], position: Tensor, interpolation: Interpolation) -> Tensor:
    """The elements at positions, rounded or in between."""
    rounding = ROUNDINGS.get(interpolation)
    if rounding is not None:
        return element(rounding(position))
    whole = position.floor()
    below, above = element(whole), element(position.ceil())
    fraction = torch.full_like(below, 0.5) if interpolation == "midpoint" else (position - whole).to(below.dtype)
    return torch.lerp(below, above, fraction)


def follow_scores(
    thresholds: Tensor, scores: Tensor, mask: Tensor, temperature: Tensor, stands_for: Tensor | None = None
) -> Tensor:
    r"""The same thresholds, with the gradient of the soft quantile that each of them is.

    A soft quantile solves :math:`\sum_j \sigma((s_j - \theta)/\tau) = \text{const}`. Implicit differentiation gives

    .. math:: \partial\theta / \partial s_j = k_j / \textstyle\sum_l k_l, \qquad k_j = \sigma'((s_j - \theta)/\tau)

    The shares are evaluated in log space (a softmax), so that they stay shares where every ``k_j`` underflows, and are
    constants themselves: first derivatives only.

    Parameters
    ----------
    thresholds : Tensor [R, K]
        Their values are returned bit for bit.
    scores : Tensor [R, M]
        Detached scores (queue rows) count in the sum and get no gradient.
    mask : Tensor [R, M], bool
        The reference rows. In a row without any the threshold stays constant.
    temperature : Tensor [R]
        Above 0.
    stands_for : Tensor [M], optional
        As how many equal scores each one counts.

    Returns
    -------
    Tensor [R, K]
        Cost: O(R K M).
    """
    distance = (scores.detach()[:, None, :] - thresholds.detach()[:, :, None]) / temperature.detach()[:, None, None]
    away = -distance.abs()
    log_bell = away - 2 * functional.softplus(away)  # log(sigma(x) sigma(-x)) with one transcendental pass
    if stands_for is not None:
        log_bell = log_bell + stands_for.log()
    lowest = torch.finfo(log_bell.dtype).min
    share = torch.where(mask[:, None], torch.where(mask[:, None], log_bell, lowest).softmax(-1), 0)
    movement = (share * (scores - scores.detach())[:, None, :]).sum(-1)
    return thresholds.detach() + movement

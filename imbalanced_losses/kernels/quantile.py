"""Order statistics of masked rows, and the gradient of a threshold that follows its scores.

``torch.quantile`` takes no mask, refuses half types and more than 2^24 elements; these functions do not.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["INTERPOLATIONS", "Interpolation", "follow_scores", "masked_quantile", "position_dtype"]

Interpolation = Literal["linear", "lower", "higher", "nearest", "midpoint"]
INTERPOLATIONS = ("linear", "lower", "higher", "nearest", "midpoint")


def position_dtype(device: torch.device) -> torch.dtype:
    """For counts and positions in a row: float32 cannot tell neighbours apart beyond 2^24. MPS has nothing wider."""
    return torch.float32 if device.type == "mps" else torch.float64


def masked_quantile(values: Tensor, mask: Tensor, levels: tuple[float, ...], interpolation: Interpolation) -> Tensor:
    """Quantiles of each row over the elements that the mask keeps, as ``torch.quantile`` defines them.

    Parameters
    ----------
    values : Tensor [R, M], floating point, M >= 1
    mask : Tensor [R, M], bool
    levels : tuple of K floats in [0, 1]
    interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        Of the position ``level * (n - 1)`` among the n kept elements in ascending order.

    Returns
    -------
    Tensor [R, K]
        0 in rows without a kept element. Cost: one sort, O(R M log M), for any number of levels.
    """
    count = mask.sum(-1, keepdim=True)
    ascending = torch.where(mask, values, torch.inf).sort(-1).values
    last = (count - 1).clamp_min(0).to(position_dtype(values.device))
    position = torch.cat([last * level for level in levels], -1)
    below, above, fraction = _neighbours(position, interpolation)
    quantiles = torch.lerp(ascending.gather(-1, below), ascending.gather(-1, above), fraction.to(values.dtype))
    return torch.where(count > 0, quantiles, 0)


def _neighbours(position: Tensor, interpolation: Interpolation) -> tuple[Tensor, Tensor, Tensor]:
    """Indices of the two elements beside a position, and how far the quantile lies from the first to the second."""
    below, above = position.floor(), position.ceil()
    if interpolation == "lower":
        above = below
    elif interpolation == "higher":
        below = above
    elif interpolation == "nearest":
        below = above = position.round()
    fraction = torch.full_like(position, 0.5) if interpolation == "midpoint" else position - below
    return below.long(), above.long(), fraction


def follow_scores(thresholds: Tensor, scores: Tensor, mask: Tensor, temperature: Tensor) -> Tensor:
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

    Returns
    -------
    Tensor [R, K]
        Cost: O(R K M).
    """
    distance = (scores.detach()[:, None, :] - thresholds.detach()[:, :, None]) / temperature.detach()[:, None, None]
    log_bell = functional.logsigmoid(distance) + functional.logsigmoid(-distance)
    lowest = torch.finfo(log_bell.dtype).min
    share = torch.where(mask[:, None], torch.where(mask[:, None], log_bell, lowest).softmax(-1), 0)
    movement = (share * (scores - scores.detach())[:, None, :]).sum(-1)
    return thresholds.detach() + movement

r"""One minus a soft recall at thresholds: what recall at a quantile and the trapezoid of the partial AUC average.

The gradient comes along with the value. It can let the thresholds follow the scores: a soft quantile solves
:math:`\sum_j \sigma((s_j - \theta)/\tau) = \text{const}`, and implicit differentiation gives

.. math:: \partial\theta / \partial s_j = k_j / \textstyle\sum_l k_l, \qquad k_j = \sigma'((s_j - \theta)/\tau)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses.execution import may_read
from imbalanced_losses.kernels.operators import make_mean
from imbalanced_losses.kernels.packing import Packed, pack, shares
from imbalanced_losses.kernels.ranks.sigmoid import wide_sigmoid

__all__ = ["missed_recall"]

# Elements of a temporary on the CPU, about a core's share of the cache; classes are taken one after the other.
CHUNK = 1 << 19


def missed_recall(
    scores: Tensor,
    thresholds: Tensor,
    positive: Tensor,
    weight: Tensor,
    temperature: Tensor,
    reference: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weighted mean over the positives of each class of its soft misses, averaged over the thresholds.

    .. math:: m_{ci} = \sum_k a_k\, \sigma\big((\theta_{ck} - s_{ci}) / \tau_c\big), \qquad
        y_c = \sum_{i \in P_c} w_{ci} m_{ci} \Big/ \sum_{i \in P_c} w_{ci}

    with the weights :math:`a` of the composite trapezoid rule, which sum to 1.

    Parameters
    ----------
    scores : Tensor [C, M], float32 or float64
        A score that is not finite makes its class ``nan``.
    thresholds : Tensor [C, K]
        Taken as constants, unless there is a reference.
    positive : Tensor [C, M], bool
    weight : Tensor [C, M]
        Of use at positives; carries no gradient.
    temperature : Tensor [C]
        Above 0; carries no gradient.
    reference : Tensor [C, M], bool, optional
        The rows whose soft quantile each threshold is: its gradient follows their scores. The shares of the rows are
        constants, hence first derivatives only. In a class without any the thresholds stay constant.
    counts : Tensor [C, M], optional
        As how many equal scores each row of the reference counts.

    Returns
    -------
    Tensor [C], Tensor [C], Tensor [C]
        ``y``, 0 where there is no weight; the mean of the squares ``m_i^2`` and the sum of the weights, which carry no
        gradient.

    Notes
    -----
    Cost: O(C M + K P) for P positives in all, with a reference O(C K M).
    """
    constants = thresholds.detach(), positive, weight, temperature.detach(), reference, counts
    mean, squares, mass = _missed_recall(scores, *constants)
    return mean, squares, mass


def _kernel(
    scores: Tensor,
    thresholds: Tensor,
    positive: Tensor,
    weight: Tensor,
    temperature: Tensor,
    reference: Tensor | None,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, ...]:
    arguments = scores, thresholds, positive, weight, temperature
    if may_read(scores):
        statistics, slopes, rows = _misses_of_positives(*arguments, differentiate)
    else:
        (statistics, slopes), rows = _misses_of_all(*arguments), None
    if not differentiate:
        return *statistics, scores.new_empty(0)
    by_scores = (slopes[..., 0] if slopes.shape[-1] == 1 else slopes.sum(-1)).to(scores.dtype)
    by_scores = by_scores if rows is None else rows.scatter(by_scores)
    if reference is None:
        return *statistics, by_scores
    by_thresholds = slopes.sum(1) if rows is None else rows.sum_by_row(slopes)
    by_thresholds = -by_thresholds.to(scores.dtype)
    return *statistics, _add_movement(by_scores, by_thresholds, scores, thresholds, temperature, reference, counts)


def _misses_of_positives(
    scores: Tensor, thresholds: Tensor, positive: Tensor, weight: Tensor, temperature: Tensor, differentiate: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Packed]:
    """Statistics and the gradient ``[P, K]`` by the scores, on the CPU, where finding the positives is free."""
    rows = pack(positive)
    tau = rows.by_row(temperature)[:, None]
    misses = wide_sigmoid((rows.by_row(thresholds) - rows.gather(scores)[:, None]) / tau)  # [P, K]
    share, mass = rows.shares(weight)
    knots = _trapezoid_shares(misses)
    miss = misses[:, 0] if knots is None else misses @ knots
    weighted = miss * share
    mean, squares = rows.sum_by_row(weighted).to(scores.dtype), rows.sum_by_row(weighted * miss)
    slopes = _slopes(misses, share[:, None] / -tau, knots) if differentiate else misses
    return (mean, squares, mass), slopes, rows


def _misses_of_all(
    scores: Tensor, thresholds: Tensor, positive: Tensor, weight: Tensor, temperature: Tensor
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """Statistics and the gradient ``[C, M, K]`` by the scores, by static shapes, as an expression of the scores."""
    tau = temperature[:, None]
    misses = wide_sigmoid((thresholds[:, None] - scores[:, :, None]) / tau[:, :, None])  # [C, M, K]
    share, mass = shares(positive, weight)
    knots = _trapezoid_shares(misses)
    miss = misses[..., 0] if knots is None else misses @ knots
    weighted = miss * share
    mean, squares = weighted.sum(-1).to(scores.dtype), (weighted * miss).sum(-1)
    return (mean, squares, mass), _slopes(misses, (share / -tau)[:, :, None], knots)


def _slopes(misses: Tensor, scale: Tensor, knots: Tensor | None) -> Tensor:
    """``scale * misses * (1 - misses) * knots`` for ``misses [..., K]``."""
    slopes = misses * (1 - misses) * scale
    return slopes if knots is None else slopes * knots


def _trapezoid_shares(misses: Tensor) -> Tensor | None:
    """``a [K]``, for ``misses [..., K]``; None for ones."""
    k = misses.shape[-1]
    if k == 1:
        return None
    knots = misses.new_full((k,), 1 / (k - 1))
    knots[:: k - 1] *= 0.5
    return knots


def _add_movement(
    by_scores: Tensor,
    by_thresholds: Tensor,
    scores: Tensor,
    thresholds: Tensor,
    temperature: Tensor,
    reference: Tensor,
    counts: Tensor | None,
) -> Tensor:
    """The gradient ``[C, M]`` with that of the thresholds ``[C, K]`` handed on to the reference's scores."""
    r, m = scores.shape
    step = max(1, CHUNK // max(1, m * thresholds.shape[1])) if may_read(scores) else r
    parts = []
    for start in range(0, r, step):
        part = slice(start, start + step)
        part_counts = None if counts is None else counts[part]
        share = _shares(scores[part], thresholds[part], temperature[part], reference[part], part_counts)
        parts.append(torch.baddbmm(by_scores[part, None], by_thresholds[part, None], share)[:, 0])
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _shares(
    scores: Tensor, thresholds: Tensor, temperature: Tensor, reference: Tensor, counts: Tensor | None
) -> Tensor:
    """``d theta / d s [C, K, M]``, in log space (a softmax), so that they stay shares where every ``k`` underflows."""
    distance = (scores[:, None, :] - thresholds[:, :, None]) / temperature[:, None, None]
    tail = -distance.abs()
    log_density = tail - 2 * functional.softplus(tail)  # log(sigma(x) sigma(-x)) with one transcendental pass
    if counts is not None:
        log_density = log_density + counts.log()[:, None]
    outside = ~reference[:, None]
    return log_density.masked_fill(outside, torch.finfo(tail.dtype).min).softmax(-1).masked_fill(outside, 0)


def _gradient(
    scores: Tensor,
    thresholds: Tensor,
    positive: Tensor,
    weight: Tensor,
    temperature: Tensor,
    reference: Tensor | None,
    counts: Tensor | None,
) -> Tensor:
    _, slopes = _misses_of_all(scores, thresholds, positive, weight, temperature)
    by_scores = slopes.sum(-1).to(scores.dtype)
    if reference is None:
        return by_scores
    by_thresholds = -slopes.sum(1).to(scores.dtype)
    return _add_movement(by_scores, by_thresholds, scores.detach(), thresholds, temperature, reference, counts)


_missed_recall = make_mean(
    "missed_recall",
    "Tensor thresholds, Tensor positive, Tensor weight, Tensor temperature, Tensor? reference, Tensor? counts",
    n_statistics=2,
    kernel=_kernel,
    gradient=_gradient,
)

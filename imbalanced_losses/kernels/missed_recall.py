r"""One minus a soft recall at thresholds: what recall at a quantile and the trapezoid of the partial AUC sum.

The gradient comes along with the value. It can let the thresholds follow the scores: a soft quantile solves
:math:`\sum_j \sigma((s_j - \theta)/\tau) = \text{const}`, and implicit differentiation gives

.. math:: \partial\theta / \partial s_j = k_j / \textstyle\sum_l k_l, \qquad k_j = \sigma'((s_j - \theta)/\tau)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses.execution import may_read
from imbalanced_losses.kernels.operators import make_sum
from imbalanced_losses.kernels.packing import pack
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
    r"""Weighted sum over the positives of each class of its soft misses, averaged over the thresholds.

    .. math:: m_{ci} = \sum_k a_k\, \sigma\big((\theta_{ck} - s_{ci}) / \tau_c\big), \qquad
        y_c = \sum_{i \in P_c} w_{ci} m_{ci}

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
    Tensor [C], Tensor [C], Tensor [C], in the widest dtype
        ``y``, the same of squares ``m_i^2``, and the sum of the weights; the latter two carry no gradient.

    Notes
    -----
    Cost: O(C M + K P) for P positives in all, with a reference O(C K M).
    """
    constants = thresholds.detach(), positive, weight, temperature.detach(), reference, counts
    total, squares, mass = _missed_recall(scores, *constants)
    return total, squares, mass


def _kernel(
    scores: Tensor,
    thresholds: Tensor,
    positive: Tensor,
    weight: Tensor,
    temperature: Tensor,
    reference: Tensor | None,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    misses = _misses_of_positives if may_read(scores) else _misses_of_all
    statistics, by_scores, by_thresholds = misses(scores, thresholds, positive, weight, temperature)
    if not differentiate:
        return *statistics, scores.new_empty(0)
    if reference is None:
        return *statistics, by_scores
    return *statistics, _add_movement(by_scores, by_thresholds, scores, thresholds, temperature, reference, counts)


Misses = tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]
"""Statistics and the gradients ``[C, M]`` by the scores and ``[C, K]`` by the thresholds."""


def _misses_of_positives(
    scores: Tensor, thresholds: Tensor, positive: Tensor, weight: Tensor, temperature: Tensor
) -> Misses:
    """On the CPU, where finding the positives is free."""
    rows = pack(positive)
    tau = rows.by_row(temperature)[:, None]
    misses = wide_sigmoid((rows.by_row(thresholds) - rows.gather(scores)[:, None]) / tau)  # [P, K]
    shares = _trapezoid_shares(misses)
    miss, weight = misses @ shares, rows.gather(weight).to(misses.dtype)
    weighted = miss * weight
    statistics = (rows.sum_by_row(values) for values in (weighted, weighted * miss, weight))
    slopes = misses * (1 - misses) * shares * (weight[:, None] / tau)
    by_scores = rows.scatter(slopes.sum(1).neg_().to(scores.dtype))
    return tuple(statistics), by_scores, rows.sum_by_row(slopes).to(scores.dtype)  # type: ignore[return-value]


def _misses_of_all(scores: Tensor, thresholds: Tensor, positive: Tensor, weight: Tensor, temperature: Tensor) -> Misses:
    """By static shapes, as an expression of the scores."""
    misses = wide_sigmoid((thresholds[:, None] - scores[:, :, None]) / temperature[:, None, None])  # [C, M, K]
    shares = _trapezoid_shares(misses)
    miss, weight = misses @ shares, torch.where(positive, weight, 0).to(misses.dtype)
    weighted = miss * weight
    statistics = weighted.sum(-1), (weighted * miss).sum(-1), weight.sum(-1)
    slopes = misses * (1 - misses) * shares * (weight / temperature[:, None])[:, :, None]
    return statistics, -slopes.sum(-1).to(scores.dtype), slopes.sum(1).to(scores.dtype)


def _trapezoid_shares(misses: Tensor) -> Tensor:
    """``a [K]``, for ``misses [..., K]``."""
    k = misses.shape[-1]
    shares = misses.new_full((k,), 1 / max(1, k - 1))
    if k > 1:
        shares[:: k - 1] /= 2
    return shares


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
    _, by_scores, by_thresholds = _misses_of_all(scores, thresholds, positive, weight, temperature)
    if reference is None:
        return by_scores
    return _add_movement(by_scores, by_thresholds, scores.detach(), thresholds, temperature, reference, counts)


_missed_recall = make_sum(
    "missed_recall",
    "Tensor thresholds, Tensor positive, Tensor weight, Tensor temperature, Tensor? reference, Tensor? counts",
    n_statistics=2,
    kernel=_kernel,
    gradient=_gradient,
)

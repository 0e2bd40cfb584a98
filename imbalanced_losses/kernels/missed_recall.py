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
from imbalanced_losses.kernels.packing import pack, shares
from imbalanced_losses.kernels.ranks.sigmoid import wide_sigmoid

__all__ = ["missed_recall"]

# Elements of a temporary on the CPU, about a core's share of the cache; classes are taken one after the other.
CHUNK = 1 << 19
PACKED_FROM = 1 << 13  # scores on the CPU, from which on finding the positives costs less than it spares


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
    if may_read(scores) and scores.numel() >= PACKED_FROM:
        rows = pack(positive)
        share, mass = rows.shares(weight)
        misses = _misses(rows.gather(scores), rows.by_row(thresholds).mT, rows.by_row(temperature))
        total, spread = rows.sum_by_row, rows.scatter
        scale = share / -rows.by_row(temperature)
    else:
        share, mass = shares(positive, weight)
        misses = _misses(scores, thresholds.mT[:, :, None], temperature[:, None])
        total, spread = _sum_of_rows, _as_they_are
        scale = share / -temperature[:, None]
    miss = _trapezoid(misses)
    weighted = miss * share
    statistics = total(weighted).to(scores.dtype), total(weighted * miss), mass
    if not differentiate:
        return *statistics, scores.new_empty(0)
    slopes = (1 - misses) * misses * scale
    by_scores = spread(_trapezoid(slopes).to(scores.dtype))
    if reference is None:
        return *statistics, by_scores
    by_thresholds = torch.stack([total(slope) for slope in _knots(slopes)], 1).to(scores.dtype)
    return *statistics, _add_movement(by_scores, -by_thresholds, scores, thresholds, temperature, reference, counts)


def _misses(scores: Tensor, levels: Tensor, tau: Tensor) -> Tensor:
    """``[K, ...]`` of scores ``[...]`` and levels ``[K, ...]``."""
    return wide_sigmoid((levels - scores) / tau)


def _trapezoid(values: Tensor) -> Tensor:
    """The composite trapezoid rule over K values at equal distances, of ``[K, ...]``, in units of their range."""
    k = len(values)
    if k == 1:
        return values[0]
    return values.mean(0) if k == 2 else (values.sum(0) - (values[0] + values[-1]) / 2) / (k - 1)


def _knots(values: Tensor) -> list[Tensor]:
    """The K summands of :func:`_trapezoid`."""
    k = len(values)
    ends = 1 if k == 1 else 2 * (k - 1)
    return [value / (ends if i in (0, k - 1) else k - 1) for i, value in enumerate(values.unbind())]


def _sum_of_rows(values: Tensor) -> Tensor:
    return values.sum(-1)


def _as_they_are(values: Tensor) -> Tensor:
    return values


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
    share, _ = shares(positive, weight)
    misses = _misses(scores, thresholds.mT[:, :, None], temperature[:, None])
    slopes = (1 - misses) * misses * (share / -temperature[:, None])
    by_scores = _trapezoid(slopes).to(scores.dtype)
    if reference is None:
        return by_scores
    by_thresholds = -torch.stack([slope.sum(-1) for slope in _knots(slopes)], 1).to(scores.dtype)
    return _add_movement(by_scores, by_thresholds, scores.detach(), thresholds, temperature, reference, counts)


_missed_recall = make_mean(
    "missed_recall",
    "Tensor thresholds, Tensor positive, Tensor weight, Tensor temperature, Tensor? reference, Tensor? counts",
    n_statistics=2,
    kernel=_kernel,
    gradient=_gradient,
)

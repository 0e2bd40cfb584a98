r"""One minus the soft recall at thresholds, for recall at a quantile and the trapezoid rule of the partial AUC.

There are two evaluators. Plain eager mode computes value and gradient together in closed form, on the CPU only for the
positives. All other modes use a plain expression, which is safe to compile.

Thresholds can depend on the scores: a soft quantile solves :math:`\sum_j \sigma((s_j - \theta)/\tau) = \text{const}`,
and implicit differentiation gives

.. math:: \partial\theta / \partial s_j = k_j / \textstyle\sum_l k_l, \qquad k_j = \sigma'((s_j - \theta)/\tau)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses.dispatch import has_tangent, holds_values, is_plain_eager
from imbalanced_losses.kernels.operators import in_blocks_of_rows, propagate_nonfinite, with_gradient, with_nonfinite
from imbalanced_losses.kernels.packing import Unpacked, pack, shares
from imbalanced_losses.kernels.ranks.sigmoid import wide_sigmoid
from imbalanced_losses.kernels.tuning import PACKED_FROM, RECALL_CHUNK

__all__ = ["missed_recall"]


def missed_recall(
    scores: Tensor,
    thresholds: Tensor,
    positive: Tensor,
    weight: Tensor,
    temperature: Tensor,
    reference: Tensor | None = None,
    counts: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Weighted mean of soft misses over the positives of each class, averaged over the thresholds.

    .. math:: m_{ci} = \sum_k a_k\, \sigma\big((\theta_{ck} - s_{ci}) / \tau_c\big), \qquad
        y_c = \sum_{i \in P_c} w_{ci} m_{ci} \Big/ \sum_{i \in P_c} w_{ci}

    with the weights :math:`a` of the composite trapezoid rule, which sum to 1.

    Parameters
    ----------
    scores : Tensor [C, M], float32 or float64
        A score that is not finite makes its class ``nan``.
    thresholds : Tensor [C, K]
        Constants, unless there is a reference.
    positive : Tensor [C, M], bool
    weight : Tensor [C, M]
        Used only at positives; carries no gradient.
    temperature : Tensor [C]
        Above 0; carries no gradient.
    reference : Tensor [C, M], bool, optional
        The rows of which each threshold is a soft quantile; it then has a gradient with respect to their scores. The
        rows' shares in this gradient are constants, so only first derivatives are right. In a class without reference
        rows the thresholds are constants.
    counts : Tensor [C, M], optional
        Multiplicity of each row of the reference.

    Returns
    -------
    Tensor [C], Tensor [C], Tensor [C]
        ``y``, 0 where the total weight is 0; then the mean of the squares ``m_i^2`` and the sum of the weights, which
        carry no gradient.

    Notes
    -----
    Cost: O(C K M) time and memory; in eager mode on the CPU O(C M), plus O(K) for each positive.
    """
    constants = thresholds.detach(), positive, weight, temperature.detach(), reference, counts
    if is_plain_eager() and not has_tangent(scores):
        mean, squares, total_weight = with_gradient(_kernel, _gradient, scores, *constants)
    else:
        mean, squares, total_weight = _missed_recall(scores, *constants)
    return mean, squares, total_weight


@propagate_nonfinite
def _kernel(scores: Tensor, *constants: Any) -> tuple[Tensor, ...]:
    """Return value, statistics and gradient ``[C, M]``; on the CPU computed a few classes at a time."""
    return in_blocks_of_rows(_with_gradient, RECALL_CHUNK, scores, *constants)


def _with_gradient(
    scores: Tensor,
    thresholds: Tensor,
    positive: Tensor,
    weight: Tensor,
    temperature: Tensor,
    reference: Tensor | None,
    counts: Tensor | None,
    differentiate: bool,
) -> tuple[Tensor, ...]:
    rows = pack(positive) if holds_values(scores) and scores.numel() >= PACKED_FROM else Unpacked(positive)
    share, total_weight = rows.shares(weight)
    scale = rows.by_row(temperature)
    misses = wide_sigmoid((rows.by_row(thresholds.mT) - rows.gather(scores)) / scale)  # [K, P] or [K, C, M]
    miss = _trapezoid(misses)
    weighted = miss * share
    statistics = rows.sum_by_row(weighted).to(scores.dtype), rows.sum_by_row(weighted * miss), total_weight
    if not differentiate:
        return *statistics, scores.new_empty(0)
    slopes = misses.square().sub_(misses).mul_(share / scale)
    gradient = rows.scatter(_trapezoid(slopes).to(scores.dtype))
    if reference is not None:
        by_thresholds = torch.stack([rows.sum_by_row(slope) for slope in slopes]).to(scores.dtype)
        share_of_row = _threshold_gradient(scores, thresholds, reference, temperature, counts)
        gradient = gradient - _trapezoid(by_thresholds[..., None] * share_of_row.transpose(0, 1))
    return *statistics, gradient


def _missed_recall(
    scores: Tensor,
    thresholds: Tensor,
    positive: Tensor,
    weight: Tensor,
    temperature: Tensor,
    reference: Tensor | None,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, as an expression for autograd and compilers."""
    if reference is not None:
        thresholds = _with_implicit_gradient(thresholds, scores, reference, temperature, counts)
    misses = wide_sigmoid((thresholds.mT[:, :, None] - scores) / temperature[:, None])  # [K, C, M]
    miss = _trapezoid(misses)
    share, total_weight = shares(positive, weight)
    weighted = miss * share
    mean = with_nonfinite(weighted.sum(-1).to(scores.dtype), scores)
    return mean, (weighted * miss).detach().sum(-1), total_weight


def _trapezoid(values: Tensor) -> Tensor:
    """Average ``values [K, ...]`` at equidistant points with the composite trapezoid rule."""
    k = len(values)
    if k == 1:
        return values[0]
    return values[0].lerp(values[1], 0.5) if k == 2 else (values.sum(0) - (values[0] + values[-1]) / 2) / (k - 1)


def _with_implicit_gradient(
    thresholds: Tensor, scores: Tensor, reference: Tensor, temperature: Tensor, counts: Tensor | None
) -> Tensor:
    """Return the same thresholds ``[C, K]``, with the gradients of soft quantiles."""
    share = _threshold_gradient(scores.detach(), thresholds, reference, temperature, counts)
    return thresholds + (share * (scores - scores.detach())[:, None]).sum(-1)


def _threshold_gradient(
    scores: Tensor, thresholds: Tensor, reference: Tensor, temperature: Tensor, counts: Tensor | None
) -> Tensor:
    """Return ``d theta / d s [C, K, M]``, as a softmax in log space: they sum to 1 even if every ``k`` underflows."""
    distance = (scores[:, None, :] - thresholds[:, :, None]) / temperature[:, None, None]
    tail = -distance.abs()
    log_density = tail - 2 * functional.softplus(tail)  # log(sigma(x) sigma(-x)) with one transcendental pass
    if counts is not None:
        log_density = log_density + counts.log()[:, None]
    lowest, inside = torch.finfo(tail.dtype).min, reference[:, None]
    return torch.where(inside, torch.where(inside, log_density, lowest).softmax(-1), 0)


def _gradient(scores: Tensor, *constants: Any) -> Tensor:
    mean = _missed_recall(scores, *constants)[0]
    return torch.autograd.grad(mean.sum(), scores, create_graph=True)[0]

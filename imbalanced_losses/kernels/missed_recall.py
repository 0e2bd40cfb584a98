r"""One minus a soft recall at thresholds: what recall at a quantile and the trapezoid of the partial AUC average.

An expression: there is nothing in it that a compiler should not see. Thresholds can follow the scores: a soft quantile
solves :math:`\sum_j \sigma((s_j - \theta)/\tau) = \text{const}`, and implicit differentiation gives

.. math:: \partial\theta / \partial s_j = k_j / \textstyle\sum_l k_l, \qquad k_j = \sigma'((s_j - \theta)/\tau)
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from imbalanced_losses.execution import has_tangent, reads_freely
from imbalanced_losses.kernels.operators import with_gradient
from imbalanced_losses.kernels.packing import shares
from imbalanced_losses.kernels.ranks.sigmoid import wide_sigmoid

__all__ = ["missed_recall"]

# Scores on the CPU, from which on classes are taken some at a time: as many as stay in a core's share of the cache.
BLOCKS_FROM = 1 << 17


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
    Cost: O(C K M) time. O(C M) memory for large pools in eager mode on the CPU, else O(C K M).
    """
    constants = thresholds.detach(), positive, weight, temperature.detach(), reference, counts
    if reads_freely(scores) and scores.numel() >= BLOCKS_FROM and not has_tangent(scores):
        mean, squares, mass = with_gradient(_in_blocks, _gradient, scores, *constants)
    else:
        mean, squares, mass = _missed_recall(scores, *constants)
    return mean, squares, mass


def _missed_recall(
    scores: Tensor,
    thresholds: Tensor,
    positive: Tensor,
    weight: Tensor,
    temperature: Tensor,
    reference: Tensor | None,
    counts: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The definition, as an expression that autograd and compilers differentiate and fuse."""
    if reference is not None:
        thresholds = _follow_scores(thresholds, scores, reference, temperature, counts)
    misses = wide_sigmoid((thresholds.mT[:, :, None] - scores) / temperature[:, None])  # [K, C, M]
    miss = _trapezoid(misses)
    share, mass = shares(positive, weight)
    weighted = miss * share
    mean = _guard(weighted.sum(-1).to(scores.dtype), scores)
    return mean, (weighted * miss).detach().sum(-1), mass


def _guard(mean: Tensor, scores: Tensor) -> Tensor:
    """``mean [C]``, which a score that is not finite makes ``nan``, with its gradient: a GradScaler skips the step."""
    if reads_freely(scores) and math.isfinite(scores.detach().sum()):
        return mean
    zero_or_nan = (scores - scores).sum(-1)  # not times 0, which a compiler takes for 0
    return mean * (1 + zero_or_nan * zero_or_nan)


def _trapezoid(values: Tensor) -> Tensor:
    """The composite trapezoid rule over K values at equal distances, of ``[K, ...]``, in units of their range."""
    k = len(values)
    if k == 1:
        return values[0]
    return values.mean(0) if k == 2 else (values.sum(0) - (values[0] + values[-1]) / 2) / (k - 1)


def _follow_scores(
    thresholds: Tensor, scores: Tensor, reference: Tensor, temperature: Tensor, counts: Tensor | None
) -> Tensor:
    """The same thresholds ``[C, K]``, with the gradient of the soft quantile that each of them is."""
    share = _shares_in_threshold(scores.detach(), thresholds, reference, temperature, counts)
    return thresholds + (share * (scores - scores.detach())[:, None]).sum(-1)


def _shares_in_threshold(
    scores: Tensor, thresholds: Tensor, reference: Tensor, temperature: Tensor, counts: Tensor | None
) -> Tensor:
    """``d theta / d s [C, K, M]``, in log space (a softmax), so that they stay shares where every ``k`` underflows."""
    distance = (scores[:, None, :] - thresholds[:, :, None]) / temperature[:, None, None]
    tail = -distance.abs()
    log_density = tail - 2 * functional.softplus(tail)  # log(sigma(x) sigma(-x)) with one transcendental pass
    if counts is not None:
        log_density = log_density + counts.log()[:, None]
    lowest, inside = torch.finfo(tail.dtype).min, reference[:, None]
    return torch.where(inside, torch.where(inside, log_density, lowest).softmax(-1), 0)


def _in_blocks(scores: Tensor, *constants: Any) -> tuple[Tensor, ...]:
    """Value, statistics and gradient ``[C, M]``, some classes at a time: no graph and no temporary of all classes."""
    differentiate: bool = constants[-1]
    step = max(1, BLOCKS_FROM // scores.shape[1])
    parts = []
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        own: Any = [tensor if tensor is None else tensor[part] for tensor in constants[:-1]]
        # hooks on saved tensors (offloading, activation checkpoints) are for the graph outside
        with torch.set_grad_enabled(differentiate), saved_tensors_hooks(_as_it_is, _as_it_is):
            leaf = scores[part].detach().requires_grad_(differentiate)
            mean, *statistics = _missed_recall(leaf, *own)
            gradient = torch.autograd.grad(mean.sum(), leaf)[0] if differentiate else leaf.new_empty(0)
        parts.append((mean.detach(), *statistics, gradient))
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _gradient(scores: Tensor, *constants: Any) -> Tensor:
    mean = _missed_recall(scores, *constants)[0]
    return torch.autograd.grad(mean.sum(), scores, create_graph=True)[0]

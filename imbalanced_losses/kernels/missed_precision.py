r"""The precision that the positives of each class miss: what Smooth-AP sums.

One interface, :func:`missed_precision`, which divides soft ranks; but for few positives, in eager mode on the CPU, it
takes pairs in blocks across the classes. Where a row is a positive of one class and a negative of a hundred, a loop
over classes is mostly overhead and ranks ``[C, 2, M]`` are mostly 0. Once a block's sums are there, so is its gradient.
"""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from imbalanced_losses.execution import has_tangent, reads_freely
from imbalanced_losses.kernels.pair_blocks import PairBlocks, pad_classes
from imbalanced_losses.kernels.soft_rank import full_precision, sigmoid_sums
from imbalanced_losses.precision import widest_dtype

__all__ = ["missed_precision"]

# Measured on 2 CPU cores, forward + backward in ms, by pairs / by ranks. Classes x rows, positives each: 10 x 200, 20:
# 0.7 / 1.6; 100 x 64, 5: 0.7 / 1.4; 10 x 4,096, 256: 22 / 24, 400: 32 / 24; 10 x 16,384, 256: 81 / 75; 100 x 2,048,
# 20: 6.4 / 32, 200: 64 / 90; 1 x 1,056, 105: 0.7 / 0.6; 1 x 1,500, 300: 1.5 / 3.4; 1 x 4,096, 20: 0.7 / 0.8,
# 128: 1.2 / 2.1; 1 x 16,384, 128: 6.9 / 12.6.
# One class of 95 % of the rows, the others share the rest: 10 x 2,048: 12 / 9.6; 100 x 4,096: 42 / 45.
FEW_POSITIVES = 250  # on average over the classes, if no class has many
ONE_CLASS_FROM = 1400  # rows


def missed_precision(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None = None,
    *,
    exclusive: bool = False,
) -> Tensor:
    r"""Weighted sum of ``1 - R^+ / R`` over the positives of each class.

    .. math:: y_c = \sum_{i \in P_c} w_{ci} \frac{R_{ci}^-}{1 + R_{ci}^+ + R_{ci}^-}, \qquad
        R_{ci}^\pm = \sum_{j \neq i} n_{cj}^\pm\, \sigma\big((s_{cj} - s_{ci}) / \tau\big)

    Parameters
    ----------
    scores : Tensor [C, M], float32 or float64
        What a class with a score that is not finite gets is of no use; others are not touched by it.
    positive, negative : Tensor [C, M], bool
        Disjoint.
    weight : Tensor [C, M]
        Of use at positives; carries no gradient.
    temperature : Tensor []
        Above 0; carries no gradient.
    counts : Tensor [C, 2, M], optional
        What each positive and each negative counts for in a rank, 0 elsewhere; 1 if left out.
    exclusive : bool
        Whether no row is a positive of several classes.

    Returns
    -------
    Tensor [C], in the widest dtype

    Notes
    -----
    Cost: see :func:`~imbalanced_losses.kernels.soft_rank.sigmoid_sums`, plus O(C M) memory.
    """
    inputs = scores, positive, negative, weight, temperature
    several = len(scores) > 1 or scores.shape[1] >= ONE_CLASS_FROM
    if counts is None and several and reads_freely(*inputs) and not has_tangent(scores):
        place, n_positives = positive.flatten().nonzero()[:, 0], positive.sum(1)
        pairs = len(place) * (scores.shape[1] + int(n_positives.max()))
        if pairs <= FEW_POSITIVES * scores.numel():
            return _MissedPrecision.apply(*inputs, place, n_positives)  # type: ignore[no-any-return, no-untyped-call]
    return _by_ranks(*inputs, counts, exclusive=exclusive)


def _by_ranks(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    counts: Tensor | None = None,
    *,
    exclusive: bool = False,
) -> Tensor:
    if counts is None:
        counts = torch.stack([positive, negative], 1).to(scores.dtype)
    sums = sigmoid_sums(scores, counts, temperature, asked=positive, exclusive=exclusive)
    above_positive, above_negative = sums.to(widest_dtype(sums.device)).unbind(1)
    # 1 - R^+/R would lose a small loss; the gradient by R^- cancels where R^- is most of R, hence the wider dtype
    return (above_negative / (above_negative + above_positive + 1) * weight).sum(-1)


@final
class _MissedPrecision(torch.autograd.Function):
    """By pairs. Keeps the gradient ``[C, M]``, which comes with the value at little cost."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, *rest: Tensor) -> Tensor:
        with full_precision(scores.device):
            missed, gradient = _by_pairs(scores, *rest, differentiate=ctx.needs_input_grad[0])
        ctx.save_for_backward(scores, *rest, gradient)
        return missed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, *rest, _, _, gradient = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return (grad.to(gradient.dtype).unsqueeze(-1) * gradient, *6 * (None,))
        # to be differentiated again, by the scores, too
        return *torch.autograd.grad(_by_ranks(scores, *rest), scores, grad, create_graph=True), *6 * (None,)


def _by_pairs(
    scores: Tensor,
    positive: Tensor,
    negative: Tensor,
    weight: Tensor,
    temperature: Tensor,
    place: Tensor,
    n_positives: Tensor,
    *,
    differentiate: bool,
) -> tuple[Tensor, Tensor | None]:
    """The missed precision ``[C]``, and the gradient of each class ``[C, M]`` by its scores.

    ``place [P]`` is where ``positive``, flat, is set, and ``n_positives [C]`` how often.
    """
    classes = place // scores.shape[1]
    scores = scores.nan_to_num().contiguous()  # in one block with others' scores, whose gradients nan would reach
    own, weight = (values.flatten().index_select(0, place) for values in (scores, weight))
    others, slot = pad_classes(own, classes, n_positives, int(n_positives.max()))
    scale = temperature.double() * math.log(2)
    among = PairBlocks(own, classes, others, scale, slot)
    against = PairBlocks(own, classes, torch.where(negative, scores, -torch.inf), scale)

    rank, above = among.sums() + 1, torch.empty_like(own)
    by_own, by_negatives, by_others = torch.zeros_like(own), torch.zeros_like(scores), torch.zeros_like(others)
    for rows, sigmoids, odds in against.blocks():
        torch.sum(sigmoids, 1, out=above[rows])
        if differentiate:
            pulls = weight[rows] * rank[rows] / (rank[rows] + above[rows]).square()
            against.pull(rows, sigmoids, odds, pulls, (by_own, by_negatives))
    wide = above.double()
    missed = wide / (wide + rank)  # 1 - R^+/R would lose a small loss
    total = missed.new_zeros(len(scores)).index_add_(0, classes, missed * weight)
    if not differentiate:
        return total, None
    centred = _centre(-missed * weight / (wide + rank), classes, n_positives).to(own.dtype)
    for rows, sigmoids, odds in among.blocks():
        among.pull(rows, sigmoids, odds, centred[rows], (by_own, by_others))
    by_negatives.view(-1)[place] = by_own + by_others[classes, slot]
    return total, by_negatives.div_(temperature)


def _centre(pulls: Tensor, classes: Tensor, n_positives: Tensor) -> Tensor:
    """Less their mean over each class, which the positives pull on each other to no effect but rounding."""
    mean = pulls.new_zeros(len(n_positives)).index_add_(0, classes, pulls) / n_positives
    return pulls - mean[classes]

r"""The precision that the positives of each class miss: what Smooth-AP sums.

One interface, :func:`missed_precision`, which divides soft ranks; but for few positives, in eager mode on the CPU, it
takes pairs in blocks across the classes. Where a row is a positive of one class and a negative of a hundred, a loop
over classes is mostly overhead and ranks ``[C, 2, M]`` are mostly 0. Once a block's sums are there, so is its gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from imbalanced_losses.execution import has_tangent, reads_freely
from imbalanced_losses.kernels.pairs import CHUNK_PAIRS
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


class _Pairs(NamedTuple):
    """Scores ``own [P]``, class by class, against those of their class in ``table [C, W]``; -inf is below any.

    ``skipped [P]``: a column that does not count. ``scale []`` is what differences are divided by, for powers of 2.
    """

    own: Tensor
    classes: Tensor
    table: Tensor
    scale: Tensor
    skipped: Tensor | None = None

    def blocks(self) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Rows, the sigmoids ``[rows, W]`` of their pairs, and ``(1 - sigmoid) / sigmoid``; the next overwrites them.

        The sigmoid's derivative is the latter times the square of the former, with all digits in both tails.
        """
        n_rows = min(len(self.own), max(1, CHUNK_PAIRS // max(1, self.table.shape[1])))
        limit = -math.log2(torch.finfo(self.own.dtype).tiny)
        # written over and over: fresh memory costs more than what is computed in it
        memory = self.own.new_empty(2, n_rows, self.table.shape[1])
        for start in range(0, len(self.own), max(1, n_rows)):
            rows = slice(start, min(start + n_rows, len(self.own)))
            odds, sigmoids = memory[:, : rows.stop - start].unbind()
            torch.index_select(self.table, 0, self.classes[rows], out=odds)
            torch.sub(self.own[rows, None], odds, out=odds).div_(self.scale)
            if self.skipped is not None:
                odds.scatter_(1, self.skipped[rows, None], torch.inf)
            # so that what does not count counts for the smallest normal number
            odds.clamp_(-limit, limit).exp2_()  # exp takes three times as long
            yield rows, torch.add(odds, 1, out=sigmoids).reciprocal_(), odds

    def sums(self) -> Tensor:
        """``[P]``: of the sigmoids."""
        sums = torch.empty_like(self.own)
        for rows, sigmoids, _ in self.blocks():
            torch.sum(sigmoids, 1, out=sums[rows])
        return sums

    def pull(self, rows: slice, sigmoids: Tensor, odds: Tensor, pulls: Tensor, out: tuple[Tensor, Tensor]) -> None:
        """Add the gradient of ``(pulls * sums[rows]).sum()``, times the temperature, by ``own`` and by ``table``."""
        by_own, by_table = out
        slopes = odds.mul_(sigmoids).mul_(sigmoids).mul_(pulls[:, None])
        by_own[rows].sub_(slopes.sum(1))
        by_table.index_add_(0, self.classes[rows], slopes)  # a matrix product takes three times as long


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
    slot = torch.arange(len(place), device=place.device) - (n_positives.cumsum(0) - n_positives)[classes]
    others = scores.new_full((len(scores), int(n_positives.max())), -torch.inf)
    others[classes, slot] = own
    scale = temperature.double() * math.log(2)
    among = _Pairs(own, classes, others, scale, slot)
    against = _Pairs(own, classes, torch.where(negative, scores, -torch.inf), scale)

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

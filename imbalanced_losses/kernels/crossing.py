"""Sums of sigmoids of some scores against some others: all that the pairwise pAUC needs of the soft ranks."""

from __future__ import annotations

import math
from typing import Any, final

import torch
from torch import Tensor

from imbalanced_losses.execution import has_tangent, reads_freely
from imbalanced_losses.kernels.pair_blocks import PairBlocks, pad_classes
from imbalanced_losses.kernels.pairs import CHUNK_PAIRS, wide_sigmoid
from imbalanced_losses.kernels.soft_rank import sigmoid_sums

__all__ = ["crossing_sums"]

# Measured on 2 CPU cores, one thread, forward + backward in ms, by pairs / by soft ranks. Problems x rows, pairs a row:
# 1 x 4,096, 150: 2.4 / 6.3; 1 x 16,384, 127: 5.7 / 14; 1 x 65,536, 49: 17 / 56, 99: 29 / 64, 199: 62 / 66; 10 x 2,048,
# 97: 12 / 18, 312: 29 / 21; 10 x 16,384, 63: 58 / 171, 127: 106 / 169, 255: 214 / 153; 100 x 2,048, 14: 20 / 37.
PAIRS_A_ROW = 160
# One problem, kept by autograd / by the Function: 525 pairs 0.20 / 0.35, 25,000: 0.29 / 0.43, 80,000: 0.60 / 0.70.
FEW_PAIRS = 1 << 16


def crossing_sums(
    scores: Tensor,
    asked: Tensor,
    counted: Tensor,
    temperature: Tensor,
    counts: Tensor | None = None,
    *,
    exclusive: bool = False,
) -> Tensor:
    r"""Soft count, for each row asked for, of the counted rows above it.

    .. math:: y_{ri} = \sum_{j \in \text{counted}_r} \sigma\big((s_{rj} - s_{ri}) / \tau_r\big)

    Parameters
    ----------
    scores : Tensor [R, M], float32 or float64, finite
    asked, counted : Tensor [R, M], bool
        Disjoint.
    temperature : Tensor [R]
        Above 0; carries no gradient.
    counts : Tensor [R, M], optional
        What each counted row counts for, 0 elsewhere; 1 if left out.
    exclusive : bool
        As in :func:`~imbalanced_losses.kernels.soft_rank.sigmoid_sums`.

    Returns
    -------
    Tensor [R, M], at least as wide as the scores
        0 where nothing is asked.

    Notes
    -----
    Cost: that of :func:`~imbalanced_losses.kernels.soft_rank.sigmoid_sums`; in eager mode on the CPU, where counts may
    be read, time in proportion to the pairs where that is less, in O(R M) memory and a workspace of bounded size.
    """
    if counts is None and reads_freely(scores, asked, counted, temperature) and not has_tangent(scores):
        rows, columns = asked.nonzero(), counted.nonzero()
        if len(scores) == 1 and len(rows) * len(columns) <= FEW_PAIRS:
            return _few_pairs(scores, rows[:, 1], columns[:, 1], temperature.detach())
        n_rows, n_columns = _per_problem(rows, len(scores)), _per_problem(columns, len(scores))
        width, pairs = torch.stack([n_columns.max(), n_rows @ n_columns]).tolist()
        if pairs <= PAIRS_A_ROW * scores.numel():
            inputs = scores, asked, counted, temperature.detach()
            return _Crossing.apply(*inputs, rows, columns, n_rows, n_columns, width)  # type: ignore[no-any-return, no-untyped-call]
    return _by_ranks(scores, asked, counted if counts is None else counts, temperature, exclusive=exclusive)


def _per_problem(found: Tensor, problems: int) -> Tensor:
    """How many ``[R]`` of the places ``[N, 2]`` are in each problem."""
    problem = found[:, 0]
    return problem.new_zeros(problems).index_add_(0, problem, torch.ones_like(problem))


def _by_ranks(scores: Tensor, asked: Tensor, counts: Tensor, temperature: Tensor, *, exclusive: bool = False) -> Tensor:
    weights = counts.to(scores.dtype)[:, None]
    return sigmoid_sums(scores, weights, temperature, asked=asked, exclusive=exclusive)[:, 0]


def _few_pairs(scores: Tensor, place: Tensor, others: Tensor, temperature: Tensor) -> Tensor:
    """One problem, as an expression that autograd keeps."""
    difference = scores.index_select(1, others) - scores.index_select(1, place).mT
    sums = wide_sigmoid(difference / temperature).sum(-1)
    return torch.zeros_like(scores, dtype=sums.dtype).index_copy(1, place, sums.unsqueeze(0))


@final
class _Crossing(torch.autograd.Function):
    """By pairs: those of one block are kept, those of more are computed anew in the backward."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, *rest: Any) -> Tensor:
        *constants, temperature, rows, columns, n_rows, n_columns, width = rest
        several = len(rows) * max(1, width) > CHUNK_PAIRS
        if several:
            rows = _widest_first(rows, n_rows, n_columns)
        (classes, place), (classes_of_others, others) = rows.unbind(1), columns.unbind(1)
        place, others = place.add(classes, alpha=scores.shape[1]), others.add(classes_of_others, alpha=scores.shape[1])
        flat = scores.flatten()
        table, slot = pad_classes(flat.index_select(0, others), classes_of_others, n_columns, width)
        scale = (temperature.double() * math.log(2)).to(scores.dtype)
        pairs = PairBlocks(flat.index_select(0, place), classes, table, scale, widths=n_columns if several else None)
        sums, slopes = (pairs.sums(), None) if several else pairs.sums_and_slopes()
        ctx.save_for_backward(scores, *constants, temperature, place, others, classes_of_others, slot, slopes, *pairs)
        return torch.zeros_like(flat).index_copy_(0, place, sums).view_as(scores)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scores, asked, counted, temperature, place, others, classes_of_others, slot, slopes, *pairs = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again, by the scores, too
            sums = _by_ranks(scores, asked, counted, temperature)
            return *torch.autograd.grad(sums, scores, grad, create_graph=True), *8 * (None,)
        pairs = PairBlocks(*pairs)
        pulls = grad.reshape(-1).index_select(0, place) / temperature.index_select(0, pairs.classes)
        by_own, by_table = pairs.pull_all(pulls, slopes)
        gradient = torch.zeros_like(scores).flatten().index_copy(0, place, by_own)
        gradient = gradient.index_copy(0, others, by_table[classes_of_others, slot])
        return gradient.view_as(scores), *8 * (None,)


def _widest_first(rows: Tensor, n_rows: Tensor, n_columns: Tensor) -> Tensor:
    """The problems with the most pairs a row first."""
    problems = torch.split(rows, n_rows.tolist())
    return torch.cat([problems[k] for k in n_columns.argsort(descending=True).tolist()])

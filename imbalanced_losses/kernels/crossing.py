"""Sums of sigmoids of some scores against some others: all that the pairwise pAUC needs of the soft ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.execution import reads_freely
from imbalanced_losses.kernels.pairs import wide_sigmoid
from imbalanced_losses.kernels.soft_rank import sigmoid_sums

__all__ = ["crossing_sums"]

# Bounds the memory by some 160 bytes a row. In time it would pay for longer: measured on 2 CPU cores, in ms forward +
# backward by pairs / by soft ranks, 128 pairs a row: 10 x 2,048 rows 36 / 48, 1 x 16,384 rows 17 / 25.
FEW_PAIRS_A_ROW = 8


def crossing_sums(
    scores: Tensor, asked: Tensor, counted: Tensor, temperature: Tensor, *, exclusive: bool = False
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
    exclusive : bool
        As in :func:`~imbalanced_losses.kernels.soft_rank.sigmoid_sums`.

    Returns
    -------
    Tensor [R, M], at least as wide as the scores
        0 where nothing is asked. Cost: that of :func:`~imbalanced_losses.kernels.soft_rank.sigmoid_sums`, or in eager
        mode on the CPU, where counts may be read, O(R M) if there are few pairs.
    """
    if reads_freely(scores, asked, counted, temperature):
        temperature = temperature.detach()
        if len(scores) == 1:
            place, others = asked.nonzero()[:, 1], counted.nonzero()[:, 1]
            if len(place) * len(others) <= FEW_PAIRS_A_ROW * asked.numel():
                return _one_problem(scores, place, others, temperature)
        else:
            width = int(counted.sum(-1).max())
            if width * int(asked.sum()) <= FEW_PAIRS_A_ROW * asked.numel():
                return _padded_problems(scores, asked, counted, temperature, width)
    weights = counted.to(scores.dtype)
    return sigmoid_sums(scores, weights[:, None], temperature, asked=asked, exclusive=exclusive)[:, 0]


def _one_problem(scores: Tensor, place: Tensor, others: Tensor, temperature: Tensor) -> Tensor:
    difference = scores.index_select(1, others) - scores.index_select(1, place).mT
    sums = wide_sigmoid(difference / temperature).sum(-1)
    return torch.zeros_like(scores, dtype=sums.dtype).index_copy(1, place, sums.unsqueeze(0))


def _padded_problems(scores: Tensor, asked: Tensor, counted: Tensor, temperature: Tensor, width: int) -> Tensor:
    """Rows asked for [P] against their problem's counted rows, padded to the same number of them."""
    others = counted.to(torch.uint8).topk(width, -1).indices
    weights = counted.gather(-1, others).to(scores.dtype)
    place = asked.flatten().nonzero()[:, 0]
    problem = place // asked.shape[1]
    difference = scores.gather(-1, others).index_select(0, problem) - scores.flatten().index_select(0, place)[:, None]
    pairs = wide_sigmoid(difference / temperature.index_select(0, problem)[:, None])
    sums = (pairs * weights.index_select(0, problem)).sum(-1)
    return torch.zeros_like(scores, dtype=sums.dtype).flatten().index_copy(0, place, sums).view_as(scores)

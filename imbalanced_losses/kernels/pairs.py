"""Sums of sigmoids over pairs of scores, pair by pair in blocks of bounded size: exact, quadratic, few operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imbalanced_losses.precision import widest_dtype

__all__ = [
    "PairSums",
    "all_pairs",
    "asked_pairs",
    "few_pairs",
    "few_pairs_gradient",
    "sigmoid_derivative",
    "tail_sigmoid",
    "wide_sigmoid",
]

PairSums = tuple[Tensor, Tensor]
"""``above [R, K, M]`` and ``pulled [R, L, M]``, see :mod:`imbalanced_losses.kernels.soft_rank`."""

# Pairs of scores held at a time: 2 MB of float32, about a core's share of the cache.
CHUNK_PAIRS = 1 << 19


def wide_sigmoid(x: Tensor) -> Tensor:
    """The sigmoid in float64, where there is one, for autograd: ``y (1 - y)`` keeps its digits to 30 from the middle.

    In float32 it loses them from 8 on, and is 0 from 17 on: where a positive is missed most.
    """
    return x.to(widest_dtype(x.device)).sigmoid()


def tail_sigmoid(x: Tensor) -> Tensor:
    """The sigmoid with a derivative by autograd that keeps its digits anywhere; costs nothing in compiled code.

    Clamped, as compiled code is slow where a sigmoid underflows.
    """
    above = x > 0
    tail = torch.sigmoid(torch.where(above, -x, x).clamp_min(-87))
    return torch.where(above, 1 - tail, tail)


def sigmoid_derivative(x: Tensor, order: int) -> Tensor:
    """The n-th derivative of the sigmoid, accurate in both tails; overwrites ``x``.

    A sigmoid stops at the smallest normal number: on a CPU it takes twice as long where it underflows.
    """
    limit = math.floor(-math.log(torch.finfo(x.dtype).tiny))
    if order == 0:
        return x.clamp_(-limit, limit).sigmoid_()
    sign = torch.sign(x) if order == 2 else None
    tail = x.abs_().neg_().clamp_min_(-limit).sigmoid_()
    if order == 1:
        return tail.addcmul_(tail, tail, value=-1)
    bell = tail * (1 - tail)
    if sign is not None:
        return bell.mul_(tail.mul_(2).sub_(1)).mul_(sign)
    if order == 3:
        return bell * (1 - 6 * bell)
    raise NotImplementedError(f"soft ranks can be differentiated three times in eager mode, this is time {order}")


def all_pairs(scores: Tensor, weights: Tensor, pulls: Tensor, temperature: Tensor, order: int) -> PairSums:
    """Every row against every other: static shapes, one matrix product a block."""
    r, m = scores.shape
    rows = max(1, CHUNK_PAIRS // max(1, r * m))
    # written in place: small results between large temporaries fragment the heap
    above, pulled = torch.empty_like(weights), torch.zeros_like(pulls)
    for start in range(0, m, rows):
        block = slice(start, start + rows)
        pairs = scores[:, None, :] - scores[:, block, None]
        pairs = sigmoid_derivative(pairs.div_(temperature[:, None, None]), order)
        pairs.diagonal(start, 1, 2).zero_()
        torch.matmul(weights, pairs.mT, out=above[..., block])
        if pulls.shape[1]:
            pulled.baddbmm_(pulls[..., block], pairs)
    return above, pulled


def asked_pairs(
    scores: Tensor, weights: Tensor, pulls: Tensor, temperature: Tensor, order: int, asked: Tensor
) -> PairSums:
    """Only the rows ``asked [P, 2]``, problem and position in ascending order, against every other of their problem.

    The rest of ``above`` is 0. Reads ``asked``.
    """
    r, m = scores.shape
    above, pulled = torch.zeros_like(weights), torch.zeros_like(pulls)
    problem, position = asked.unbind(1)
    counts = problem.bincount(minlength=r).tolist() if r > 1 else [len(asked)]
    # written over and over: fresh memory costs more than what is computed in it
    block = scores.new_empty(min(max(counts), max(1, CHUNK_PAIRS // m)), m)
    for k, positions in enumerate(torch.split(position, counts)):
        own_scores, own_temperature, own_weights = scores[k], temperature[k], weights[k]
        for part in torch.split(positions, len(block)) if len(positions) else ():
            pairs = torch.sub(own_scores, own_scores.index_select(0, part).unsqueeze(1), out=block[: len(part)])
            pairs = sigmoid_derivative(pairs.div_(own_temperature), order)
            pairs.scatter_(1, part.unsqueeze(1), 0)
            above[k].index_copy_(1, part, own_weights @ pairs.mT)
            if pulls.shape[1]:
                pulled[k].addmm_(pulls[k].index_select(1, part), pairs)
    return above, pulled


def few_pairs(scores: Tensor, weights: Tensor, temperature: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """``above [1, K, M]`` of one problem and the positions ``place [P]``; the derivative of each pair's sigmoid [P, M].

    That is the product of two tails, each of which keeps its digits.
    """
    x = (scores - scores.index_select(1, place).mT).div_(temperature)
    pairs = x.scatter_(1, place.unsqueeze(1), -torch.inf).sigmoid()
    above = torch.zeros_like(weights).index_copy_(2, place, (weights[0] @ pairs.mT).unsqueeze(0))
    return above, x.neg_().sigmoid_().mul_(pairs)


def few_pairs_gradient(grad: Tensor, weights: Tensor, temperature: Tensor, place: Tensor, slopes: Tensor) -> Tensor:
    """The gradient ``[1, M]`` by the scores, given that by ``above``."""
    pulls = (grad[0].index_select(1, place).mT @ weights[0]) * slopes
    return pulls.sum(0, keepdim=True).index_add(1, place, pulls.sum(1).neg().unsqueeze(0)) / temperature

"""Sums of sigmoids over pairs of scores, pair by pair in blocks of bounded size: exact, quadratic, few operators."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["PairSums", "all_pairs", "asked_pairs", "sigmoid_derivative"]

PairSums = tuple[Tensor, Tensor]
"""``above [R, K, M]`` and ``pulled [R, L, M]``, see :mod:`imbalanced_losses.kernels.soft_rank`."""

# Pairs of scores held at a time: 2 MB of float32, about a core's share of the cache.
CHUNK_PAIRS = 1 << 19


def sigmoid_derivative(x: Tensor, order: int) -> Tensor:
    """The n-th derivative of the sigmoid, accurate in both tails; overwrites ``x``."""
    if order == 0:
        return x.sigmoid_()
    sign = torch.sign(x) if order == 2 else None
    tail = x.abs_().neg_().sigmoid_()
    bell = tail * (1 - tail)
    if order == 1:
        return bell
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
    """Only the rows ``asked [P, 2]``, problem and position, against every other; the rest of ``above`` is 0."""
    r, m = scores.shape
    rows = max(1, CHUNK_PAIRS // m)
    above, pulled = torch.zeros_like(weights), torch.zeros_like(pulls)
    for start in range(0, len(asked), rows):
        problem, position = asked[start : start + rows].unbind(1)
        number = torch.arange(len(position), device=position.device)
        pairs = scores.index_select(0, problem) - scores[problem, position, None]
        pairs = sigmoid_derivative(pairs.div_(temperature[problem, None]), order)
        pairs[number, position] = 0
        # one product with the weights of all problems is faster than a small product for each row
        sums = pairs @ weights.flatten(0, 1).mT
        above[problem, :, position] = sums.reshape(len(number), r, -1)[number, problem]
        own_pulls = pulls.new_zeros(len(number), r, pulls.shape[1])
        own_pulls[number, problem] = pulls[problem, :, position]
        pulled += (own_pulls.flatten(1).mT @ pairs).reshape(pulled.shape)
    return above, pulled

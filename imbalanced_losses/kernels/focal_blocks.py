"""The sigmoid focal loss and its gradient by blocks, in one workspace that fits the cache.

Some twenty intermediate results of all logits would neither fit the cache nor be free to allocate. What overwrites them
can be neither differentiated nor mapped; ``focal.py`` has the expressions that can.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["lowest_base", "sigmoid_focal_blocks"]

BLOCK_SIZE = 1 << 17
"""Logits at a time per thread: more leave the cache, fewer do not hide the cost of a call."""

N_BUFFERS = 5


def sigmoid_focal_blocks(
    grad: Tensor | None,
    logits: Tensor,
    targets: Tensor,
    balance: float,
    gamma: float,
    ignore_index: int | None,
    dtype: torch.dtype,
) -> Tensor:
    """The loss per element in ``dtype`` or, given the gradient by it, the gradient by the logits in theirs."""
    result = torch.empty(logits.shape, dtype=dtype if grad is None else logits.dtype, device=logits.device)
    size = min(logits.numel(), BLOCK_SIZE * torch.get_num_threads()) if logits.device.type == "cpu" else logits.numel()
    workspace = torch.empty(N_BUFFERS, size, dtype=dtype, device=logits.device)
    inputs = [result.view(-1), logits.reshape(-1), targets.reshape(-1), *([] if grad is None else [grad.reshape(-1)])]
    for out, z, y, *pulled in zip(*(torch.split(tensor, max(1, size)) for tensor in inputs), strict=True):
        buffers = workspace[:, : len(out)].unbind(0)
        z, y = z.to(dtype), y.to(dtype)
        if ignore_index is not None:
            ignored = y == ignore_index
            z, y = z.masked_fill(ignored, 0), y.masked_fill(ignored, 0)
        block = _loss(buffers, z, y, gamma) if not pulled else _derivative(buffers, z, y, gamma).mul_(pulled[0])
        if balance != -1:
            block.mul_(torch.mul(y, 2 * balance - 1, out=buffers[1]).add_(1 - balance))
        out.copy_(block if ignore_index is None else block.masked_fill_(ignored, 0))
    return result


def _loss(buffers: tuple[Tensor, ...], z: Tensor, y: Tensor, gamma: float) -> Tensor:
    _, _, miss, cross_entropy = _terms(buffers, z, y)
    if low := lowest_base(gamma, miss.dtype):
        miss.clamp_min_(low)
    return miss.pow_(gamma).mul_(cross_entropy)


def _derivative(buffers: tuple[Tensor, ...], z: Tensor, y: Tensor, gamma: float) -> Tensor:
    p, q, miss, cross_entropy = _terms(buffers, z, y)
    by_miss = torch.mul(p, q, out=buffers[4]).mul_(cross_entropy)
    by_miss.mul_(torch.mul(y, -2, out=cross_entropy).add_(1))
    if low := lowest_base(gamma - 1, miss.dtype):
        miss.clamp_min_(low)
    slope = torch.lerp(p, q.neg_(), y, out=p).mul_(miss).add_(by_miss, alpha=gamma)
    return slope if gamma == 1 else slope.mul_(miss if gamma == 2 else miss.pow_(gamma - 1))


def _terms(buffers: tuple[Tensor, ...], z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities of the labels 1 and 0, ``1 - p_t`` and the cross-entropy.

    Labels weigh terms of one sign each, so that no digit of a small one is lost.
    """
    p, q, miss, cross_entropy, scratch = buffers
    torch.sigmoid(z, out=p)
    torch.sigmoid(torch.neg(z, out=scratch), out=q)
    torch.lerp(p, q, y, out=miss)
    torch.lerp(torch.clamp_min(z, 0, out=cross_entropy), scratch.clamp_min_(0), y, out=cross_entropy)
    cross_entropy.sub_(torch.minimum(p, q, out=scratch).neg_().log1p_())
    return p, q, miss, cross_entropy


def lowest_base(gamma: float, dtype: torch.dtype) -> float:
    """The least base that leaves ``base^gamma`` two finite derivatives; 0 where any does."""
    return 0.0 if gamma in (0, 1) or gamma >= 2 else torch.finfo(dtype).tiny ** 0.5

"""The focal losses and their gradients by blocks that fit the cache, in steps that overwrite each other.

Intermediate results of all logits would neither fit the cache nor be free to allocate. What overwrites them can be
neither differentiated nor mapped; ``focal.py`` has the expressions that can.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "HardSigmoid",
    "ModerateSoftmax",
    "by_blocks",
    "hard_sigmoid",
    "lowest_base",
    "moderate_softmax",
    "sigmoid_focal_block",
]


FEW_POWERS = 1 << 12
"""Up to so many, one call of ``exp`` costs less than the two that ``exp2`` takes; of more, twice as much."""

LARGEST_LOGIT = 30.0
"""In absolute value, up to which no sum, product or quotient of two exponentials leaves float32."""


def by_blocks(function: Callable[..., Tensor], size: int, dtype: torch.dtype, like: Tensor, *rows: Tensor) -> Tensor:
    """``function(*rows)`` in ``dtype`` and the shape of ``like``, of as many rows as have ``size`` logits per thread.

    ``rows[0]`` are the logits.
    """
    size *= torch.get_num_threads()
    if rows[0].device.type != "cpu" or rows[0].numel() <= size:
        return function(*rows).to(dtype)
    size = max(1, size // rows[0].shape[1:].numel())
    result = torch.empty_like(like, dtype=dtype)
    for part, *block in zip(*(torch.split(tensor, size) for tensor in (result, *rows)), strict=True):
        part.copy_(function(*block))
    return result


class HardSigmoid(NamedTuple):
    """What the sigmoid focal loss of labels 0 and 1 and its gradient are made of, all of one shape."""

    miss: Tensor  # 1 - p_t
    cross_entropy: Tensor
    weight: Tensor  # miss^gamma alpha_t, negative where the label is 1
    gamma: float
    ignored: None = None  # these are for losses that ignore nothing

    def loss(self) -> Tensor:
        """The loss per element."""
        return self.weight.abs().mul_(self.cross_entropy)

    def gradient(self, grad: Tensor) -> Tensor:
        """The gradient by the logits, given that by the loss."""
        slope = torch.addcmul(self.cross_entropy, self.miss, self.cross_entropy, value=-1)
        return torch.add(self.miss, slope, alpha=self.gamma).mul_(self.weight).mul_(grad)


def hard_sigmoid(z: Tensor, y: Tensor, balance: float, gamma: float) -> HardSigmoid | None:
    """The terms for logits and labels of one dtype, in half the steps of other labels; None if one is not 0 or 1.

    It reads the labels.
    """
    if (y * y).sub_(y).sum().item() != 0:  # of labels in [0, 1] no term is above 0
        return None
    x = torch.addcmul(z, y, z, value=-2)  # nan of infinite logits of either sign
    cross_entropy = torch.nn.functional.softplus(x, threshold=40)
    miss = x.sigmoid_()
    weight = torch.rsub(y, 1, alpha=2) if balance == -1 else torch.rsub(y, 1 - balance)
    return HardSigmoid(miss, cross_entropy, miss.pow(gamma).mul_(weight), gamma)


def sigmoid_focal_block(z: Tensor, y: Tensor, grad: Tensor | None, balance: float, gamma: float) -> Tensor:
    """The loss per element or, given the gradient by it, the gradient by the logits; for any labels."""
    block = _loss(z, y, gamma) if grad is None else _derivative(z, y, gamma).mul_(grad)
    return block if balance == -1 else block.mul_(torch.mul(y, 2 * balance - 1).add_(1 - balance))


def _loss(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    _, _, miss, cross_entropy = _terms(z, y)
    if low := lowest_base(gamma, miss.dtype):
        miss.clamp_min_(low)
    return miss.pow_(gamma).mul_(cross_entropy)


def _derivative(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    p, q, miss, cross_entropy = _terms(z, y)
    by_miss = (p * q).mul_(cross_entropy)
    by_miss.mul_(torch.mul(y, -2, out=cross_entropy).add_(1))
    if low := lowest_base(gamma - 1, miss.dtype):
        miss.clamp_min_(low)
    slope = torch.lerp(p, q.neg_(), y, out=p).mul_(miss).add_(by_miss, alpha=gamma)
    return slope if gamma == 1 else slope.mul_(miss if gamma == 2 else miss.pow_(gamma - 1))


def _terms(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Probabilities of the labels 1 and 0, ``1 - p_t`` and the cross-entropy.

    Labels weigh terms of one sign each, so that no digit of a small one is lost.
    """
    negated = -z
    p, q = z.sigmoid(), negated.sigmoid()
    miss = torch.lerp(p, q, y)
    cross_entropy = z.clamp_min(0)
    torch.lerp(cross_entropy, negated.clamp_min_(0), y, out=cross_entropy)
    cross_entropy.sub_(torch.minimum(p, q, out=negated).neg_().log1p_())
    return p, q, miss, cross_entropy


def lowest_base(gamma: float, dtype: torch.dtype) -> float:
    """The least base that leaves ``base^gamma`` two finite derivatives; 0 where any does."""
    return 0.0 if gamma in (0, 1) or gamma >= 2 else torch.finfo(dtype).tiny ** 0.5


class ModerateSoftmax(NamedTuple):
    """What the softmax focal loss of moderate logits ``[N, C, ...]`` and its gradient are made of.

    All but ``others [N, C, ...]`` and ``ignored [N, ...]`` are ``[N, 1, ...]``.
    """

    ignored: Tensor | None  # None if none is
    own_class: Tensor  # the target, or 0 where ignored
    others: Tensor  # the other classes' exp(z)
    rest: Tensor  # their sum
    total: Tensor  # that of all classes
    odds: Tensor  # against the target: rest / exp(z_y)
    cross_entropy: Tensor
    focus: Tensor  # (1 - p_y)^gamma and the target's weight
    gamma: float

    def loss(self) -> Tensor:
        """The loss per position ``[N, ...]``."""
        loss = (self.focus * self.cross_entropy).squeeze(1)
        return loss if self.ignored is None else loss.masked_fill_(self.ignored, 0)

    def gradient(self, grad: Tensor) -> Tensor:
        """The gradient by the logits ``[N, C, ...]``, given that by the loss."""
        by_others = torch.addcmul(self.focus, self.focus, self.cross_entropy / self.odds, value=self.gamma)
        by_others.div_(self.total).squeeze(1).mul_(grad)
        if self.ignored is not None:
            by_others.squeeze(1).masked_fill_(self.ignored, 0)
        return self.others.scatter_(1, self.own_class, self.rest.neg()) * by_others


def moderate_softmax(
    z: Tensor, targets: Tensor, alpha: Tensor | None, gamma: float, ignore_index: int
) -> ModerateSoftmax | None:
    """The terms in the fewest passes over the logits, without their maxima; None if ``exp`` needs those.

    It reads the logits and the targets.
    """
    if z.shape[1] == 1 or z.numel() == 0:
        return None
    own_class, ignored = targets.long(), None
    if (own_class == ignore_index).any().item():
        ignored = own_class == ignore_index
        own_class = own_class.masked_fill(ignored, 0)
    largest = _largest(z)
    if not math.isfinite(largest):
        z = _with_broken_rows(z, ignored)
        largest = _largest(z.nan_to_num())
    if largest > LARGEST_LOGIT:
        return None
    own_class = own_class.unsqueeze(1)
    others = z.exp() if z.numel() <= FEW_POWERS else (z * math.log2(math.e)).exp2_()
    own = others.gather(1, own_class)
    others.scatter_(1, own_class, torch.zeros_like(own))  # by zeros, twice as fast as by 0
    rest = others.sum(1, keepdim=True)
    odds, total = rest / own, rest + own
    focus = (rest / total).pow_(gamma)
    if alpha is not None:
        focus.mul_(alpha[own_class])
    return ModerateSoftmax(ignored, own_class, others, rest, total, odds, odds.log1p(), focus, gamma)


def _largest(z: Tensor) -> float:
    lowest, highest = torch.aminmax(z)
    return max(highest.item(), -lowest.item())


def _with_broken_rows(z: Tensor, ignored: Tensor | None) -> Tensor:
    """Logits that are nan at every position where one is not finite, and 0 where that is ignored."""
    z = z + (z.amin(1, keepdim=True) * 0 + z.amax(1, keepdim=True) * 0)
    return z if ignored is None else z.masked_fill(ignored.unsqueeze(1), 0)

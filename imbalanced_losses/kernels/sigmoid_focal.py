"""The sigmoid focal loss per element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values, may_run_in_place
from imbalanced_losses.dtypes import compute_dtype, label_slack
from imbalanced_losses.kernels.focal import Focal, by_blocks, floored, lowest_base, softplus
from imbalanced_losses.kernels.tuning import SIGMOID_BLOCK

__all__ = ["SigmoidFocal"]


class _SigmoidTerms(NamedTuple):
    sign: Tensor  # 1 for labels up to 1/2, else -1
    p_wrong: Tensor  # probability of the class farther from the label
    error: Tensor  # sign * (p - y)
    cross_entropy: Tensor
    weight: Tensor | float  # alpha_t


@final
@dataclass(frozen=True, eq=False)  # Dynamo of torch 2.8 hashes it before its fields are set
class SigmoidFocal(Focal):
    """``alpha_t |y - p|^gamma CE`` for logits of any shape and labels in [0, 1].

    Formulated with the probability of the wrong class, a small loss keeps full precision. A label that rounding moved
    out of [0, 1] counts as 0 or 1.
    """

    balance: float
    """``alpha``; -1 switches it off."""
    gamma: float
    ignore_index: int | None

    def counted(self, targets: Tensor) -> Tensor | None:
        """Return the mask of elements that are not ignored; None if there is no ignore index."""
        # converted, because in uint8 156 == -100
        return None if self.ignore_index is None else targets.to(compute_dtype(targets)) != self.ignore_index

    def _fused_terms(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> _BinaryLabelTerms | None:
        dtype = compute_dtype(logits)
        if self.ignore_index is not None:
            return None
        return _binary_label_terms(logits.to(dtype), targets.to(dtype), self.balance, self.gamma)

    def _fused(self, grad: Tensor | None, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        dtype, reads = compute_dtype(logits), may_branch_on_values(logits, targets)

        def of_block(z: Tensor, y: Tensor, grad: Tensor | None = None) -> Tensor:
            slack = label_slack(y.dtype)
            ignored = None if (counted := self.counted(y)) is None else ~counted
            z, y = z.to(dtype), y.to(dtype)
            if ignored is not None:
                z, y = z.masked_fill(ignored, 0), y.masked_fill(ignored, 0)
            terms = _binary_label_terms(z, y, self.balance, self.gamma) if reads else None
            if terms is None:
                y = y if reads and _in_bounds(y) else _unrounded(y, slack)
                block = _soft_block(z, y, grad, self.balance, self.gamma)
            else:
                block = terms.loss() if grad is None else terms.gradient(grad)
            return block if ignored is None else block.masked_fill_(ignored, 0)

        rows = [tensor.reshape(-1) for tensor in (logits, targets, *([] if grad is None else [grad]))]
        return by_blocks(of_block, SIGMOID_BLOCK, dtype if grad is None else logits.dtype, rows[0], *rows).view(
            logits.shape
        )

    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        terms = self._terms(logits, targets)
        loss = _power(terms.error, self.gamma) * terms.cross_entropy
        return self._unless_ignored(loss if self.balance == -1 else loss * terms.weight, targets)

    def _vjp(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        sign, p_wrong, error, cross_entropy, weight = self._terms(logits, targets)
        by_error = p_wrong * (1 - p_wrong) * cross_entropy
        if self.gamma >= 2:
            slope = error * _power(error, self.gamma - 2) * torch.add(error * error, by_error, alpha=self.gamma)
        else:
            size = floored(error.abs(), self.gamma - 1)
            slope = size.pow(self.gamma - 1) * torch.add(size * error, error.sign() * by_error, alpha=self.gamma)
        return self._unless_ignored(grad * sign * weight * slope, targets)

    def _jvp(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        return self._vjp(tangent, logits, targets, alpha)  # the Jacobian is diagonal

    def _terms(self, logits: Tensor, targets: Tensor) -> _SigmoidTerms:
        dtype = compute_dtype(logits)
        z = self._unless_ignored(logits.to(dtype), targets)
        half = 0.5 - _unrounded(self._unless_ignored(targets.to(dtype), targets), label_slack(targets.dtype))
        sign = half.new_ones(()).copysign(half)
        ambiguity = 0.5 - sign * half
        if not may_run_in_place(logits):  # so that autograd's gradient is not finite where the loss is not
            sign = sign.add(z.detach(), alpha=0)
        x = sign * z
        p_wrong = x.sigmoid()
        cross_entropy = torch.addcmul(softplus(x), ambiguity, x, value=-1)
        weight = 1.0 if self.balance == -1 else (1 - 2 * self.balance) * half + 0.5
        return _SigmoidTerms(sign, p_wrong, p_wrong - ambiguity, cross_entropy, weight)

    def _unless_ignored(self, value: Tensor, targets: Tensor) -> Tensor:
        counted = self.counted(targets)
        return value if counted is None else torch.where(counted, value, 0)


class _BinaryLabelTerms(NamedTuple):
    """Intermediate results of the sigmoid focal loss for labels 0 and 1, all of one shape."""

    miss: Tensor  # 1 - p_t
    cross_entropy: Tensor
    weight: Tensor  # miss^gamma alpha_t, negative where the label is 1
    gamma: float
    ignored: None = None  # used only without an ignore index

    def loss(self) -> Tensor:
        """Return the loss per element."""
        return self.weight.abs().mul_(self.cross_entropy)

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient with respect to the logits, given that with respect to the loss."""
        slope = torch.addcmul(self.cross_entropy, self.miss, self.cross_entropy, value=-1)
        return torch.add(self.miss, slope, alpha=self.gamma).mul_(self.weight).mul_(grad)


def _binary_label_terms(z: Tensor, y: Tensor, balance: float, gamma: float) -> _BinaryLabelTerms | None:
    """Compute the terms for logits and labels of one dtype, or return None if a label is not 0 or 1.

    This takes half the steps of other labels. It reads the labels.
    """
    if (y * y).sub_(y).sum().item() != 0:  # for labels in [0, 1] no term is positive
        return None
    x = torch.addcmul(z, y, z, value=-2)  # nan for infinite logits of either sign
    cross_entropy = softplus(x)
    miss = x.sigmoid_()
    weight = torch.rsub(y, 1, alpha=2) if balance == -1 else torch.rsub(y, 1 - balance)
    return _BinaryLabelTerms(miss, cross_entropy, miss.pow(gamma).mul_(weight), gamma)


def _power(error: Tensor, gamma: float) -> Tensor:
    """Return ``|error|^gamma``, whose second derivative at 0 is right from 2 on; below it is 0 there."""
    size = error.abs()
    if gamma < 2:
        return floored(size, gamma).pow(gamma)
    return error.square() * floored(size, gamma - 2).pow(gamma - 2)


def _in_bounds(y: Tensor) -> bool:
    """Whether all labels are in [0, 1]; one step instead of the four of :func:`_unrounded`. It reads the labels."""
    lowest, highest = torch.aminmax(y)
    return lowest.item() >= 0 and highest.item() <= 1


def _unrounded(y: Tensor, slack: float) -> Tensor:
    """Replace labels less than ``slack`` outside [0, 1] by 0 or 1; leave all others unchanged."""
    if slack == 0:
        return y
    bounded = y.clamp(0, 1)
    return bounded + torch.nn.functional.hardshrink(y - bounded, slack)


def _soft_block(z: Tensor, y: Tensor, grad: Tensor | None, balance: float, gamma: float) -> Tensor:
    """Return the loss per element or, given ``grad``, the gradient of the logits; for any labels."""
    block = _loss(z, y, gamma) if grad is None else _derivative(z, y, gamma).mul_(grad)
    return block if balance == -1 else block.mul_(torch.mul(y, 2 * balance - 1).add_(1 - balance))


def _loss(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    _, _, error, cross_entropy = _terms(z, y)
    size = error.abs_()
    if low := lowest_base(gamma, size.dtype):
        size.clamp_min_(low)
    return size.pow_(gamma).mul_(cross_entropy)


def _derivative(z: Tensor, y: Tensor, gamma: float) -> Tensor:
    p, q, error, cross_entropy = _terms(z, y)
    by_size = p.mul_(q).mul_(cross_entropy).mul_(torch.sign(error, out=q))
    size = torch.abs(error, out=cross_entropy)
    if low := lowest_base(gamma - 1, size.dtype):
        size.clamp_min_(low)
    slope = error.mul_(size).add_(by_size, alpha=gamma)
    return slope if gamma == 1 else slope.mul_(size if gamma == 2 else size.pow_(gamma - 1))


def _terms(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the probabilities of the labels 1 and 0, ``p - y`` and the cross-entropy.

    Labels interpolate between the terms of 0 and 1, so that small results keep full precision.
    """
    negated = -z
    p, q = z.sigmoid(), negated.sigmoid()
    error = torch.lerp(p, -q, y)
    cross_entropy = z.clamp_min(0)
    torch.lerp(cross_entropy, negated.clamp_min_(0), y, out=cross_entropy)
    cross_entropy.sub_(torch.minimum(p, q, out=negated).neg_().log1p_())
    return p, q, error, cross_entropy

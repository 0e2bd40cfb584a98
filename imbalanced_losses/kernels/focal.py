"""Focal losses per element, and their derivatives in closed form.

In eager mode an ``autograd.Function`` keeps the inputs only and computes the rest anew in the backward. Under
``torch.compile`` the loss is one plain expression, which the compiler fuses and differentiates itself.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

__all__ = ["Focal", "SigmoidFocal", "SoftmaxFocal", "precise_dtype"]

# Logits per thread that are worked on at a time on the CPU, where some twenty intermediate results of all of them would
# not fit the cache. Enough of them hide the cost of a call.
BLOCK_SIZE = 1 << 17


def precise_dtype(logits: Tensor) -> torch.dtype:
    """The dtype of all arithmetic and of the loss: float32, or float64 for float64 logits."""
    return torch.promote_types(logits.dtype, torch.float32)


class Focal(ABC):
    """A loss per element and its derivative, each a plain and differentiable function of the inputs."""

    @final
    def __call__(self, logits: Tensor, targets: Tensor, alpha: Tensor | None = None) -> Tensor:
        """The loss per element, differentiable by the logits (twice in eager mode); 0 where ignored."""
        if torch.compiler.is_compiling():  # which does not know a Function's jvp and vmap
            return self._value(logits, targets, alpha)
        return _ClosedForm.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]

    @abstractmethod
    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The loss per element; 0 where ignored."""

    @abstractmethod
    def _pullback(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The gradient of ``sum(grad * loss)``."""

    @abstractmethod
    def _pushforward(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The derivative of the loss in the direction ``tangent``."""


@final
class _ClosedForm(torch.autograd.Function):
    """The loss per element, with a graph that keeps no intermediate result."""

    generate_vmap_rule = True

    @staticmethod
    def forward(focal: Focal, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        return _by_blocks(focal._value, logits, targets, alpha=alpha)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.focal, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, alpha = ctx.saved_tensors
        gradient = _by_blocks(ctx.focal._pullback, grad, logits, targets, alpha=alpha)
        return None, gradient.to(logits.dtype), None, None

    @staticmethod
    def jvp(ctx: Any, _focal: None, tangent: Tensor, *_constants: None) -> Tensor:
        return ctx.focal._pushforward(tangent, *ctx.saved_tensors)  # type: ignore[no-any-return]


def _by_blocks(function: Callable[..., Tensor], *rows: Tensor, alpha: Tensor | None) -> Tensor:
    """``function(*rows, alpha)``, on the CPU by as many rows at a time as fit ``BLOCK_SIZE``."""
    shape, device = rows[-2].shape, rows[-2].device
    size = BLOCK_SIZE * torch.get_num_threads() // max(1, shape[1:].numel())
    if device.type != "cpu" or not shape or not 0 < size < shape[0]:
        return function(*rows, alpha)
    blocks = zip(*(torch.split(tensor, size) for tensor in rows), strict=True)
    return torch.cat([function(*block, alpha) for block in blocks])


def _power(base: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """``base^gamma`` and the base: no less than what leaves two finite derivatives to any power."""
    base = base.clamp_min(torch.finfo(base.dtype).tiny ** 0.5)
    return base.pow(gamma), base


class _SigmoidTerms(NamedTuple):
    side: Tensor  # of the decision: 1 or -1
    lean: Tensor  # of the label towards that side: 1/2 if it is right, -1/2 if it is wrong
    wrong: Tensor  # 1/2 - lean
    tail: Tensor  # probability of the other side, at most 1/2
    miss: Tensor  # 1 - p_t
    log_likelihood: Tensor  # minus the cross-entropy
    weight: Tensor  # minus alpha_t (1 - p_t)^gamma


@final
@dataclass(frozen=True, eq=False)  # Dynamo of torch 2.8 hashes it before its fields are there
class SigmoidFocal(Focal):
    """``alpha_t (1 - p_t)^gamma CE`` for logits of any shape and labels in [0, 1].

    One formula for both labels, in terms of the decision ``z > 0`` and the probability of its opposite, keeps the
    digits of a small loss. The decision is a constant to autograd: either is right at 0, so the formula is smooth.
    """

    balance: float
    """``alpha``; -1 switches it off."""
    gamma: float
    ignore_index: int | None

    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        terms = self._terms(logits, targets)
        return self._unless_ignored(terms.weight * terms.log_likelihood, targets)

    def _pullback(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        side, lean, wrong, tail, miss, log_likelihood, weight = self._terms(logits, targets)
        spread = tail * (1 - tail) / miss
        slope = torch.addcmul(tail - wrong, lean * log_likelihood, spread, value=-2 * self.gamma)
        return self._unless_ignored(grad * side * weight * slope, targets)

    def _pushforward(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        return self._pullback(tangent, logits, targets, alpha)  # elements do not mix: the derivative is diagonal

    def _terms(self, logits: Tensor, targets: Tensor) -> _SigmoidTerms:
        dtype = precise_dtype(logits)
        z = self._unless_ignored(logits.to(dtype), targets)
        if torch.compiler.is_compiling():  # autograd of the formula would give a finite gradient where the loss is not
            z = z * torch.where(z.isfinite(), 1.0, torch.nan)
        half = self._unless_ignored(targets.to(dtype), targets) - 0.5
        side = z.new_ones(()).copysign(z.detach())
        lean, confidence = side * half, side * z
        wrong = 0.5 - lean
        tail = (-confidence).sigmoid()
        focus, miss = _power(torch.addcmul(wrong, lean, tail, value=2), self.gamma)
        log_likelihood = torch.addcmul((-tail).log1p(), confidence, wrong, value=-1)
        return _SigmoidTerms(side, lean, wrong, tail, miss, log_likelihood, self._minus_alpha(half) * focus)

    def _minus_alpha(self, half: Tensor) -> Tensor | float:
        return -1.0 if self.balance == -1 else (1 - 2 * self.balance) * half - 0.5

    def _unless_ignored(self, value: Tensor, targets: Tensor) -> Tensor:
        if self.ignore_index is None:
            return value
        return torch.where(targets.to(value.dtype) != self.ignore_index, value, 0)


class _SoftmaxTerms(NamedTuple):
    own_class: Tensor  # the target, or 0 where ignored
    others: Tensor  # the other classes' unnormalised probabilities, 0 at the target
    rest: Tensor  # their sum
    own: Tensor  # the target's
    miss: Tensor  # 1 - p_y
    focus: Tensor  # (1 - p_y)^gamma
    cross_entropy: Tensor
    intact: Tensor  # 1, or nan where a logit is not finite


@final
@dataclass(frozen=True, eq=False)  # Dynamo of torch 2.8 hashes it before its fields are there
class SoftmaxFocal(Focal):
    """``(1 - p_y)^gamma CE`` for logits ``[N, C, ...]`` and class ids ``[N, ...]``, with class weights ``alpha [C]``.

    The target's class is kept apart from the others, so that ``1 - p_y`` and ``-log p_y`` keep their digits near 0.
    Every term is ``[N, 1, ...]`` or ``[N, C, ...]``. A logit that is not finite counts as 0, and the loss and gradient
    of its position are multiplied by nan: softmax alone would not tell of ``-inf``.
    """

    gamma: float
    ignore_index: int
    label_smoothing: float

    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        terms = self._terms(logits, targets, alpha)
        loss = terms.focus * terms.cross_entropy * terms.intact
        return torch.where(self._valid(targets), loss, 0).squeeze(1)

    def _pullback(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        own_class, others, rest, own, miss, focus, cross_entropy, intact = self._terms(logits, targets, alpha)
        target_weight, share = self._weights(logits, own_class, alpha)
        share_of_all = share.sum(1, keepdim=True)
        total = rest + own
        grad = torch.where(self._valid(targets), grad.unsqueeze(1) * intact, 0)
        by_miss = self.gamma * focus / miss * cross_entropy * own / total
        slope = grad / total * (focus * (target_weight + share_of_all) + by_miss)
        gradient = slope * others.scatter(1, own_class, -rest)  # slope times p_c, or p_y - 1 at the target
        if self.label_smoothing == 0:
            return gradient
        smooth = grad * focus
        return (gradient - smooth * share).scatter_add(1, own_class, smooth * share_of_all)

    def _pushforward(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        ones = torch.ones_like(targets, dtype=precise_dtype(logits))
        return (self._pullback(ones, logits, targets, alpha) * tangent).sum(1)  # positions do not mix

    def _terms(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> _SoftmaxTerms:
        z = logits.to(precise_dtype(logits))
        valid = self._valid(targets)
        own_class = torch.where(valid, targets.long().unsqueeze(1), 0)
        intact = torch.where(valid, 1 + (0 * z.detach()).sum(1, keepdim=True), 1)
        z = z.nan_to_num(0, 0, 0)
        z = z - z.detach().amax(1, keepdim=True)
        at_target = z.gather(1, own_class)
        own, others = at_target.exp(), z.exp().scatter(1, own_class, 0)
        rest = others.sum(1, keepdim=True)
        total = rest + own
        # autograd of either branch alone cancels at the other end
        focus, miss = _power(torch.where(rest < own, rest / total, 1 - own / total), self.gamma)
        log_total = (rest + (own - 1)).log1p()  # own is 1 where the target leads: every digit of a small rest counts
        target_weight, share = self._weights(logits, own_class, alpha)
        cross_entropy = target_weight * (log_total - at_target)
        if self.label_smoothing > 0:
            cross_entropy = cross_entropy + (share * (log_total - z)).sum(1, keepdim=True)
        return _SoftmaxTerms(own_class, others, rest, own, miss, focus, cross_entropy, intact)

    def _weights(self, logits: Tensor, own_class: Tensor, alpha: Tensor | None) -> tuple[Tensor, Tensor]:
        """Weights of ``-log p_y`` ``[N, 1, ...]`` and of every ``-log p_c`` ``[1, C, 1, ...]`` in the cross-entropy."""
        n_classes = logits.shape[1]
        if alpha is None:
            alpha = logits.new_ones(n_classes, dtype=precise_dtype(logits))
        by_class = alpha.reshape(1, n_classes, *[1] * (logits.dim() - 2))
        return (1 - self.label_smoothing) * alpha[own_class], self.label_smoothing / n_classes * by_class

    def _valid(self, targets: Tensor) -> Tensor:
        return (targets.long() != self.ignore_index).unsqueeze(1)

"""Focal losses per element, and their derivatives in closed form.

In eager mode an ``autograd.Function`` keeps the inputs only and computes the rest anew in the backward, by steps that
overwrite each other unless a transform or a further derivative asks for the plain expressions. Under ``torch.compile``
the loss is one plain expression, which the compiler differentiates itself.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from imbalanced_losses.execution import can_overwrite, is_transformed, reads_freely
from imbalanced_losses.kernels.focal_blocks import (
    HardSigmoid,
    ModerateSoftmax,
    by_blocks,
    hard_sigmoid,
    lowest_base,
    moderate_softmax,
    sigmoid_focal_block,
)
from imbalanced_losses.precision import working_dtype

__all__ = ["Focal", "SigmoidFocal", "SoftmaxFocal"]

# Logits per thread that are worked on at a time on the CPU: more leave the cache, fewer do not hide the cost of calls,
# of which the softmax needs more, some by rows.
SIGMOID_BLOCK_SIZE = 1 << 17
SOFTMAX_BLOCK_SIZE = 1 << 20

# Of up to so many logits the graph keeps all that the forward knows: what counts is the number of operators.
FEW_LOGITS = 1 << 12

# Up to so many classes, reductions over them as the last axis cost more than to lay the rows out as that axis.
FEW_CLASSES = 16


class Focal(ABC):
    """A loss per element and its derivative, as plain and differentiable functions of the inputs and as faster ones."""

    @final
    def __call__(self, logits: Tensor, targets: Tensor, alpha: Tensor | None = None) -> Tensor:
        """The loss per element, differentiable by the logits (twice in eager mode); 0 where ignored."""
        if torch.compiler.is_compiling():  # which does not know a Function's jvp and vmap
            return self._value(logits, targets, alpha)
        if is_transformed():
            return _MappedClosedForm.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]
        return _ClosedForm.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]

    @final
    def mean_of_few(self, logits: Tensor, targets: Tensor, alpha: Tensor | None = None) -> Tensor | None:
        """The mean over what is not ignored, as one node of the graph; None if that is not known to be faster."""
        if 0 < logits.numel() <= FEW_LOGITS and reads_freely(logits, targets):
            return _MeanOfFew.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]
        return None

    @abstractmethod
    def _count(self, targets: Tensor) -> Tensor | int:
        """How many elements are not ignored; 1 if none is."""

    @abstractmethod
    def _at_once(self, grad: Tensor | None, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The loss or, given the gradient by it, the gradient by the logits, for :func:`can_overwrite` calls only."""

    @abstractmethod
    def _terms_at_once(
        self, logits: Tensor, targets: Tensor, alpha: Tensor | None
    ) -> HardSigmoid | ModerateSoftmax | None:
        """What loss and gradient are made of, or None if these need other steps; for :func:`can_overwrite` calls."""

    @abstractmethod
    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The loss per element; 0 where ignored."""

    @abstractmethod
    def _pullback(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The gradient of ``sum(grad * loss)``."""

    @abstractmethod
    def _pushforward(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The derivative of the loss in the direction ``tangent``."""


class _Derivatives(torch.autograd.Function):
    """The derivatives of the loss per element, from a graph that keeps no intermediate result."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, alpha = ctx.saved_tensors
        overwrites = can_overwrite(grad, logits)
        if overwrites and ctx.terms is not None:
            gradient = ctx.terms.gradient(grad).to(logits.dtype)
        elif overwrites:
            gradient = ctx.focal._at_once(grad, logits, targets, alpha)
        else:
            gradient = ctx.focal._pullback(grad, logits, targets, alpha).to(logits.dtype)
        return None, gradient, None, None

    @staticmethod
    def jvp(ctx: Any, _focal: None, tangent: Tensor, *_constants: None) -> Tensor:
        return ctx.focal._pushforward(tangent, *ctx.saved_tensors)  # type: ignore[no-any-return]


@final
class _ClosedForm(_Derivatives):
    """The loss per element. No ``setup_context``: with one, torch inspects a signature at every call."""

    @staticmethod
    def forward(ctx: Any, focal: Focal, *tensors: Any) -> Tensor:
        _keep(ctx, focal, tensors)
        logits, targets, _ = tensors
        if not can_overwrite(logits):
            return focal._value(*tensors)
        if logits.numel() <= FEW_LOGITS and reads_freely(logits, targets):
            ctx.terms = focal._terms_at_once(*tensors)
        return focal._at_once(None, *tensors) if ctx.terms is None else ctx.terms.loss()


@final
class _MeanOfFew(_Derivatives):
    """Its mean over what is not ignored."""

    @staticmethod
    def forward(ctx: Any, focal: Focal, *tensors: Any) -> Tensor:
        loss = _ClosedForm.forward(ctx, focal, *tensors)
        any_ignored = ctx.terms is None or ctx.terms.ignored is not None
        ctx.count = focal._count(tensors[1]) if any_ignored else loss.numel()
        return loss.sum() / ctx.count  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Derivatives.backward(ctx, (grad / ctx.count).expand(ctx.saved_tensors[1].shape))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _Derivatives.jvp(ctx, *tangents).sum() / ctx.count  # type: ignore[no-any-return]


@final
class _MappedClosedForm(_Derivatives):
    """The same under the transforms of ``torch.func``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(focal: Focal, *tensors: Any) -> Tensor:
        return focal._value(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs[0], inputs[1:])


def _keep(ctx: Any, focal: Focal, tensors: tuple[Tensor | None, ...]) -> None:
    ctx.focal, ctx.terms = focal, None
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _floored(base: Tensor, gamma: float) -> Tensor:
    """The base, no less than what leaves ``base^gamma`` two finite derivatives."""
    low = lowest_base(gamma, base.dtype)
    return base.clamp_min(low) if low else base


def _softplus(x: Tensor) -> Tensor:
    return torch.nn.functional.softplus(x, threshold=40)  # above it the identity, also in float64


class _SigmoidTerms(NamedTuple):
    away: Tensor  # from the label's side: 1 or -1
    hardness: Tensor  # of the label: 1/2 if it is 0 or 1
    softness: Tensor  # 1/2 - hardness
    wrong: Tensor  # probability of the other side than the label's
    miss: Tensor  # 1 - p_t
    cross_entropy: Tensor
    weight: Tensor | float  # alpha_t


@final
@dataclass(frozen=True, eq=False)  # Dynamo of torch 2.8 hashes it before its fields are there
class SigmoidFocal(Focal):
    """``alpha_t (1 - p_t)^gamma CE`` for logits of any shape and labels in [0, 1].

    In terms of the probability of the side that the label is not on, every digit of a small loss is kept.
    """

    balance: float
    """``alpha``; -1 switches it off."""
    gamma: float
    ignore_index: int | None

    def _count(self, targets: Tensor) -> Tensor | int:
        if self.ignore_index is None:
            return targets.numel()
        return (targets.to(working_dtype(targets)) != self.ignore_index).sum().clamp_min(1)

    def _terms_at_once(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> HardSigmoid | None:
        dtype = working_dtype(logits)
        if self.ignore_index is not None:
            return None
        return hard_sigmoid(logits.to(dtype), targets.to(dtype), self.balance, self.gamma)

    def _at_once(self, grad: Tensor | None, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        dtype, reads = working_dtype(logits), reads_freely(logits, targets)

        def of_block(z: Tensor, y: Tensor, grad: Tensor | None = None) -> Tensor:
            z, y = z.to(dtype), y.to(dtype)
            ignored = None if self.ignore_index is None else y == self.ignore_index
            if ignored is not None:
                z, y = z.masked_fill(ignored, 0), y.masked_fill(ignored, 0)
            terms = hard_sigmoid(z, y, self.balance, self.gamma) if reads else None
            if terms is None:
                block = sigmoid_focal_block(z, y, grad, self.balance, self.gamma)
            else:
                block = terms.loss() if grad is None else terms.gradient(grad)
            return block if ignored is None else block.masked_fill_(ignored, 0)

        rows = [tensor.reshape(-1) for tensor in (logits, targets, *([] if grad is None else [grad]))]
        return by_blocks(of_block, SIGMOID_BLOCK_SIZE, dtype if grad is None else logits.dtype, rows[0], *rows).view(
            logits.shape
        )

    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        terms = self._terms(logits, targets)
        loss = _floored(terms.miss, self.gamma).pow(self.gamma) * terms.cross_entropy
        return self._unless_ignored(loss if self.balance == -1 else loss * terms.weight, targets)

    def _pullback(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        away, hardness, softness, wrong, miss, cross_entropy, weight = self._terms(logits, targets)
        miss = _floored(miss, self.gamma - 1)
        spread = hardness * wrong * (1 - wrong)
        slope = torch.addcmul(miss * (wrong - softness), spread, cross_entropy, value=2 * self.gamma)
        return self._unless_ignored(grad * away * (weight * miss.pow(self.gamma - 1)) * slope, targets)

    def _pushforward(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        return self._pullback(tangent, logits, targets, alpha)  # elements do not mix: the derivative is diagonal

    def _terms(self, logits: Tensor, targets: Tensor) -> _SigmoidTerms:
        dtype = working_dtype(logits)
        z = self._unless_ignored(logits.to(dtype), targets)
        half = 0.5 - self._unless_ignored(targets.to(dtype), targets)
        away = half.new_ones(()).copysign(half)
        hardness = away * half
        if not can_overwrite(logits):  # autograd of the formula would give a finite gradient where the loss is not
            away = away.add(z.detach(), alpha=0)
        x = away * z
        softness, wrong = 0.5 - hardness, x.sigmoid()
        miss = torch.addcmul(softness, hardness, wrong, value=2)
        cross_entropy = torch.addcmul(_softplus(x), softness, x, value=-1)
        weight = 1.0 if self.balance == -1 else (1 - 2 * self.balance) * half + 0.5
        return _SigmoidTerms(away, hardness, softness, wrong, miss, cross_entropy, weight)

    def _unless_ignored(self, value: Tensor, targets: Tensor) -> Tensor:
        if self.ignore_index is None:
            return value
        return torch.where(targets.to(value.dtype) != self.ignore_index, value, 0)


class _SoftmaxTerms(NamedTuple):
    ignored: Tensor
    own_class: Tensor  # the target, or 0 where ignored
    others: Tensor  # the other classes' unnormalised probabilities, 0 at the target
    rest: Tensor  # their sum
    miss: Tensor  # 1 - p_y
    focus: Tensor  # (1 - p_y)^gamma
    cross_entropy: Tensor


@final
@dataclass(frozen=True, eq=False)  # Dynamo of torch 2.8 hashes it before its fields are there
class SoftmaxFocal(Focal):
    """``(1 - p_y)^gamma CE`` for logits ``[N, C, ...]`` and class ids ``[N, ...]``, with class weights ``alpha [C]``.

    It is the binary loss of the target against all the others, by how far their ``logsumexp`` is above the target's
    logit: so ``1 - p_y`` and ``-log p_y`` keep their digits near 0. Every term is ``[N, 1, ...]`` or ``[N, C, ...]``.
    A logit that is not finite counts as 0, and the loss and gradient of its position are multiplied by nan: softmax
    alone would not tell of ``-inf``.
    """

    gamma: float
    ignore_index: int
    label_smoothing: float

    def _count(self, targets: Tensor) -> Tensor | int:
        return (targets.long() != self.ignore_index).sum().clamp_min(1)

    def _terms_at_once(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> ModerateSoftmax | None:
        if self.label_smoothing > 0:
            return None
        return moderate_softmax(logits.to(working_dtype(logits)), targets, alpha, self.gamma, self.ignore_index)

    def _at_once(self, grad: Tensor | None, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        reads = reads_freely(logits, targets)
        few_classes = reads and logits.dim() == 2 and logits.shape[1] <= FEW_CLASSES

        def of_block(*rows: Tensor) -> Tensor:
            if few_classes:
                rows = tuple(tensor.movedim(0, -1).unsqueeze(0).contiguous() for tensor in rows)
            z, y, *pulled = rows
            terms = self._terms_at_once(z, y, alpha) if reads else None
            if terms is not None:
                block = terms.gradient(pulled[0]) if pulled else terms.loss()
            else:
                block = self._pullback(pulled[0], z, y, alpha) if pulled else self._value(z, y, alpha)
            return block.squeeze(0).movedim(-1, 0) if few_classes else block

        if grad is None:
            return by_blocks(of_block, SOFTMAX_BLOCK_SIZE, working_dtype(logits), targets, logits, targets)
        return by_blocks(of_block, SOFTMAX_BLOCK_SIZE, logits.dtype, logits, logits, targets, grad)

    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        terms = self._terms(logits, targets, alpha)
        return (terms.focus * terms.cross_entropy).masked_fill(terms.ignored, 0).squeeze(1)

    def _pullback(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        ignored, own_class, others, rest, miss, focus, cross_entropy = self._terms(logits, targets, alpha)
        floored = _floored(miss, self.gamma)
        by_focus = 1 - miss if floored is miss else (1 - miss) * (miss / floored)
        by_margin = miss if alpha is None else miss * self._weight_of_all(alpha, own_class)
        by_margin = torch.addcmul(by_margin, by_focus, cross_entropy, value=self.gamma)
        grad = grad.unsqueeze(1) * focus
        by_others = (grad * by_margin / rest).masked_fill(ignored, 0)
        if can_overwrite(grad, logits):
            gradient = others.mul_(by_others).scatter_(1, own_class, -by_others * rest)
        else:
            gradient = by_others * others.scatter(1, own_class, -rest)
        if self.label_smoothing == 0:
            return gradient
        smooth = grad.masked_fill(ignored, 0) * self._share(logits, alpha)
        return (gradient - smooth).scatter_add(1, own_class, smooth.sum(1, keepdim=True))

    def _pushforward(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        ones = torch.ones_like(targets, dtype=working_dtype(logits))
        return (self._pullback(ones, logits, targets, alpha) * tangent).sum(1)  # positions do not mix

    def _terms(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> _SoftmaxTerms:
        z = logits.to(working_dtype(logits))
        targets = targets.long().unsqueeze(1)
        ignored = targets == self.ignore_index
        own_class = targets.masked_fill(ignored, 0)
        if can_overwrite(logits) and z.shape[1] > 1:
            others, highest = self._others_at_once(z, own_class)
            broken = z.amin(1, keepdim=True) * 0
        else:
            values = z.detach()
            intact = (values.amax(1, keepdim=True) < torch.inf) & (values.amin(1, keepdim=True) > -torch.inf)
            broken = torch.where(intact | ignored, 0.0, torch.nan)  # not 0 * z, which a compiler may take for 0
            z = torch.where(z.abs() < torch.inf, z, 0)  # a compiler has no fast isfinite
            others, highest = self._others(z, own_class)
        rest = others.sum(1, keepdim=True)
        own, log_rest = z.gather(1, own_class) - highest, rest.log()
        lead = log_rest - own + broken
        miss, cross_entropy = lead.sigmoid(), _softplus(lead)
        focus = _floored(miss, self.gamma).pow(self.gamma)
        if alpha is not None or self.label_smoothing > 0:
            cross_entropy = cross_entropy * self._target_weight(alpha, own_class)
        if self.label_smoothing > 0:
            log_likelihoods = z - highest - torch.logaddexp(own, log_rest)
            cross_entropy = cross_entropy - (self._share(logits, alpha) * log_likelihoods).sum(1, keepdim=True)
        return _SoftmaxTerms(ignored, own_class, others, rest, miss, focus, cross_entropy)

    def _others(self, z: Tensor, own_class: Tensor) -> tuple[Tensor, Tensor]:
        """The other classes' ``exp(z - highest)`` and the highest of their logits."""
        number = torch.arange(z.shape[1], device=z.device).reshape(1, -1, *[1] * (z.dim() - 2))
        others = torch.where(number == own_class, torch.finfo(z.dtype).min, z)  # which a compiler fuses, not a scatter
        highest = others.detach().amax(1, keepdim=True)
        # next to the highest, what is clamped does not count; exp would be ten times slower where it underflows
        return (others - highest).clamp_min_(0.9 * math.log(torch.finfo(z.dtype).tiny)).exp_(), highest

    def _others_at_once(self, z: Tensor, own_class: Tensor) -> tuple[Tensor, Tensor]:
        """``_others`` by the highest logit of all, in the fewest passes over ``z``; finite also where ``z`` is not."""
        highest = z.amax(1, keepdim=True)
        least = math.log2(torch.finfo(z.dtype).tiny)
        powers = (z - highest).mul_(math.log2(math.e)).clamp_min_(least).nan_to_num_(least)  # nan in ignored rows
        return powers.exp2_().scatter_(1, own_class, 0), highest

    def _target_weight(self, alpha: Tensor | None, own_class: Tensor) -> Tensor | float:
        """Weight of ``-log p_y`` in the cross-entropy, ``[N, 1, ...]``."""
        return (1 - self.label_smoothing) * (1.0 if alpha is None else alpha[own_class])

    def _share(self, logits: Tensor, alpha: Tensor | None) -> Tensor:
        """Weight of every ``-log p_c`` in the cross-entropy, ``[1, C, 1, ...]``."""
        alpha = logits.new_ones(logits.shape[1], dtype=working_dtype(logits)) if alpha is None else alpha
        return self.label_smoothing / len(alpha) * alpha.reshape(1, -1, *[1] * (logits.dim() - 2))

    def _weight_of_all(self, alpha: Tensor, own_class: Tensor) -> Tensor:
        """Sum of the weights in the cross-entropy, ``[N, 1, ...]``; 1 without class weights."""
        return self._target_weight(alpha, own_class) + self.label_smoothing * alpha.mean()

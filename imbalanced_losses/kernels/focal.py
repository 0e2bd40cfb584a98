"""What the focal losses share: derivatives in closed form, blocks, powers.

In eager mode an ``autograd.Function`` saves the inputs. Up to ``FEW_LOGITS`` logits it also keeps the terms of the
forward; with more it recomputes them in the backward. Both run in place, unless a transform or a further derivative
needs the plain expressions. Under ``torch.compile`` the loss is one plain expression, which the compiler
differentiates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import is_traced, is_transformed, may_branch_on_values, may_run_in_place
from imbalanced_losses.kernels.tuning import FEW_LOGITS

__all__ = ["Focal", "Terms", "by_blocks", "floored", "lowest_base", "softplus"]


class Terms(Protocol):
    """What a loss and its gradient are made of, for steps that overwrite each other."""

    @property
    def ignored(self) -> Tensor | None:
        """Where the targets are ignored; None if none is."""

    def loss(self) -> Tensor:
        """The loss per element."""

    def gradient(self, grad: Tensor) -> Tensor:
        """The gradient by the logits, given that by the loss."""


class Focal(ABC):
    """A loss per element and its derivative, as plain and differentiable functions of the inputs and as faster ones."""

    @final
    def __call__(self, logits: Tensor, targets: Tensor, alpha: Tensor | None = None) -> Tensor:
        """The loss per element, differentiable by the logits (twice in eager mode); 0 where ignored."""
        if is_traced():  # which does not know a Function's jvp and vmap
            return self._value(logits, targets, alpha)
        if is_transformed():
            return _MappedClosedForm.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]
        return _ClosedForm.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]

    @final
    def fused_mean(self, logits: Tensor, targets: Tensor, alpha: Tensor | None = None) -> Tensor | None:
        """The mean over what is not ignored, as one node of the graph; None if that is not known to be faster."""
        if 0 < logits.numel() <= FEW_LOGITS and may_branch_on_values(logits, targets):
            return _FusedMean.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]
        return None

    @abstractmethod
    def counted(self, targets: Tensor) -> Tensor | None:
        """Which elements are not ignored; None if none can be."""

    @abstractmethod
    def _fused(self, grad: Tensor | None, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The loss or, given its gradient, the gradient by the logits; only where :func:`may_run_in_place`."""

    @abstractmethod
    def _fused_terms(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Terms | None:
        """What loss and gradient are made of, or None if these need other steps; for :func:`may_run_in_place` calls."""

    @abstractmethod
    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The loss per element; 0 where ignored."""

    @abstractmethod
    def _vjp(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The gradient of ``sum(grad * loss)``."""

    @abstractmethod
    def _jvp(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """The derivative of the loss in the direction ``tangent``."""


class _Derivatives(torch.autograd.Function):
    """The derivatives of the loss per element, from a graph that keeps no intermediate result but of few logits."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, alpha = ctx.saved_tensors
        grad = grad.expand(targets.shape)
        overwrites = may_run_in_place(grad, logits)
        terms, ctx.terms = ctx.terms, None  # freed now, however long the loss is kept
        if overwrites and terms is not None:
            gradient = terms.gradient(grad).to(logits.dtype)
        elif overwrites:
            gradient = ctx.focal._fused(grad, logits, targets, alpha)
        else:
            gradient = ctx.focal._vjp(grad, logits, targets, alpha).to(logits.dtype)
        return None, gradient, None, None

    @staticmethod
    def jvp(ctx: Any, _focal: None, tangent: Tensor, *_constants: None) -> Tensor:
        return ctx.focal._jvp(tangent, *ctx.saved_tensors)  # type: ignore[no-any-return]


@final
class _ClosedForm(_Derivatives):
    """The loss per element. No ``setup_context``: with one, torch inspects a signature at every call."""

    @staticmethod
    def forward(ctx: Any, focal: Focal, *tensors: Any) -> Tensor:
        _keep(ctx, focal, tensors)
        logits, targets, _ = tensors
        if not may_run_in_place(logits):
            return focal._value(*tensors)
        if logits.numel() <= FEW_LOGITS and may_branch_on_values(logits, targets):
            ctx.terms = focal._fused_terms(*tensors)
        return focal._fused(None, *tensors) if ctx.terms is None else ctx.terms.loss()


@final
class _FusedMean(_Derivatives):
    """Its mean over what is not ignored."""

    @staticmethod
    def forward(ctx: Any, focal: Focal, *tensors: Any) -> Tensor:
        loss = _ClosedForm.forward(ctx, focal, *tensors)
        any_ignored = ctx.terms is None or ctx.terms.ignored is not None
        counted = focal.counted(tensors[1]) if any_ignored else None
        ctx.count = loss.numel() if counted is None else counted.sum().clamp_min(1)
        return loss.sum() / ctx.count  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _Derivatives.backward(ctx, grad / ctx.count)

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


def lowest_base(gamma: float, dtype: torch.dtype) -> float:
    """The least base that leaves ``base^gamma`` two finite derivatives; 0 where any does."""
    return 0.0 if gamma in (0, 1) or gamma >= 2 else torch.finfo(dtype).tiny ** 0.5


def floored(base: Tensor, gamma: float) -> Tensor:
    """The base, no less than what leaves ``base^gamma`` two finite derivatives."""
    low = lowest_base(gamma, base.dtype)
    return base.clamp_min(low) if low else base


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``."""
    return torch.nn.functional.softplus(x, threshold=40)  # above it the identity, also in float64

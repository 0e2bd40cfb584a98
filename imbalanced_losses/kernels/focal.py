"""The common part of the focal losses: derivatives in closed form, blocks, powers.

In eager mode an ``autograd.Function`` saves the inputs. Up to ``FEW_LOGITS`` logits it also keeps the terms of the
forward; with more it recomputes them in the backward. Both run in-place, unless a transform or a further derivative
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
from imbalanced_losses.kernels.operators import refuse_forward_over_forward
from imbalanced_losses.kernels.tuning import FEW_LOGITS

__all__ = ["Focal", "Terms", "by_blocks", "floored", "lowest_base", "softplus"]


class Terms(Protocol):
    """Intermediate results of a loss and its gradient, for in-place evaluation."""

    @property
    def ignored(self) -> Tensor | None:
        """Mask of ignored targets; None if none is ignored."""

    def loss(self) -> Tensor:
        """Return the loss per element."""

    def gradient(self, grad: Tensor) -> Tensor:
        """Return the gradient with respect to the logits, given that with respect to the loss."""


class Focal(ABC):
    """A loss per element and its derivatives: plain differentiable expressions, and faster in-place versions."""

    @final
    def __call__(self, logits: Tensor, targets: Tensor, alpha: Tensor | None = None) -> Tensor:
        """Return the loss per element, 0 where ignored; differentiable (in eager mode twice)."""
        if is_traced():  # tracers do not support a Function's jvp and vmap
            return self._value(logits, targets, alpha)
        if is_transformed():
            refuse_forward_over_forward()
            return _MappedClosedForm.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]
        return _ClosedForm.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]

    @final
    def fused_mean(self, logits: Tensor, targets: Tensor, alpha: Tensor | None = None) -> Tensor | None:
        """Return the mean over elements that are not ignored, as one autograd node; None if that may be slower."""
        if 0 < logits.numel() <= FEW_LOGITS and may_branch_on_values(logits, targets):
            return _FusedMean.apply(self, logits, targets, alpha)  # type: ignore[no-any-return, no-untyped-call]
        return None

    @abstractmethod
    def counted(self, targets: Tensor) -> Tensor | None:
        """Return the mask of elements that are not ignored; None if there is no ignore index."""

    @abstractmethod
    def _fused(self, grad: Tensor | None, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """Return the loss or, given ``grad``, the gradient of the logits; requires :func:`may_run_in_place`."""

    @abstractmethod
    def _fused_terms(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Terms | None:
        """Return the terms of loss and gradient, or None for :meth:`_fused`; requires :func:`may_run_in_place`."""

    @abstractmethod
    def _value(self, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """Return the loss per element; 0 where ignored."""

    @abstractmethod
    def _vjp(self, grad: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """Return the gradient of ``sum(grad * loss)``."""

    @abstractmethod
    def _jvp(self, tangent: Tensor, logits: Tensor, targets: Tensor, alpha: Tensor | None) -> Tensor:
        """Return the derivative of the loss in the direction ``tangent``."""


class _Derivatives(torch.autograd.Function):
    """The derivatives of the loss per element. Intermediate results are kept only up to ``FEW_LOGITS`` logits."""

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, targets, alpha = ctx.saved_tensors
        grad = grad.expand(targets.shape)
        overwrites = may_run_in_place(grad, logits)
        terms, ctx.terms = ctx.terms, None  # free them even if the loss is kept alive
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
    """The mean of the loss over elements that are not ignored."""

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
    """The loss per element, under transforms of ``torch.func``."""

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
    """Return ``function(*rows)`` in ``dtype`` and the shape of ``like``, in blocks of ``size`` logits per thread.

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
    """Return the lowest base for which ``base^gamma`` has two finite derivatives; 0 if there is no limit."""
    return 0.0 if gamma in (0, 1) or gamma >= 2 else torch.finfo(dtype).tiny ** 0.5


def floored(base: Tensor, gamma: float) -> Tensor:
    """Clamp the base to values for which ``base^gamma`` has two finite derivatives."""
    low = lowest_base(gamma, base.dtype)
    return base.clamp_min(low) if low else base


def softplus(x: Tensor) -> Tensor:
    """Return ``log(1 + exp(x))``."""
    return torch.nn.functional.softplus(x, threshold=40)  # above 40 it equals x, also in float64

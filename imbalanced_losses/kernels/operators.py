"""Opaque operators: kernels that every mode runs as they are, and the derivatives around them.

A kernel over pairs, ranks or quantiles is a Python function of plain tensors. It may read values on the CPU to choose
an evaluator, whoever calls it. Three layers make that possible:

1. the kernel;
2. an operator around it, ``torch.ops.imbalanced_losses.*``: all that a tracer sees. It has a fake for shapes, and
   neither an autograd nor a vmap rule, which ``torch.library`` does not support under ``torch.func`` (torch 2.8 to 2.14);
3. an ``autograd.Function`` around that with backward, jvp and vmap. Dynamo puts the call into its graph as it is
   (``allow_in_graph``), and AOTAutograd traces through the Function.

Plain eager mode skips the second layer and ``setup_context``, which cost 40 us a call.

Accelerators run the same operator; a kernel reads nothing there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from imbalanced_losses.execution import has_tangent, is_plain_eager, may_read
from imbalanced_losses.precision import widest_dtype

__all__ = [
    "KERNELS",
    "Rule",
    "batch_of_rows",
    "differentiable",
    "full_precision",
    "make_operator",
    "propagate_nonfinite",
    "rows_of_batch",
]

NAMESPACE = "imbalanced_losses"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
KERNELS: dict[Any, Callable[..., Any]] = {}
"""The kernel behind each operator, for whoever counts what it runs: a dispatch mode does not look into an operator."""


def make_operator(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register ``kernel`` for all devices under the name in ``schema``; ``fake`` gives its results' shapes.

    ``Library`` and not ``custom_op``, which adds three times as much to a call.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    operator: Callable[..., Any] = getattr(getattr(torch.ops, NAMESPACE), name).default
    KERNELS[operator] = kernel
    return operator


def full_precision(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Keep autocast, which would run matrix products in half precision, out of a kernel."""

    @functools.wraps(kernel)
    def wrapped(scores: Tensor, *rest: Any) -> Any:
        kind = scores.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            with torch.autocast(kind, enabled=False):
                return kernel(scores, *rest)
        return kernel(scores, *rest)

    return wrapped


def rows_of_batch(size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """The arguments of a batch of calls as those of one: a batch of problems ``[B, R, ...]`` is ``[B R, ...]``."""
    rows = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            arg = (arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)).flatten(0, 1)
        rows.append(arg)
    return rows


def batch_of_rows(size: int, outputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    """What a Function's ``vmap`` returns: ``[B R, ...]`` as ``[B, R, ...]``, batched along the first axis."""
    batched = tuple(out.reshape(size, len(out) // size, *out.shape[1:]) for out in outputs)
    return batched, (0,) * len(batched)


Outputs = tuple[Tensor, ...]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Rule:
    """A sum over the scores of each of R problems, whose gradient the kernel gives along with the value.

    Attributes
    ----------
    kernel : callable
        ``(scores [R, M], *constants, differentiate) -> (value [R], *statistics [R], gradient [R, M])``; without
        ``differentiate`` the gradient is empty. Constants are tensors of R rows, or None.
    operator : callable
        The same, opaque.
    gradient : callable
        ``(scores, *constants) -> gradient [R, M]`` as an expression of the scores, for second derivatives.
    """

    kernel: Callable[..., Outputs]
    operator: Callable[..., Outputs]
    gradient: Callable[..., Tensor]


def differentiable(rule: Rule) -> Callable[..., Outputs]:
    """The function ``(scores, *constants) -> (value, *statistics)`` in every mode; statistics carry no gradient."""

    @torch.compiler.allow_in_graph  # Dynamo traces no Function with a jvp
    def opaque(*inputs: Any) -> Outputs:
        # under torch.func.grad nothing tells whether the scores are differentiated: then they are taken to be
        return _Opaque.apply(rule, *inputs, torch.is_grad_enabled())[:-1]  # type: ignore[no-any-return, no-untyped-call]

    def call(scores: Tensor, *constants: Tensor | None) -> Outputs:
        if not is_plain_eager() or has_tangent(scores):
            return opaque(scores, *constants)  # type: ignore[no-any-return]
        return _Eager.apply(rule, scores, *constants)  # type: ignore[no-any-return, no-untyped-call]

    return call


@final
class _Eager(torch.autograd.Function):
    """Straight onto the kernel. No ``setup_context``: with one, torch inspects a signature at every call."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, scores: Tensor, *constants: Tensor | None) -> Outputs:
        value, *statistics, gradient = rule.kernel(scores, *constants, ctx.needs_input_grad[1])
        ctx.rule = rule
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*statistics)
        ctx.save_for_backward(scores, *constants, gradient)
        return value, *statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        scores, *constants, gradient = ctx.saved_tensors
        nothing = (None,) * len(constants)
        if grad is None:
            return None, None, *nothing
        if torch.is_grad_enabled():  # create_graph: the same gradient, as an expression of the scores
            gradient = ctx.rule.gradient(scores, *constants)
        return None, grad.to(gradient.dtype).unsqueeze(-1) * gradient, *nothing


@final
class _Opaque(torch.autograd.Function):
    """The gradient is one more output, with a derivative of its own that is computed only if asked for."""

    @staticmethod
    def forward(rule: Rule, *inputs: Any) -> Outputs:
        return rule.operator(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        ctx.rule, *tensors, _ = inputs
        ctx.n_statistics = len(output) - 2
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:-1])
        ctx.save_for_backward(*tensors, output[-1])
        ctx.save_for_forward(*tensors, output[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        scores, *constants, gradient = ctx.saved_tensors
        total = None if grad is None else grad.to(gradient.dtype).unsqueeze(-1) * gradient
        if grads[-1] is not None:
            second = _second_derivative(ctx.rule, scores, constants, grads[-1])
            total = second if total is None else total + second
        return None, total, *(None,) * len(constants), None

    @staticmethod
    def jvp(ctx: Any, _: None, tangent: Tensor, *__: Any) -> tuple[Tensor | None, ...]:
        scores, *constants, gradient = ctx.saved_tensors
        # by reverse mode, as the second derivative is symmetric: torch does not nest forward mode under compile
        moved = _second_derivative(ctx.rule, scores, constants, tangent)
        along = (gradient * tangent).sum(-1).to(widest_dtype(scores.device))
        return along, *(None,) * ctx.n_statistics, moved

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], rule: Rule, *args: Any) -> Any:
        outputs = _Opaque.apply(rule, *rows_of_batch(info.batch_size, in_dims[1:], args))  # type: ignore[no-untyped-call]
        return batch_of_rows(info.batch_size, outputs)


def _second_derivative(rule: Rule, scores: Tensor, constants: list[Tensor | None], direction: Tensor) -> Tensor:
    _, vjp = torch.func.vjp(lambda s: rule.gradient(s, *constants), scores)
    return vjp(direction)[0]  # type: ignore[no-any-return]


def propagate_nonfinite(kernel: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """Make value and gradient of a problem with a score that is not finite ``nan``; others are not touched by it."""

    @functools.wraps(kernel)
    def wrapped(scores: Tensor, *constants: Any) -> Outputs:
        if may_read(scores):
            if math.isfinite(scores.sum()):
                return kernel(scores, *constants)
            value, *statistics, gradient = kernel(scores.nan_to_num(0, 0, 0), *constants)
        else:
            value, *statistics, gradient = kernel(scores, *constants)
        guard = (scores * 0).sum(-1)
        return value + guard, *statistics, gradient + guard[:, None] if gradient.dim() == 2 else gradient

    return wrapped

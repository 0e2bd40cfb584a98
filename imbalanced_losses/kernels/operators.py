"""Opaque operators: kernels that run unchanged in every mode, with their derivatives.

A kernel over pairs, ranks or quantiles is a Python function of plain tensors. On the CPU it may read values to choose
an evaluator, in every mode. No compiler sees its pairs, for which torch's default backend generates wrong C++ code
(pytorch issues 191837 and 195582; tests/compiled says in which versions). There are three layers:

1. the kernel;
2. an operator around it, ``torch.ops.imbalanced_losses.*``, which is all that a tracer sees. It has a fake for shapes,
   but no autograd or vmap rule: those of ``torch.library`` fail under ``torch.func`` (torch 2.8 to 2.14);
3. an ``autograd.Function`` around the operator, with backward, jvp and vmap. Dynamo puts the call into its graph
   without tracing it (:func:`in_graph`), and AOTAutograd traces through the Function.

Plain eager mode skips the second layer and ``setup_context``, which cost 40 us per call. Accelerators run the same
operator; there a kernel reads no values.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast, final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import (
    forward_levels,
    has_tangent,
    holds_values,
    is_plain_eager,
    is_traced,
    is_transformed,
    without_autocast,
)
from imbalanced_losses.dtypes import accumulation_dtype

__all__ = [
    "batch_of_rows",
    "full_precision",
    "in_graph",
    "make_mean",
    "make_operator",
    "propagate_nonfinite",
    "refuse_forward_over_forward",
    "rows_of_batch",
    "unchanging",
    "with_gradient",
    "with_nonfinite",
]

F = TypeVar("F", bound=Callable[..., Any])
Outputs = tuple[Tensor, ...]

NAMESPACE = "imbalanced_losses"
LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")  # type: ignore[no-untyped-call]


def make_operator(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Register ``kernel`` for all devices under the name in ``schema``; ``fake`` returns results of the same shapes.

    This uses ``Library``, because the overhead of ``custom_op`` is three times as large.
    """

    @functools.wraps(kernel)
    def fresh(*arguments: Any) -> Any:
        """Return results like the fake's: contiguous, aligned, sharing no memory."""
        results = kernel(*arguments)
        return _fresh(results) if isinstance(results, Tensor) else tuple(map(_fresh, results))

    name = schema.partition("(")[0]
    LIBRARY.define(schema)  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, fresh, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=LIBRARY)
    return getattr(getattr(torch.ops, NAMESPACE), name).default  # type: ignore[no-any-return]


def _fresh(result: Tensor) -> Tensor:
    # below autograd a view does not show that it is one, but it starts at an offset or does not fill its storage
    owns_storage = result.storage_offset() == 0 and result.untyped_storage().nbytes() == result.nbytes
    return result if owns_storage and result.is_contiguous() else result.clone(memory_format=torch.contiguous_format)


_copy = make_operator("copy(Tensor value) -> Tensor", torch.clone, torch.empty_like)


def unchanging(value: Tensor) -> Tensor:
    """Return what a compiled backward needs of a value that is computed from a buffer, as its forward has seen it.

    For an expression the partitioner would save the buffer, which a module overwrites before the backward, and compute
    the value from it again. The operator is opaque to it. ``value`` carries no gradient.
    """
    return _copy(value) if is_traced() and not is_transformed() else value


def in_graph(function: F) -> F:
    """Let Dynamo put calls into its graph without tracing them: it cannot trace a Function that has a jvp."""
    return cast(F, torch.compiler.allow_in_graph(function))  # type: ignore[no-untyped-call]


def refuse_forward_over_forward() -> None:
    """Raise an error for jvp of jvp: torch does not nest the jvp of a Function, and would return 0."""
    if forward_levels() > 1:
        raise RuntimeError(
            "expected forward mode once at most, got jvp (or jacfwd) of jvp: take torch.func.hessian, or jvp of grad"
        )


def full_precision(kernel: F) -> F:
    """Disable autocast in a kernel: it would run matrix products in half precision."""

    @functools.wraps(kernel)
    def wrapped(scores: Tensor, *rest: Any) -> Any:
        with without_autocast(scores.device):
            return kernel(scores, *rest)

    return cast(F, wrapped)


def rows_of_batch(size: int, in_dims: tuple[int | None, ...], args: tuple[Any, ...]) -> list[Any]:
    """Turn the arguments of a batch of calls, ``[B, R, ...]``, into those of one call, ``[B R, ...]``."""
    rows = []
    for arg, dim in zip(args, in_dims, strict=True):
        if isinstance(arg, Tensor):
            arg = (arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)).flatten(0, 1)
        rows.append(arg)
    return rows


def batch_of_rows(size: int, outputs: Outputs) -> tuple[Outputs, tuple[int, ...]]:
    """Return what a Function's ``vmap`` must: outputs ``[B R, ...]`` as ``[B, R, ...]``, and 0 as the batch axes."""
    batched = tuple(out.reshape(size, len(out) // size, *out.shape[1:]) for out in outputs)
    return batched, (0,) * len(batched)


# --- means whose kernel computes value and gradient together ----------------------------------------------------------


def make_mean(
    name: str, constants: str, n_statistics: int, kernel: Callable[..., Outputs], gradient: Callable[..., Tensor]
) -> Callable[..., Outputs]:
    """Make a differentiable function of scores from a kernel that computes value and gradient together.

    Parameters
    ----------
    name : str
        Name of the operator.
    constants : str
        Schema of the constants: tensors of R rows, or optional ones.
    n_statistics : int
    kernel : callable
        ``(scores [R, M], *constants, differentiate) -> (value [R], *statistics [R], gradient [R, M])``, the statistics
        in the widest dtype; without ``differentiate`` the gradient is empty, ``[0]``.
    gradient : callable
        ``(scores, *constants) -> gradient [R, M]`` as an expression of the scores, for second derivatives.

    Returns
    -------
    callable
        ``(scores, *constants) -> (value, *statistics)`` in every mode. The statistics carry no gradient. If a score of
        a problem is not finite, the problem's value and gradient are ``nan``; other problems are not affected.
    """

    def fake(scores: Tensor, *rest: Any) -> Outputs:
        wide, size = accumulation_dtype(scores.device), len(scores)
        statistics = (scores.new_empty(size, dtype=wide) for _ in range(n_statistics))
        return scores.new_empty(size), *statistics, scores.new_empty(scores.shape if rest[-1] else 0)

    kernel = full_precision(propagate_nonfinite(kernel))
    results = ", ".join(["Tensor"] * (2 + n_statistics))
    schema = f"{name}(Tensor scores, {constants}, bool differentiate) -> ({results})"
    operator = make_operator(schema, kernel, fake)

    @in_graph
    def opaque(*inputs: Any) -> Outputs:
        refuse_forward_over_forward()
        # torch.func does not show whether the scores are differentiated, so assume that they are
        differentiate = torch.is_grad_enabled() or forward_levels() > 0 or has_tangent(inputs[0])
        return _Opaque.apply(operator, gradient, *inputs, differentiate)[:-1]  # type: ignore[no-any-return, no-untyped-call]

    def call(scores: Tensor, *constants: Tensor | None) -> Outputs:
        if not is_plain_eager() or has_tangent(scores):
            return opaque(scores, *constants)
        return with_gradient(kernel, gradient, scores, *constants)

    return call


def with_gradient(
    kernel: Callable[..., Outputs], gradient: Callable[..., Tensor], scores: Tensor, *constants: Tensor | None
) -> Outputs:
    """Evaluate a kernel of :func:`make_mean`'s signature in plain eager mode."""
    return _Eager.apply(kernel, gradient, scores, *constants)  # type: ignore[no-any-return, no-untyped-call]


def in_blocks_of_rows(kernel: Callable[..., Outputs], size: int, scores: Tensor, *constants: Any) -> Outputs:
    """Call a kernel of tensors ``[R, ...]``, on the CPU for blocks of rows with ``size`` of ``scores [R, M]`` each."""
    step = max(1, size // max(1, scores.shape[1])) if holds_values(scores) else len(scores)
    if step >= len(scores):
        return kernel(scores, *constants)
    parts = []
    for start in range(0, len(scores), step):
        part = slice(start, start + step)
        own = [value[part] if isinstance(value, Tensor) else value for value in constants]
        parts.append(kernel(scores[part], *own))
    return tuple(map(torch.cat, zip(*parts, strict=True)))


def propagate_nonfinite(kernel: Callable[..., Outputs]) -> Callable[..., Outputs]:
    """Wrap a kernel of :func:`make_mean`'s signature: it gets finite scores, and problems with others get ``nan``."""

    @functools.wraps(kernel)
    def wrapped(scores: Tensor, *constants: Any) -> Outputs:
        if holds_values(scores):
            if math.isfinite(scores.sum()):
                return kernel(scores, *constants)
            value, *statistics, gradient = kernel(scores.nan_to_num(0, 0, 0), *constants)
        else:
            value, *statistics, gradient = kernel(scores, *constants)
        guard = (scores - scores).sum(-1)  # inf - inf is nan
        return value + guard, *statistics, gradient + guard[:, None] if gradient.dim() == 2 else gradient

    return wrapped


def with_nonfinite(loss: Tensor, scores: Tensor) -> Tensor:
    """Make ``loss [C]`` and its gradient ``nan`` if a score ``[C, M]`` is not finite: a GradScaler then skips the step.

    For expressions of the scores; :func:`propagate_nonfinite` is for kernels.
    """
    zero_or_nan = (scores - scores).sum(-1)  # a compiler may replace scores * 0 by 0
    return loss * (1 + zero_or_nan * zero_or_nan)


@final
class _Eager(torch.autograd.Function):
    """Call the kernel directly. No ``setup_context``: with one, torch inspects a signature at every call."""

    @staticmethod
    def forward(ctx: Any, kernel: Any, expression: Any, scores: Tensor, *constants: Tensor | None) -> Outputs:
        value, *statistics, gradient = kernel(scores, *constants, ctx.needs_input_grad[2])
        ctx.expression = expression
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*statistics)
        ctx.save_for_backward(scores, *constants, gradient)
        return value, *statistics

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        scores, *constants, gradient = ctx.saved_tensors
        nothing = (None,) * len(constants)
        if grad is None:
            return None, None, None, *nothing
        if torch.is_grad_enabled():  # create_graph: the same gradient, as an expression of the scores
            gradient = ctx.expression(scores, *constants)
        return None, None, grad.unsqueeze(-1) * gradient, *nothing


@final
class _Opaque(torch.autograd.Function):
    """Call the operator. The gradient is one more output, whose own derivative is computed only if needed."""

    @staticmethod
    def forward(operator: Any, expression: Any, *inputs: Any) -> Outputs:
        return operator(*inputs)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        _, ctx.expression, *tensors, _ = inputs
        ctx.n_statistics = len(output) - 2
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:-1])
        ctx.save_for_backward(*tensors, output[-1])
        ctx.save_for_forward(*tensors, output[-1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        scores, *constants, gradient = ctx.saved_tensors
        total = None if grad is None else grad.unsqueeze(-1) * gradient
        if grads[-1] is not None:
            second = _second_derivative(ctx.expression, scores, constants, grads[-1])
            total = second if total is None else total + second
        return None, None, total, *(None,) * len(constants), None

    @staticmethod
    def jvp(ctx: Any, _operator: None, _expression: None, tangent: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        scores, *constants, gradient = ctx.saved_tensors
        # torch does not nest forward mode under compile; the second derivative is symmetric, so use reverse mode
        moved = _second_derivative(ctx.expression, scores, constants, tangent)
        return (gradient * tangent).sum(-1), *(None,) * ctx.n_statistics, moved

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], operator: Any, expression: Any, *args: Any) -> Any:
        rows = rows_of_batch(info.batch_size, in_dims[2:], args)
        outputs = _Opaque.apply(operator, expression, *rows)  # type: ignore[no-untyped-call]
        return batch_of_rows(info.batch_size, outputs)


def _second_derivative(
    expression: Callable[..., Tensor], scores: Tensor, constants: list[Tensor | None], direction: Tensor
) -> Tensor:
    vjp = torch.func.vjp(lambda s: expression(s, *constants), scores)[1]
    return cast(Tensor, vjp(direction)[0])

"""Who runs this code: eager mode, a transform of ``torch.func`` or a tracer. Whatever may depend on it asks here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _disable_current_modes

__all__ = [
    "can_read_values",
    "forward_levels",
    "has_tangent",
    "holds_values",
    "is_in_backward",
    "is_plain_eager",
    "is_traced",
    "is_transformed",
    "may_branch_on_values",
    "may_run_in_place",
    "version_of",
    "without_dispatch_modes",
]

T = TypeVar("T")


def is_traced() -> bool:
    """Whether operators are recorded (``torch.compile``, ``make_fx``, ``torch.jit.trace``) or faked instead of run."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    modes = torch._C._TorchDispatchModeKey
    return torch._C._get_dispatch_mode(modes.PROXY) is not None or torch._C._get_dispatch_mode(modes.FAKE) is not None


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is active: it wraps tensors, which then are not to be read."""
    return torch._C._are_functorch_transforms_active()


def is_plain_eager() -> bool:
    """Whether this is eager mode outside any transform."""
    return not is_traced() and not is_transformed()


def is_in_backward() -> bool:
    """Whether autograd's engine runs this: a hook, or the second pass of what is checkpointed."""
    return torch._C._current_graph_task_id() != -1


def may_branch_on_values(*tensors: Tensor) -> bool:
    """Whether this is plain eager mode on the CPU, where reading data costs nothing."""
    return is_plain_eager() and holds_values(*tensors)


def holds_values(*tensors: Tensor) -> bool:
    """Whether a kernel, which gets what no transform wraps, may look into these at no cost."""
    return all(map(_is_host_tensor, tensors))


def _is_host_tensor(tensor: Tensor) -> bool:
    """Whether this is a tensor in the host's memory; a subclass may hold no data."""
    return type(tensor) is Tensor and tensor.device.type == "cpu"


def can_read_values(tensor: object) -> bool:
    """Whether this is a Tensor that Python may look into: not if traced, under ``vmap``, on ``meta`` or fake."""
    if is_traced() or not isinstance(tensor, Tensor) or tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def has_tangent(tensor: Tensor) -> bool:
    """Whether this is differentiated in forward mode outside any transform."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def forward_levels() -> int:
    """How many transforms of ``torch.func`` that are active differentiate in forward mode."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack)


def may_run_in_place(*tensors: Tensor) -> bool:
    """Whether nothing differentiates, maps or traces what is done with these: then steps may overwrite each other."""
    if not is_plain_eager() or torch.is_grad_enabled():
        return False
    if any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors):  # a batch of gradients
        return False
    return not any(has_tangent(tensor) for tensor in tensors)


def without_dispatch_modes(function: Callable[..., T], *args: object) -> T:
    """Call it where tensors hold values, whatever mode (fake tensors, say) its caller runs under."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return function(*args)
    with _disable_current_modes():
        return function(*args)


def version_of(value: object) -> tuple[int, int] | None:
    """What tells whether a tensor was changed or replaced; inference tensors do not count their changes."""
    if not isinstance(value, Tensor):
        return None
    return id(value), 0 if value.is_inference() else value._version

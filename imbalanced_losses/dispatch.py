"""The execution mode: plain eager, a transform of ``torch.func``, or a tracer. Code that depends on it asks here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
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
    "without_autocast",
    "without_dispatch_modes",
]

T = TypeVar("T")


def is_traced() -> bool:
    """Whether operators are recorded (``torch.compile``, ``make_fx``, ``torch.jit.trace``) or faked, not run."""
    if torch.compiler.is_compiling() or torch._C._is_tracing():
        return True
    if torch._C._len_torch_dispatch_stack() == 0:  # a fortieth of the time
        return False
    modes = torch._C._TorchDispatchModeKey
    return torch._C._get_dispatch_mode(modes.PROXY) is not None or torch._C._get_dispatch_mode(modes.FAKE) is not None


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is active. Tensors that it wraps must not be read."""
    return torch._C._are_functorch_transforms_active()


def is_plain_eager() -> bool:
    """Whether this is eager mode outside any transform."""
    return not is_traced() and not is_transformed()


def is_in_backward() -> bool:
    """Whether autograd's engine runs this code: in a hook, or when a checkpointed function is recomputed."""
    return torch._C._current_graph_task_id() != -1


def may_branch_on_values(*tensors: Tensor) -> bool:
    """Whether this is plain eager mode on the CPU, where reading data costs nothing."""
    return is_plain_eager() and holds_values(*tensors)


def holds_values(*tensors: Tensor) -> bool:
    """Whether a kernel, whose inputs no transform wraps, can read these tensors at no cost."""
    return all(map(_is_host_tensor, tensors))


def _is_host_tensor(tensor: Tensor) -> bool:
    """Whether this is a plain tensor in host memory; a subclass may hold no data."""
    return type(tensor) is Tensor and tensor.is_cpu  # a tenth of the time of tensor.device.type == "cpu"


def can_read_values(tensor: object) -> bool:
    """Whether Python can read the values of this Tensor: not if traced, under ``vmap``, on ``meta`` or fake."""
    if is_traced() or not isinstance(tensor, Tensor) or tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    return not torch._C._functorch.is_functorch_wrapped_tensor(tensor)


def has_tangent(tensor: Tensor) -> bool:
    """Whether this tensor is differentiated in forward mode outside any transform."""
    return forward_ad.unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def forward_levels() -> int:
    """The number of active ``torch.func`` transforms that differentiate in forward mode."""
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Jvp for level in stack)


def may_run_in_place(*tensors: Tensor) -> bool:
    """Whether nothing differentiates, maps or traces operations on these tensors, so that they may run in-place."""
    if not is_plain_eager() or torch.is_grad_enabled():
        return False
    if any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors):  # a batch of gradients
        return False
    return not any(has_tangent(tensor) for tensor in tensors)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Disable autocast: it runs matrix products in half precision, and does not join two half types."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):  # not available on meta
        return torch.autocast(kind, enabled=False)
    return nullcontext()


def without_dispatch_modes(function: Callable[..., T], *args: object) -> T:
    """Call ``function`` with dispatch modes (such as fake tensors) disabled, so that its tensors hold values."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return function(*args)
    with _disable_current_modes():
        return function(*args)


def version_of(value: object) -> tuple[int, int] | None:
    """Return a value that changes when a tensor is modified or replaced; inference tensors do not count changes."""
    if not isinstance(value, Tensor):
        return None
    return id(value), 0 if value.is_inference() else value._version

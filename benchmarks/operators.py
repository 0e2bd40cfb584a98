"""Counts the operators of a call, and those of them that read the device: what an accelerator's step costs the host.

It counts what torch dispatches below autograd. Our kernels are operators themselves, ``imbalanced_losses::*``: what
they run inside counts, they do not. On ``meta`` tensors they run what they run on an accelerator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

KERNELS = "imbalanced_losses"  # namespace of the package's own operators
COMPOSITE = torch._C.DispatchKeySet(torch._C.DispatchKey.CompositeExplicitAutograd)

# what launches nothing on a device, beside views, which torch knows itself: allocations and a question about dtypes
LAUNCHES_NOTHING = {
    "_unsafe_view",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "promote_types",
}

# torch's words for an operator whose result, or its shape, only the host can know after it has waited for the device
WAITS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
INDEXING = {"index", "index_put", "index_put_"}  # they wait where an index is a mask
FROM_HOST: tuple[Callable[..., Any], ...] = (torch.tensor, torch.as_tensor, Tensor.new_tensor)


def count_operators(call: Callable[[], object]) -> tuple[Counter[str], Counter[str]]:
    """The operators that a call runs, and its reads: names and how often.

    Names are those of the operators with their overloads. A call that reads a ``meta`` tensor raises, as torch does.
    """
    counting = _Counting()
    with counting.constants, counting:
        call()
    # a sum of counters leaves zeros out
    return +counting.operators, counting.host_reads + counting.constants.host_reads


class _Counting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operator, also those inside the package's kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operators: Counter[str] = Counter()
        self.host_reads: Counter[str] = Counter()
        self.constants = _HostConstants()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Torch leaves the modes while it asks this one, and does not ask about what is redispatched or decomposed.
        if func.namespace == KERNELS:
            with torch._C._EnableTorchFunction(), self.constants, self:
                return func.redispatch(COMPOSITE, *args, **kwargs)
        if func._can_decompose():  # within a kernel torch asks about composite operators as a whole
            with self:
                return func.decompose(*args, **kwargs)
        self.operators[str(func)] += launches(func)
        self.host_reads[str(func)] += reads_host(func, args, kwargs)
        return func(*args, **kwargs)


class _HostConstants(TorchFunctionMode):
    """Sees tensors that are made of Python numbers, which on ``meta`` no operator tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.host_reads: Counter[str] = Counter()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in FROM_HOST:
            data = args[-1] if args else (kwargs or {}).get("data")
            on_host = not isinstance(data, Tensor) or data.device.type == "cpu"
            self.host_reads[func.__name__] += on_host and result.device.type != "cpu"
        return result


def launches(func: OpOverload) -> bool:
    """Whether an operator gives a device something to do."""
    view = func.is_view or torch.Tag.inplace_view in func.tags
    return not view and _name(func) not in LAUNCHES_NOTHING


def reads_host(func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the host waits for the device, or the device for the host's memory."""
    name = _name(func)
    if name in INDEXING:
        is_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        fills = name != "index" and args[2].numel() == 1  # torch fills by the mask itself
        return is_mask and not fills
    if name == "_to_copy":
        return _is_host(args[0].device) != _is_host(kwargs.get("device") or args[0].device)
    if name == "copy_":
        return _is_host(args[0].device) != _is_host(args[1].device)
    return any(tag in func.tags for tag in WAITS)


def _name(func: OpOverload) -> str:
    return str(func.overloadpacket.__name__)


def _is_host(device: torch.device) -> bool:
    return torch.device(device).type == "cpu"

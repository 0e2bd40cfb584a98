"""Gathers of rows from all ranks, and the gradient rule that makes W processes train exactly like one.

Every rank computes the loss of all rows; only its own rows carry gradient. DDP and FSDP average the ranks' gradients,
so a loss multiplies its gradient by the world size: the average is then the gradient of the loss of all rows. The
backward does not communicate.

A rank with invalid input still takes part in the first collective and reports the error there. Every rank then raises
the same error, and no rank waits for another.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

import torch
import torch.distributed as dist
from torch import Tensor

from imbalanced_losses.dispatch import without_autocast
from imbalanced_losses.validation import check_tensor

__all__ = ["GradReduction", "all_gather_no_grad", "all_gather_with_grad"]  # the rest is for the module shells

GradReduction = Literal["mean", "sum"]

# The dtypes that can be gathered; a dtype is sent as its index.
_DTYPES = (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    *(torch.uint16, torch.uint32, torch.uint64),
)
_MAX_DIMENSIONS = 8
_MAX_INTEGERS = 3 + _MAX_DIMENSIONS

Caller = Literal["all_gather", "a ranking loss", "an elementwise loss"]
_CALLERS = ("all_gather", "a ranking loss", "an elementwise loss")


def all_gather_with_grad(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Concatenate the rows of all ranks; gradients flow to the local rows.

    All ranks of the group must call it. The gradient is that of this rank's use of the result: it is neither summed
    over ranks nor multiplied.

    Parameters
    ----------
    tensor : Tensor [N, ...], floating point, integer or bool
        ``N`` may differ between ranks and may be 0. The other sizes and the dtype must be the same on all ranks.
    group : ProcessGroup, optional
        Default: the default group.

    Returns
    -------
    Tensor [sum of N, ...]
        Rows in the order of the ranks. With one rank, the input itself.

    Raises
    ------
    RuntimeError
        If there is no process group, or this process is not in it.
    TypeError, ValueError
        On every rank, if any rank's input is not a tensor of rows or differs from the others' in dtype or shape.

    Notes
    -----
    Cost: two collectives, one of the sizes and one of rows padded to the largest ``N``, and one wait for the sizes.

    Examples
    --------
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> all_gather_with_grad(torch.ones(2, 3)).shape
    torch.Size([2, 3])
    >>> dist.destroy_process_group()
    """
    ranks = _ranks_of(group)
    return tensor if ranks.size == 1 else _gather(tensor, ranks)


def all_gather_no_grad(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Like :func:`all_gather_with_grad`, without gradient.

    Examples
    --------
    >>> import torch.distributed as dist
    >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    >>> all_gather_no_grad(torch.ones(2, requires_grad=True)).requires_grad
    False
    >>> dist.destroy_process_group()
    """
    return all_gather_with_grad(tensor.detach() if isinstance(tensor, Tensor) else tensor, group)


@dataclass(frozen=True, slots=True)
class Ranks:
    """The processes that train together: their group (``None`` is the default group), the world size, this rank."""

    group: dist.ProcessGroup | None
    size: int
    rank: int


def find_ranks(gather_distributed: bool | None, group: dist.ProcessGroup | None) -> Ranks | None:
    """Return the ranks whose rows a loss gathers, or ``None`` if it uses only its own.

    ``gather_distributed``: ``None`` gathers if there is a group of several ranks, ``False`` never, ``True`` raises if
    there is no group.
    """
    if not (_is_initialised() if gather_distributed is None else gather_distributed):
        return None
    ranks = _ranks_of(group)
    return ranks if ranks.size > 1 else None


def with_local_gradient(own: Tensor, value: Tensor, ranks: Ranks, grad_reduction: GradReduction) -> Tensor:
    """Return ``value``, the same on all ranks, with the gradient of ``own``, this rank's part of it.

    The gradient rule: with ``"mean"`` the gradient is multiplied by the world size, because the framework (DDP, FSDP)
    will average gradients over the ranks; with ``"sum"`` it is not.
    """
    factor = ranks.size if grad_reduction == "mean" else 1
    # detach: the compiler cannot trace a Function that takes the same tensor twice
    return _Part.apply(own, value.detach(), factor)  # type: ignore[no-any-return, no-untyped-call]


class _Part(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own: Tensor, value: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return value.clone()  # a view could not be modified in-place, as `loss /= 2` does

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.factor, None, None


def all_gather_header(
    ranks: Ranks,
    caller: Caller,
    device: torch.device,
    facts: Sequence[int],
    error: Exception | None = None,
    totals: Tensor | None = None,
) -> tuple[list[list[int]], Tensor]:
    """Exchange a header in one collective: the caller, an error flag, up to 11 integers and two float64 totals.

    The header has the same length for all callers, so that calls by different callers are detected.

    Returns
    -------
    facts : list of W lists of int
    totals : Tensor [W, 2], float64

    Raises
    ------
    ValueError, TypeError, RuntimeError
        On all ranks: the first failed rank's error, or an error that the callers differ.
    """
    head = [error is not None, _CALLERS.index(caller), *facts, *[0] * (_MAX_INTEGERS - len(facts))]
    totals = torch.zeros(2, dtype=torch.float64, device=device) if totals is None else totals.detach().double()
    own = torch.cat([torch.tensor(head, dtype=torch.int64, device=device), totals.view(torch.int64)])
    everyones = own.new_empty(ranks.size, len(own))
    dist.all_gather(list(everyones), own, group=ranks.group)
    failed, callers, *columns = everyones[:, : len(head)].T.tolist()
    if any(failed):
        _raise_first_error(ranks, error)
    require_equal_on_ranks("what gathers", [_CALLERS[number] for number in callers])
    received = [list(row) for row in zip(*columns[: len(facts)], strict=True)]
    return received, everyones[:, len(head) :].contiguous().view(torch.float64)


def to_report(error: Exception) -> Exception:
    """Return an error of any type, for the next collective to report: the other ranks wait for this one there.

    The exception by which activation checkpointing ends its second pass, on all ranks alike, is raised instead.
    """
    if type(error).__module__ == "torch.utils.checkpoint":
        raise error
    return error


def _raise_first_error(ranks: Ranks, error: Exception | None) -> NoReturn:
    kind = next((kind for kind in (TypeError, ValueError) if isinstance(error, kind)), RuntimeError)
    errors: list[Any] = [None] * ranks.size
    dist.all_gather_object(errors, None if error is None else (kind, str(error)), ranks.group)
    rank, (kind, message) = next((i, found) for i, found in enumerate(errors) if found is not None)
    raise kind(f"rank {rank}: {message}") from error


def header_device(value: object, ranks: Ranks) -> torch.device:
    """Return the value's device. If it is not a tensor, guess the device of the other ranks' tensors."""
    if isinstance(value, Tensor):
        return value.device
    return torch.device("cuda" if "nccl" in dist.get_backend(ranks.group) else "cpu")


def require_equal_on_ranks(what: str, of_ranks: Sequence[object]) -> None:
    """Check that ``what`` is the same on all ranks."""
    if any(value != of_ranks[0] for value in of_ranks):
        found = ", ".join(f"{value} on rank {rank}" for rank, value in enumerate(of_ranks))
        raise ValueError(f"expected {what} to be the same on all ranks, got {found}")


def dtype_number(dtype: torch.dtype) -> int:
    """Return the number that a dtype is sent as."""
    if dtype not in _DTYPES:
        raise TypeError(f"expected a dtype that can be gathered, got {dtype}")
    return _DTYPES.index(dtype)


def dtype_name(number: int) -> str:
    """Return the name of the dtype that is sent as ``number``."""
    return str(_DTYPES[number])


def gather_columns(ranks: Ranks, columns: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """Concatenate the ranks' rows of several tensors ``[N, ...]`` in one collective.

    Rank ``r`` has ``counts[r]`` rows; all other sizes and the dtypes are the same on all ranks. Own rows keep their
    gradient.
    """
    own_bytes = [_as_bytes(column) for column in columns]
    own_rows = torch.cat(own_bytes, 1)
    packed = own_rows.new_zeros(max(counts), own_rows.shape[1])
    packed[: len(own_rows)] = own_rows
    everyones = packed.new_empty(ranks.size, *packed.shape)
    if packed.numel() > 0:  # the same on all ranks
        dist.all_gather(list(everyones), packed, group=ranks.group)
    widths = [part.shape[1] for part in own_bytes]
    gathered = []
    for column, part in zip(columns, torch.split(everyones, widths, -1), strict=True):
        rows = [_from_bytes(part[rank, :n], column) for rank, n in enumerate(counts)]
        rows[ranks.rank] = column
        with without_autocast(column.device):  # it does not join two half types
            gathered.append(torch.cat(rows))
    return gathered


def _as_bytes(column: Tensor) -> Tensor:
    """Return the bytes of ``[N, ...]`` as uint8 ``[N, B]``."""
    rows = column.detach().reshape(len(column), math.prod(column.shape[1:]))
    # cloned: `contiguous` keeps the strides of axes of length 1, which `view` refuses
    return rows.clone(memory_format=torch.contiguous_format).view(torch.uint8)


def _from_bytes(part: Tensor, like: Tensor) -> Tensor:
    flat = part.clone(memory_format=torch.contiguous_format).flatten()
    return flat.view(like.dtype).view(len(part), *like.shape[1:])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _gather(tensor: Tensor, ranks: Ranks) -> Tensor:
    error: Exception | None = None
    facts, device = [0] * _MAX_INTEGERS, header_device(tensor, ranks)
    try:
        _check_rows(tensor)
        rest = list(tensor.shape[1:])
        facts = [len(tensor), dtype_number(tensor.dtype), len(rest), *rest, *[0] * (_MAX_DIMENSIONS - len(rest))]
    except Exception as caught:
        error = to_report(caught)
    everyones, _ = all_gather_header(ranks, "all_gather", device, facts, error)
    require_equal_on_ranks("the dtype", [dtype_name(number) for _, number, *_ in everyones])
    require_equal_on_ranks("the shape of a row", [row[3 : 3 + row[2]] for row in everyones])
    return gather_columns(ranks, [tensor], [row[0] for row in everyones])[0]


def _check_rows(tensor: Tensor) -> None:
    check_tensor("tensor", tensor)
    if not 1 <= tensor.dim() <= 1 + _MAX_DIMENSIONS:
        raise ValueError(f"expected a tensor of 1 to {1 + _MAX_DIMENSIONS} dimensions, got shape {list(tensor.shape)}")


def _is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _ranks_of(group: dist.ProcessGroup | None) -> Ranks:
    if not _is_initialised():
        raise RuntimeError("expected an initialised process group, got none: call torch.distributed.init_process_group")
    rank = dist.get_rank(group)
    if rank < 0:
        raise RuntimeError("expected a process group that this process is in, got one without it")
    return Ranks(group, dist.get_world_size(group), rank)

"""The queue: a ring buffer of past rows, as an immutable state and functions over it.

A queue gives a ranking loss more negatives (and positives) than one batch holds. Its rows are detached. An unfilled
slot is an ignored row, so a fresh queue needs no special case.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values, without_autocast
from imbalanced_losses.pytree import state_dataclass
from imbalanced_losses.rows import Rows
from imbalanced_losses.settings import check_flag, check_ignore_index, check_integer

__all__ = [
    "QueueState",
    "Slots",
    "init_queue",
    "next_slots",
    "push",
    "push_in_place",
    "reset_queue",
    "with_slots",
]


class Slots(NamedTuple):
    """Indices [n] of slots in a queue, and the rows in them, field by field."""

    indices: Tensor
    logits: Tensor
    targets: Tensor
    iid: Tensor
    sample_weight: Tensor


@state_dataclass
class QueueState:
    """The last ``Q`` pushed rows of ``C`` logits.

    Attributes
    ----------
    logits : Tensor [Q, C], floating point
        Raw scores, finite.
    targets : Tensor [Q] or [Q, C], int64
        Class ids, or 0/1 labels if multi-label.
    iid : Tensor [Q], bool
        Whether the row was drawn from the deployment distribution.
    sample_weight : Tensor [Q], float32 or wider
    cursor : Tensor [], int64
        The slot that the next row goes to. Once the buffer is full, it holds the oldest row.
    ignore_index : Tensor [], int64
        The target that marks a slot as ignored. It is part of the state so that :func:`reset_queue` needs no other
        argument, and a loss with another ``ignore_index`` does not mistake an unfilled slot for a row.
    """

    logits: Tensor
    targets: Tensor
    iid: Tensor
    sample_weight: Tensor
    cursor: Tensor
    ignore_index: Tensor

    @property
    def valid(self) -> Tensor:
        """Which labels are not ignored, bool ``[Q]`` or ``[Q, C]``."""
        return self.targets != self.ignore_index


def init_queue(
    queue_size: int,
    num_classes: int,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> QueueState:
    """Make an empty queue.

    Parameters
    ----------
    queue_size : int >= 0
        Number of rows kept; a queue of size 0 keeps nothing.
    num_classes : int >= 1
        Number of columns of the logits.
    multilabel : bool
        Targets are ``[N, C]`` labels instead of ``[N]`` class ids.
    ignore_index : int
        Stored in unfilled slots.
    dtype : torch.dtype
        Dtype of the stored logits. Rows are rounded to it when pushed.

    Raises
    ------
    TypeError, ValueError
        If a size is not an integer or too small, or ``dtype`` is not a floating-point type.

    Examples
    --------
    >>> state = init_queue(4, num_classes=1)
    >>> state.logits.shape, state.targets
    (torch.Size([4, 1]), tensor([-100, -100, -100, -100]))
    """
    queue_size = check_integer("queue_size", queue_size, minimum=0)
    num_classes = check_integer("num_classes", num_classes, minimum=1)
    ignore_index = check_ignore_index("ignore_index", ignore_index)
    multilabel = check_flag("multilabel", multilabel)
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise TypeError(f"expected a floating-point queue dtype, got {dtype!r}")
    shape = (queue_size, num_classes) if multilabel else (queue_size,)
    return QueueState(
        logits=torch.zeros(queue_size, num_classes, dtype=dtype, device=device),
        targets=torch.full(shape, ignore_index, dtype=torch.int64, device=device),
        iid=torch.ones(queue_size, dtype=torch.bool, device=device),
        sample_weight=torch.ones(queue_size, dtype=torch.promote_types(dtype, torch.float32), device=device),
        cursor=torch.zeros((), dtype=torch.int64, device=device),
        ignore_index=torch.full((), ignore_index, dtype=torch.int64, device=device),
    )


def reset_queue(state: QueueState) -> QueueState:
    """Empty the queue: return the state that :func:`init_queue` returned.

    Examples
    --------
    >>> full = push(init_queue(2, 1), torch.ones(2, 1), torch.ones(2).long(), torch.ones(2).bool(), torch.ones(2))
    >>> reset_queue(full).targets
    tensor([-100, -100])
    """
    return QueueState(
        logits=torch.zeros_like(state.logits),
        targets=torch.zeros_like(state.targets) + state.ignore_index,
        iid=torch.ones_like(state.iid),
        sample_weight=torch.ones_like(state.sample_weight),
        cursor=torch.zeros_like(state.cursor),
        ignore_index=state.ignore_index.clone(),
    )


def push(
    state: QueueState,
    logits: Tensor,
    targets: Tensor,
    iid: Tensor,
    sample_weight: Tensor,
    valid: Tensor | None = None,
) -> QueueState:
    """Replace the oldest rows by new ones, detached and in the queue's dtypes.

    If a batch is longer than the queue, its last ``Q`` rows are kept. A row with a logit or weight that is not finite
    in the queue's dtype is stored as an ignored row, so that an overflow does not affect later steps. Cost: O(Q C).

    Parameters
    ----------
    state : QueueState
    logits : Tensor [N, C]
    targets : Tensor [N] or [N, C], int64
    iid : Tensor [N], bool
    sample_weight : Tensor [N]
    valid : Tensor like targets, bool, optional
        False where a target is ignored, in addition to those that equal ``state.ignore_index``.

    Returns
    -------
    QueueState
        A state with the structure, shapes, dtypes and device of ``state``; unchanged fields are the same tensors.
    """
    if min(len(logits), len(state.logits)) == 0:
        return state
    valid = torch.ones_like(targets, dtype=torch.bool) if valid is None else valid
    slots, cursor, values = _to_store(state, Rows(logits, targets, iid, sample_weight, valid))
    # cloned: the cursor is a view
    return _replace_rows(state, slots, values, cursor.clone())


def push_in_place(state: QueueState, rows: Rows) -> None:
    """Like :func:`push`, but overwrite the tensors of ``state``, which are buffers. Cost: O(N C)."""
    if min(len(rows.logits), len(state.logits)) > 0:
        slots, cursor, values = _to_store(state, rows)
        for name, own in values.items():
            getattr(state, name).index_copy_(0, slots, own)
        state.cursor.copy_(cursor)


def next_slots(state: QueueState, n_rows: int) -> Slots:
    """Copy the rows that a push of ``n_rows`` will overwrite."""
    slots = _ring(state, min(n_rows, len(state.logits)))
    return Slots(slots, *(getattr(state, name).index_select(0, slots) for name in Slots._fields[1:]))


def with_slots(state: QueueState, slots: Slots) -> QueueState:
    """Return the queue with these rows put back, in new tensors; the cursor does not change."""
    indices, *rows = slots
    return _replace_rows(state, indices, dict(zip(Slots._fields[1:], rows, strict=True)), state.cursor)


def _replace_rows(state: QueueState, slots: Tensor, values: dict[str, Tensor], cursor: Tensor) -> QueueState:
    """Return the queue with ``values`` in these slots, by field, in new tensors."""
    with without_autocast(state.logits.device):  # it would copy by its own dtype
        fields = {name: getattr(state, name).index_copy(0, slots, own) for name, own in values.items()}
    return QueueState(**fields, cursor=cursor, ignore_index=state.ignore_index)


def _ring(state: QueueState, n_rows: int) -> Tensor:
    """``[n_rows]``: indices of the slots from the cursor on."""
    return (state.cursor + torch.arange(n_rows, device=state.cursor.device)) % max(len(state.logits), 1)


def _to_store(state: QueueState, rows: Rows) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return the slots ``[N]`` to write, the next cursor, and the values to write, by field."""
    capacity = len(state.logits)
    if len(rows.logits) > capacity:  # repeated indices in index_copy are undefined
        rows = Rows(*(values[-capacity:] for values in rows))
    n, logits, stored = len(rows.logits), rows.logits.detach().to(state.logits.dtype), rows.valid
    if not (may_branch_on_values(logits) and math.isfinite(logits.sum())):  # saves four operators
        finite = logits.nan_to_num(0, 0, 0)
        stored = stored & (finite == logits).all(-1, keepdim=stored.dim() == 2)
        logits = finite
    weight = rows.sample_weight.detach().to(state.sample_weight.dtype)
    if weight.dtype != rows.sample_weight.dtype:  # a narrower dtype may overflow
        finite = weight.isfinite()
        stored = stored & (finite[:, None] if stored.dim() == 2 else finite)
        weight = torch.where(finite, weight, 1)
    slots = _ring(state, n + 1)
    values = {
        "logits": logits,
        "targets": torch.where(stored, rows.targets, state.ignore_index),
        "iid": rows.iid,
        "sample_weight": weight,
    }
    return slots[:n], slots[n], values

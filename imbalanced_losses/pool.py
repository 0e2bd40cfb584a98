"""The pool: the live batch and the queue's rows, concatenated, with masks and one row of scores per class.

Ignored labels, live rows and the one-vs-rest split are handled here, once; the losses see scores and masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from imbalanced_losses import remedies
from imbalanced_losses.dispatch import may_branch_on_values
from imbalanced_losses.dtypes import compute_dtype
from imbalanced_losses.queue import QueueState, init_queue
from imbalanced_losses.rows import Rows, Task, parse_rows
from imbalanced_losses.settings import check_flag, check_ignore_index
from imbalanced_losses.validation import check_floating, check_temperature

__all__ = ["Pool", "check_queue", "join_rows", "pool_of_scores"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """M = N live rows, then Q queue rows, as C one-vs-rest problems; shares no memory with batch or queue.

    Attributes
    ----------
    scores : Tensor [C, M], float32 or float64
        0 where not valid; only live rows carry gradient.
    valid : Tensor [C, M], bool
        Rows that are not ignored.
    positive : Tensor [C, M], bool
        Valid rows of the class.
    iid : Tensor [M], bool
        Rows drawn from the deployment distribution.
    sample_weight : Tensor [M]
    n_live : int
        N.
    temperature : Tensor []
    row_index : Tensor [M], int64, optional
        Indices, in the whole pool, of the rows in this one; all rows if left out.
    inclusion_weight : Tensor [M], optional
        One over the row's inclusion probability (approximately, for rows of several classes).
    pair_weight : Tensor [C], optional
        One over the inclusion probability of another positive, given that one positive is in the pool.
    """

    scores: Tensor
    valid: Tensor
    positive: Tensor
    iid: Tensor
    sample_weight: Tensor
    n_live: int
    temperature: Tensor
    row_index: Tensor | None = None
    inclusion_weight: Tensor | None = None
    pair_weight: Tensor | None = None

    @property
    def negative(self) -> Tensor:
        """Bool ``[C, M]``: valid rows of the other classes."""
        return self.valid ^ self.positive

    @property
    def live(self) -> Tensor:
        """Bool ``[M]``: rows of the batch."""
        rows = torch.arange(len(self.iid), device=self.iid.device) if self.row_index is None else self.row_index
        return rows < self.n_live

    @property
    def row_weight(self) -> Tensor:
        """``[C, M]``: the weight of each row in a mean over rows, the same for all classes."""
        weight = self.sample_weight if self.inclusion_weight is None else self.sample_weight * self.inclusion_weight
        return weight.expand_as(self.scores)

    @property
    def row_count(self) -> Tensor | None:
        """``[C, M]``: the number of rows of the whole pool that each row represents; None if that is always 1."""
        return None if self.inclusion_weight is None else self.inclusion_weight.expand_as(self.scores)

    @property
    def positive_weight(self) -> Tensor:
        """``[C, M]``: the weight of each positive in a mean over positives, 0 elsewhere."""
        return self.count(self.positive) * self.sample_weight

    def count(self, rows: Tensor) -> Tensor:
        """What each row of the mask ``rows [..., M]`` adds to a count over the whole pool."""
        counts = rows.to(self.scores.dtype)
        return counts if self.inclusion_weight is None else counts * self.inclusion_weight

    def rank_weights(self, negative: Tensor) -> Tensor | None:
        """``[C, 2, M]``: what each positive and negative adds to the rank of a positive; None if that is always 1."""
        if self.pair_weight is None:
            return None
        return torch.stack([self.positive * self.pair_weight[:, None], self.count(negative)], 1)


def check_queue(state: QueueState, live: Rows, task: Task) -> None:
    """Check that the live rows can be pushed to the queue."""
    if not isinstance(state, QueueState):
        raise TypeError(f"expected queue_state to be a QueueState, got {type(state).__name__}")
    kind = "multi-label" if task.multilabel else "single-label"
    if state.logits.shape[1] != task.num_classes or state.targets.dim() != live.targets.dim():
        shapes = f"logits {list(state.logits.shape)} and targets {list(state.targets.shape)}"
        raise ValueError(f"expected a {kind} queue of {task.num_classes} classes, got one with {shapes}")
    if state.logits.device != live.logits.device:
        device = live.logits.device
        remedy = f"{remedies.for_loss_elsewhere(device)}, init_queue(..., device=...)"
        raise ValueError(f"expected a queue on {device} like the logits, got {state.logits.device}{remedy}")


def join_rows(live: Rows, queue: QueueState, task: Task, temperature: Tensor | float) -> Pool:
    """Join checked rows and a matching queue. An empty pool gets one ignored row, so that M is never 0."""
    dtype = compute_dtype(live.logits)
    # in one dtype before they are joined: autocast refuses to join float16 if its own dtype is another
    live = live._replace(logits=live.logits.to(dtype))
    parts = [live]
    if queue.logits.shape[0] > 0:
        scores, weights = queue.logits.to(dtype), queue.sample_weight.to(dtype)
        parts.append(Rows(scores, queue.targets, queue.iid, weights, queue.valid))
    elif live.logits.shape[0] == 0:
        parts.append(Rows(*(rows.new_zeros(1, *rows.shape[1:]) for rows in live)))
    # transpose, then join: for [C, M] intermediates in two layouts the compiler's default backend generates wrong code
    scores, targets, iid, sample_weight, valid = (
        torch.cat([values.mT if values.dim() == 2 else values for values in field], -1)
        for field in zip(*parts, strict=True)
    )
    valid, positive = _one_vs_rest(targets, valid, task)
    if not (may_branch_on_values(valid) and valid.all()):  # saves two operators, and two in the backward
        scores = torch.where(valid, scores, 0)
    return Pool(
        scores=scores,
        valid=valid,
        positive=positive,
        iid=iid,
        sample_weight=sample_weight,
        n_live=live.logits.shape[0],
        temperature=check_temperature(temperature, scores),
    )


class _Task(NamedTuple):
    num_classes: int
    multilabel: bool
    ignore_index: int


def pool_of_scores(
    scores: Tensor,
    targets: Tensor,
    multilabel: bool,
    ignore_index: int,
    sample_weight: Tensor | None,
    *,
    check_values: bool = False,
) -> Pool:
    """The pool of one batch of scores ``[N]`` or ``[N, C]`` and no queue, for what ranks as the losses do."""
    check_floating("scores", scores)
    ignore_index = check_ignore_index("ignore_index", ignore_index)
    if scores.dim() not in (1, 2):
        raise ValueError(f"expected scores of shape [N] or [N, C], got {list(scores.shape)}")
    task = _Task(1 if scores.dim() == 1 else scores.shape[1], check_flag("multilabel", multilabel), ignore_index)
    check_values = check_values or may_branch_on_values(targets)  # free there
    rows = parse_rows(scores.detach(), targets, task, sample_weight=sample_weight, check_values=check_values)
    queue = init_queue(0, task.num_classes, multilabel=multilabel, ignore_index=ignore_index, device=scores.device)
    return join_rows(rows, queue, task, temperature=1.0)


def _one_vs_rest(targets: Tensor, valid: Tensor, task: Task) -> tuple[Tensor, Tensor]:
    """Return masks ``[C, M]`` of valid rows and of positives.

    ``targets`` and ``valid`` are ``[M]`` or, if multi-label, ``[C, M]``. Targets out of range (unchecked ones, or those
    of a queue that was averaged) are never valid.
    """
    highest = 1 if task.multilabel or task.num_classes == 1 else task.num_classes - 1
    valid = valid & (targets.clamp(0, highest) == targets)
    if task.multilabel:
        return valid, valid & (targets == 1)
    if task.num_classes == 1:
        return valid[None], (valid & (targets == 1))[None]
    classes = torch.arange(task.num_classes, device=targets.device)
    return valid.expand(task.num_classes, -1), valid & (targets == classes[:, None])

"""Diagnostics of a ranking loss's last step: a record of the step, from which statistics are computed on demand.

Nothing here reads a tensor's values, so logging waits for the device only when the numbers are printed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.dispatch import is_traced, version_of
from imbalanced_losses.losses._ranking import PerClass, RankingConfig, RankingStep, mark_invalid
from imbalanced_losses.pool import Pool, join_rows
from imbalanced_losses.queue import QueueState, Slots, next_slots, with_slots
from imbalanced_losses.rows import Rows

__all__ = ["StepRecord", "describe_queue"]


# A pool of up to this many scores (0.4 MB) is kept whole: keeping its parts takes ten operators per step.
KEPT_WHOLE = 1 << 16


class StepRecord(NamedTuple):
    """A step, without its autograd graph.

    For a large pool only the live rows are kept, and the queue's rows that they replaced; the queue holds the others.
    This takes the memory of one batch. ``versions`` shows whether the queue has changed since the step. A sampled pool
    (``max_pool_size``) is kept, because it cannot be drawn again. Once ``stats`` are computed, the pool is dropped.
    """

    config: RankingConfig
    result: PerClass
    n_live: int
    pool: Pool | None
    parts: tuple[Rows, Slots, Tensor] | None
    versions: tuple[object, ...] | None = None
    stats: dict[str, Tensor] | None = None

    @classmethod
    def keep(cls, config: RankingConfig, step: RankingStep, live: Rows) -> StepRecord:
        """Record a step. Call it before the push, while ``step.queue`` holds the rows that the push overwrites."""
        pool, n_live = step.pool, step.pool.n_live
        result = PerClass(loss=step.result.loss.detach(), valid=step.result.valid, diagnostics={})
        if pool.row_index is not None or pool.scores.numel() <= KEPT_WHOLE:
            return cls(config, result, n_live, dataclasses.replace(pool, scores=pool.scores.detach()), None)
        rows = Rows(*(values.detach().clone() for values in live))
        return cls(config, result, n_live, None, (rows, next_slots(step.queue, n_live), pool.temperature))

    def after_push(self, queue: QueueState) -> StepRecord:
        """Add the versions of the queue's tensors, unless the pool is kept or the code is traced."""
        return self if self.parts is None or is_traced() else self._replace(versions=_versions(queue))

    def matches(self, queue: QueueState) -> bool:
        """Whether ``queue`` is as the step left it, if that is known."""
        return self.versions is None or self.versions == _versions(queue)

    def settle(self, queue: QueueState, exact: Exact) -> StepRecord:
        """Replace the step's pool by its statistics; ``queue`` is the queue after the step."""
        if self.stats is not None:
            return self
        pool, result = self._find_pool(queue), mark_invalid(self.result)
        metric, details = exact(pool, self.config)
        gap = result.loss - (1 - metric) if pool.row_index is None else torch.full_like(result.loss, torch.nan)
        live_positives = (pool.positive & pool.live).sum(-1)
        stats = {"loss": result.loss, "valid": result.valid, "gap": gap, "live_positives": live_positives, **details}
        return self._replace(pool=None, parts=None, stats=stats)

    def _find_pool(self, queue: QueueState) -> Pool:
        if self.pool is not None:
            return self.pool
        assert self.parts is not None
        if not self.matches(queue):
            raise RuntimeError(
                "expected the queue as the last pass left it, got one that something else has filled since: call "
                "diagnostics() before, or after the next pass"
            )
        rows, slots, temperature = self.parts
        return join_rows(rows, with_slots(queue, slots), self.config, temperature)


Exact = Callable[[Pool, Any], tuple[Tensor, dict[str, Tensor]]]
"""Returns a pool's exact metric ``[C]``, which the loss approximates, and further statistics."""


def describe_queue(queue: QueueState, n_live: int) -> dict[str, Tensor]:
    """Return the queue's current fill and age, after batches of ``n_live`` rows."""
    held = queue.valid if queue.valid.dim() == 1 else queue.valid.any(1)
    fill = held.sum(dtype=torch.float32) / max(len(held), 1)
    return {"queue_fill": fill, "queue_age": _age(held, queue.cursor, n_live)}


def _versions(queue: QueueState) -> tuple[object, ...]:
    return tuple(map(version_of, (queue.logits, queue.targets, queue.iid, queue.sample_weight, queue.cursor)))


def _age(held: Tensor, cursor: Tensor, n_live: int) -> Tensor:
    """Steps since the oldest of the rows ``held [Q]`` was pushed, assuming batches as large as the last one."""
    rows_ago = (cursor - 1 - torch.arange(len(held), device=held.device)) % max(len(held), 1) + 1
    ages = torch.where(held, rows_ago, 0)
    oldest = torch.cat([ages, ages.new_zeros(1)]).amax()  # 0 for an empty queue
    return (oldest + max(n_live, 1) - 1) // max(n_live, 1)

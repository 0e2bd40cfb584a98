"""What a ranking loss's last pass looked like: kept is what its pool can be put together from, if someone asks.

Nothing here reads a tensor: logging waits for the device no sooner than its numbers are printed.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.losses._ranking import PerClass, RankingConfig, mark_invalid
from imbalanced_losses.pool import Pool, join_rows
from imbalanced_losses.queue import QueueState, Slots, next_slots, with_slots
from imbalanced_losses.rows import Rows

__all__ = ["StepRecord", "describe"]


# Up to this many scores (0.4 MB) a pool is kept whole: to keep its parts takes ten operators a step.
KEPT_WHOLE = 1 << 16


class StepRecord(NamedTuple):
    """A pass without its graph.

    Of a large pool only the live rows are kept, and those that they replace in the queue, which holds the others: this
    takes memory for the rows of a batch. A sample of a pool (``max_pool_size``) is kept: it cannot be drawn again.
    """

    config: RankingConfig
    result: PerClass
    pool: Pool | None
    parts: tuple[Rows, Slots, Tensor] | None

    @classmethod
    def keep(cls, config: RankingConfig, result: PerClass, pool: Pool, live: Rows, queue: QueueState) -> StepRecord:
        """``queue`` is as it is before the push."""
        result = PerClass(loss=result.loss.detach(), valid=result.valid, diagnostics={})
        if pool.kept is not None or pool.scores.numel() <= KEPT_WHOLE:
            return cls(config, result, dataclasses.replace(pool, scores=pool.scores.detach()), None)
        rows = Rows(*(values.detach().clone() for values in live))
        return cls(config, result, None, (rows, next_slots(queue, len(rows.logits)), pool.temperature))

    def find_pool(self, queue: QueueState) -> Pool:
        """The pool of the pass, which left ``queue`` behind."""
        if self.pool is not None:
            return self.pool
        assert self.parts is not None
        rows, slots, temperature = self.parts
        return join_rows(rows, with_slots(queue, slots), self.config, temperature)


def describe(
    last: StepRecord, pool: Pool, queue: QueueState, exact: Tensor, details: dict[str, Tensor]
) -> dict[str, Tensor]:
    """What all ranking losses tell, and the ``details`` of one; ``exact [C]`` is the metric that it stands in for."""
    result = mark_invalid(last.result)
    loss = result.loss
    held = queue.valid if queue.valid.dim() == 1 else queue.valid.any(1)
    return {
        "loss": loss,
        "valid": result.valid,
        "gap": loss - (1 - exact) if pool.kept is None else torch.full_like(loss, torch.nan),
        "live_positives": (pool.positive & pool.live).sum(-1),
        "queue_fill": held.sum() / max(len(held), 1),
        "queue_age": _age(held, queue.cursor, pool.n_live),
        **details,
    }


def _age(held: Tensor, cursor: Tensor, n_live: int) -> Tensor:
    """Steps since the oldest of the rows ``held [Q]`` was pushed, if all batches were as large as the last one."""
    rows_ago = (cursor - 1 - torch.arange(len(held), device=held.device)) % max(len(held), 1) + 1
    ages = torch.where(held, rows_ago, 0)
    oldest = torch.cat([ages, ages.new_zeros(1)]).amax()  # 0 for an empty queue
    return (oldest + max(n_live, 1) - 1) // max(n_live, 1)

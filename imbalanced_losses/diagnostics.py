"""What a ranking loss's last pass looked like: its pool is kept, and looked at only when someone asks.

Nothing here reads a tensor: logging waits for the device no sooner than its numbers are printed.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.losses.pauc_at_budget import (
    PAUCAtBudgetConfig,
    measure_pauc_at_budget,
    numerator_rows,
    reference_population,
)
from imbalanced_losses.losses.recall_at_quantile import RecallAtQuantileConfig, alert_threshold
from imbalanced_losses.metrics import average_precision_of, partial_auc_of, share_of_positives
from imbalanced_losses.pool import PerClass, Pool, mark_invalid
from imbalanced_losses.queue import QueueState

__all__ = ["LastPass", "describe", "look_at_average_precision", "look_at_partial_auc", "look_at_recall"]


class LastPass(NamedTuple):
    """A pass's pool and what ``measure_*`` gave, without gradient."""

    pool: Pool
    result: PerClass

    @classmethod
    def keep(cls, pool: Pool, result: PerClass) -> LastPass:
        """Cut the graph off; the pool's memory is its own."""
        pool = dataclasses.replace(pool, scores=pool.scores.detach())
        return cls(pool, PerClass(loss=result.loss.detach(), valid=result.valid, diagnostics={}))


def describe(last: LastPass, queue: QueueState, exact: Tensor, details: dict[str, Tensor]) -> dict[str, Tensor]:
    """What all ranking losses tell, and the ``details`` of one; ``exact [C]`` is the metric that it stands in for."""
    pool, result = last.pool, mark_invalid(last.result)
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


def look_at_average_precision(pool: Pool) -> tuple[Tensor, dict[str, Tensor]]:
    """The exact metric of a pool, and no details."""
    return average_precision_of(pool), {}


def look_at_recall(pool: Pool, cfg: RecallAtQuantileConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The exact metric of a pool, and the threshold."""
    threshold = alert_threshold(pool, cfg)
    return share_of_positives(pool, pool.scores >= threshold), {"threshold": threshold[:, 0]}


def look_at_partial_auc(pool: Pool, cfg: PAUCAtBudgetConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The exact metric of a pool, and its band."""
    reference, weight = reference_population(pool, cfg), numerator_rows(pool, cfg) * pool.row_weight
    exact = partial_auc_of(pool.scores, reference, weight, cfg.alpha, cfg.beta)
    return exact, measure_pauc_at_budget(pool, cfg, diagnose=True).diagnostics

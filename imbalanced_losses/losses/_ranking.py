"""What every ranking loss is made of: its configuration, its step and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, get_args

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values
from imbalanced_losses.pool import Pool, check_queue, join_rows
from imbalanced_losses.pytree import state_dataclass
from imbalanced_losses.queue import QueueState, push
from imbalanced_losses.reductions import Reduction, reduce_classes
from imbalanced_losses.rows import Rows, parse_rows
from imbalanced_losses.sampling import subsample
from imbalanced_losses.settings import (
    check_choice,
    check_config,
    check_fields,
    check_flag,
    check_ignore_index,
    check_integer,
    check_normal_number,
    optional,
)
from imbalanced_losses.spread import TAU_SCALES, TauScale

__all__ = ["PerClass", "RankingConfig", "RankingStep", "evaluate", "mark_invalid", "ranking_step", "reduced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankingConfig:
    """The options of every ranking loss."""

    num_classes: int
    temperature: float = 0.01
    reduction: Reduction = "mean"
    ignore_index: int = -100
    max_pool_size: int | None = None
    multilabel: bool = False
    tau_scale: TauScale = "none"

    _tau_scales: ClassVar[tuple[str, ...]] = TAU_SCALES

    def __post_init__(self) -> None:
        check_fields(
            self,
            num_classes=partial(check_integer, minimum=1),
            temperature=check_normal_number,
            reduction=partial(check_choice, choices=get_args(Reduction)),
            ignore_index=check_ignore_index,
            max_pool_size=optional(partial(check_integer, minimum=2)),
            multilabel=check_flag,
            tau_scale=partial(check_choice, choices=self._tau_scales),
        )


@state_dataclass
class PerClass:
    """A ranking loss before its reduction.

    Attributes
    ----------
    loss : Tensor [C]
        ``nan`` at each invalid class.
    valid : Tensor [C], bool
        Whether the class had what the loss needs (see there).
    diagnostics : dict of Tensor [C]
        Detached; empty but for pAUC and the losses at a recall.
    """

    loss: Tensor
    valid: Tensor
    diagnostics: dict[str, Tensor]


class RankingStep(NamedTuple):
    """What a step makes of rows and a queue: per-class losses (0 at invalid classes), their pool, the next queue."""

    result: PerClass
    pool: Pool
    queue: QueueState


Objective = Callable[[Pool, Any], PerClass]
"""The loss of a pool under a configuration, 0 at invalid classes."""


def ranking_step(
    objective: Objective,
    rows: Rows,
    queue: QueueState,
    cfg: RankingConfig,
    *,
    temperature: Tensor | float | None = None,
    update_queue: bool = True,
    generator: torch.Generator | None = None,
) -> RankingStep:
    """Rows and queue -> pool -> losses -> next queue: what the pure functions and the modules do.

    The pool is a copy, so a queue buffer that is overwritten before the backward does no harm.
    """
    check_queue(queue, rows, cfg)
    pool = join_rows(rows, queue, cfg, cfg.temperature if temperature is None else temperature)
    if cfg.max_pool_size is not None and pool.scores.shape[1] > cfg.max_pool_size:
        pool = subsample(pool, cfg.max_pool_size, cfg.multilabel, generator)
    result = objective(pool, cfg)
    return RankingStep(result, pool, push(queue, *rows) if update_queue else queue)


def evaluate(
    objective: Objective,
    config: type[RankingConfig],
    logits: Tensor,
    targets: Tensor,
    queue_state: QueueState,
    cfg: RankingConfig,
    *,
    iid_mask: Tensor | None,
    sample_weight: Tensor | None,
    **options: Any,
) -> RankingStep:
    """The step of a pure function, whose arguments these are; ``config`` is the class that ``cfg`` must be of."""
    check_config(cfg, config)
    rows = parse_rows(logits, targets, cfg, iid_mask, sample_weight)
    return ranking_step(objective, rows, queue_state, cfg, **options)


def mark_invalid(result: PerClass) -> PerClass:
    """A step's result as users see it: ``nan`` at invalid classes.

    A class with a logit that is not finite is valid, and ``nan``, too.
    """
    if may_branch_on_values(result.valid) and result.valid.all():
        return result
    valid = result.valid | result.loss.isnan()
    return dataclasses.replace(result, loss=torch.where(valid, result.loss, torch.nan), valid=valid)


def reduced(result: PerClass, cfg: RankingConfig) -> Tensor:
    """The loss of a step's result."""
    return reduce_classes(result.loss, result.valid, cfg.reduction)

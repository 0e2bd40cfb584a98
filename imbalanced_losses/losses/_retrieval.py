"""What the retrieval losses are made of: their configuration, their step and its reduction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from imbalanced_losses.embeddings import (
    SIMILARITIES,
    RetrievalProblems,
    Similarity,
    check_memory,
    join_memory,
    parse_embeddings,
)
from imbalanced_losses.queue import QueueState, push
from imbalanced_losses.reductions import Reduction, mean_over_weight
from imbalanced_losses.rows import Rows
from imbalanced_losses.settings import (
    check_choice,
    check_config,
    check_fields,
    check_ignore_index,
    check_integer,
    check_normal_number,
)

__all__ = ["RetrievalConfig", "RetrievalStep", "evaluate", "retrieval_step"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalConfig:
    """The options of every retrieval loss."""

    embedding_size: int
    similarity: Similarity = "cosine"
    temperature: float = 0.01
    reduction: Reduction = "mean"
    ignore_index: int = -100

    def __post_init__(self) -> None:
        check_fields(
            self,
            embedding_size=partial(check_integer, minimum=1),
            similarity=partial(check_choice, choices=SIMILARITIES),
            temperature=check_normal_number,
            reduction=partial(check_choice, choices=get_args(Reduction)),
            ignore_index=check_ignore_index,
        )


class RetrievalStep(NamedTuple):
    """What a step makes of rows and a memory."""

    loss: Tensor
    """``[]``, or ``[N]`` without reduction."""
    has_valid: Tensor
    """Bool ``[]``: whether any query counts."""
    queue: QueueState


Objective = Callable[[RetrievalProblems, Any], tuple[Tensor, Tensor]]
"""The loss ``[N]`` of each query under a configuration, 0 without positives, and its number of positives ``[N]``."""


def retrieval_step(
    objective: Objective,
    rows: Rows,
    queue: QueueState,
    cfg: RetrievalConfig,
    *,
    temperature: Tensor | float | None = None,
    update_queue: bool = True,
) -> RetrievalStep:
    """Rows and memory -> similarities -> losses -> next memory: what the pure functions and the modules do."""
    check_memory(queue, rows, cfg)
    problems = join_memory(rows, queue, cfg, cfg.temperature if temperature is None else temperature)
    loss, n_positives = objective(problems, cfg)
    valid = (n_positives > 0) & (problems.weight > 0)
    reduced = _reduce_queries(loss, valid, problems.weight, cfg.reduction)
    reduced = reduced[: problems.n_live] if cfg.reduction == "none" else reduced
    return RetrievalStep(reduced, valid.any(), push(queue, *rows) if update_queue else queue)


def _reduce_queries(loss: Tensor, valid: Tensor, weight: Tensor, reduction: Reduction) -> Tensor:
    """Reduce the losses ``[N]``, which are 0 where invalid, and ``nan`` where a similarity is not finite."""
    if reduction == "none":
        return torch.where(valid | loss.isnan(), loss * weight, torch.nan)
    total = (loss * weight).sum()
    return total if reduction == "sum" else mean_over_weight(total, torch.where(valid, weight, 0).sum())


def evaluate(
    objective: Objective,
    config: type[RetrievalConfig],
    embeddings: Tensor,
    labels: Tensor,
    queue_state: QueueState,
    cfg: RetrievalConfig,
    *,
    sample_weight: Tensor | None,
    **options: Any,
) -> tuple[Tensor, QueueState]:
    """The results of a pure function, whose arguments these are; ``config`` is the class that ``cfg`` must be of."""
    check_config(cfg, config)
    rows = parse_embeddings(embeddings, labels, cfg, sample_weight)
    step = retrieval_step(objective, rows, queue_state, cfg, **options)
    return step.loss, step.queue

"""The ranking losses in the configurations in which ``tau_scale`` takes different ways through the code."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    PAUCAtBudgetLoss,
    QueueState,
    RecallAtQuantileConfig,
    RecallAtQuantileLoss,
    SmoothAPConfig,
    SmoothAPLoss,
    init_queue,
    pauc_at_budget,
    pauc_at_budget_per_class,
    recall_at_quantile,
    recall_at_quantile_per_class,
    smooth_ap,
    smooth_ap_per_class,
)
from imbalanced_losses.testing import RankingBatch

SPREADS = ("std", "iqr")
IGNORE = -100


@dataclass(frozen=True)
class Case:
    """One loss in one configuration."""

    function: Callable[..., tuple[Tensor, QueueState]]
    per_class: Callable[..., Any]
    config: Callable[..., Any]
    shell: Callable[..., Any]
    options: Mapping[str, Any]

    def configured(self, **changes: Any) -> Any:
        return self.config(**{"num_classes": 1, "temperature": 0.4, "reduction": "none", **self.options, **changes})

    def module(self, **changes: Any) -> Any:
        return self.shell(**{"num_classes": 1, "temperature": 0.4, "queue_size": 8, **self.options, **changes})

    def run(self, batch: RankingBatch, **changes: Any) -> tuple[Tensor, Tensor]:
        """The losses ``[C]``, nan if invalid, and the gradient of their sum."""
        kind = {"num_classes": batch.num_classes, "multilabel": batch.multilabel}
        logits = batch.logits.clone().requires_grad_()
        arguments = (logits, batch.targets, batch.queue_state, self.configured(**{**kind, **changes}))
        loss, _ = self.function(*arguments, **batch.kwargs)
        (gradient,) = torch.autograd.grad(torch.where(loss.isnan() & logits.isfinite().all(), 0, loss).sum(), logits)
        return loss.detach(), gradient


_SMOOTH_AP = (smooth_ap, smooth_ap_per_class, SmoothAPConfig, SmoothAPLoss)
_RECALL = (recall_at_quantile, recall_at_quantile_per_class, RecallAtQuantileConfig, RecallAtQuantileLoss)
_PAUC = (pauc_at_budget, pauc_at_budget_per_class, PAUCAtBudgetConfig, PAUCAtBudgetLoss)

CASES = {
    "smooth_ap": Case(*_SMOOTH_AP, {}),
    "recall": Case(*_RECALL, {"quantile": 0.3}),
    "recall_implicit": Case(*_RECALL, {"quantile": 0.3, "threshold_gradient": "implicit"}),
    "recall_linear": Case(*_RECALL, {"quantile": 0.4, "quantile_interpolation": "linear"}),
    "trapezoid": Case(*_PAUC, {"beta": 0.6}),
    "pairwise": Case(*_PAUC, {"beta": 0.6, "surrogate": "pairwise"}),
}


def batch_of(
    n: int = 40,
    classes: int = 1,
    dtype: torch.dtype = torch.float64,
    queue_size: int = 0,
    multilabel: bool = False,
    seed: int = 0,
) -> RankingBatch:
    """Rows with every label, one of which is ignored; with a queue, some that are already there."""
    generator = torch.Generator().manual_seed(seed)

    def rows(count: int) -> tuple[Tensor, Tensor]:
        shape = (count, classes) if multilabel else (count,)
        targets = torch.randint(0, 2 if multilabel else max(2, classes), shape, generator=generator)
        targets[-1] = IGNORE
        return torch.randn(count, classes, generator=generator, dtype=torch.float64).to(dtype), targets

    state = init_queue(queue_size, classes, multilabel=multilabel, dtype=torch.promote_types(dtype, torch.float32))
    if queue_size:
        logits, targets = rows(queue_size - 2)
        full = torch.cat([logits.to(state.logits.dtype), state.logits[-2:]])
        marked = torch.cat([targets, state.targets[-2:]])
        state = dataclasses.replace(state, logits=full, targets=marked)
    return RankingBatch(*rows(n), state)


def scaled(batch: RankingBatch, factor: float, shift: float = 0.0) -> RankingBatch:
    """All scores times ``factor``, plus ``shift`` times ``factor``."""
    queue = dataclasses.replace(batch.queue_state, logits=(batch.queue_state.logits + shift) * factor)
    return dataclasses.replace(batch, logits=(batch.logits + shift) * factor, queue_state=queue)


# --- the unit, as a reader of the definition would write it down ------------------------------------------------------


def scores_of_unit(case: Case, batch: RankingBatch, label: int, cfg: Any) -> np.ndarray:
    """The scores whose spread is the unit: of rows that are not ignored, for pAUC of the iid negatives among them."""
    state, kept = batch.queue_state, []
    iid = torch.ones(len(batch.logits), dtype=torch.bool) if batch.iid_mask is None else batch.iid_mask
    rows = [*zip(batch.logits, batch.targets, iid, strict=True)]
    rows += [*zip(state.logits, state.targets, state.iid, strict=True)]
    for logits, target, is_iid in rows:
        own = int(target[label] if batch.multilabel else target)
        is_positive = own == (label if batch.num_classes > 1 and not batch.multilabel else 1)
        if own != IGNORE and not (isinstance(cfg, PAUCAtBudgetConfig) and (is_positive or not is_iid)):
            kept.append(float(logits[label]))
    return np.array(kept)


def unit(scores: np.ndarray, cfg: Any) -> float:
    """Interquartile range; without one, or for "std", the standard deviation; without that 1."""
    if len(scores) == 0 or scores.min() == scores.max():
        return 1.0
    if cfg.tau_scale == "iqr":
        upper, lower = np.quantile(scores, [0.75, 0.25], method=getattr(cfg, "quantile_interpolation", "linear"))
        if upper > lower:
            return float(upper - lower)
    mean = sum(scores) / len(scores)
    return float(np.sqrt(sum((score - mean) ** 2 for score in scores) / len(scores)))

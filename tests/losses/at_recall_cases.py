"""The losses at a fixed recall as their formulas read: one class, one pool, NumPy, float64, loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume
from scipy.optimize import brentq
from scipy.special import expit
from torch import Tensor

from imbalanced_losses import (
    FPRAtRecallConfig,
    FPRAtRecallLoss,
    PerClass,
    PrecisionAtRecallConfig,
    PrecisionAtRecallLoss,
    QueueState,
    fpr_at_recall,
    fpr_at_recall_per_class,
    metrics,
    precision_at_recall,
    precision_at_recall_per_class,
)
from tests.parity.reference import Pool, pool_of
from tests.strategies import Problem, RankingLoss


@dataclass(frozen=True)
class AtRecall:
    """One of the two losses."""

    name: str
    names: RankingLoss
    metric: Callable[..., Tensor]

    def config(self, problem: Problem, **options: Any) -> Any:
        kind = {"num_classes": problem.num_classes, "multilabel": problem.multilabel}
        return self.names.config(**{"temperature": 0.5, "recall": 0.7, **kind, **options})

    def shell(self, problem: Problem, **options: Any) -> Any:
        kind = {"num_classes": problem.num_classes, "multilabel": problem.multilabel}
        return self.names.shell(**{"temperature": 0.5, "recall": 0.7, "queue_size": 0, **kind, **options})

    def run(self, problem: Problem, extras: dict[str, Any] | None = None, **options: Any) -> Result:
        """Loss, gradient of its sum and new state; ``options`` go to the config, ``extras`` to the call."""
        logits = problem.logits.detach().clone().requires_grad_()
        arguments = {**problem.extras, **(extras or {})}
        config = self.config(problem, **options)
        loss, state = self.names.function(logits, problem.targets, problem.state, config, **arguments)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        return Result(loss.detach(), gradient, state)

    def per_class(self, problem: Problem, **options: Any) -> PerClass:
        config = self.config(problem, **options)
        return self.names.per_class(problem.logits, problem.targets, problem.state, config, **problem.extras)[0]


@dataclass(frozen=True)
class Result:
    loss: Tensor
    gradient: Tensor
    state: QueueState


PRECISION = AtRecall(
    "precision",
    RankingLoss(precision_at_recall, precision_at_recall_per_class, PrecisionAtRecallConfig, PrecisionAtRecallLoss),
    metrics.precision_at_recall,
)
FPR = AtRecall(
    "fpr",
    RankingLoss(fpr_at_recall, fpr_at_recall_per_class, FPRAtRecallConfig, FPRAtRecallLoss),
    metrics.fpr_at_recall,
)
both = pytest.mark.parametrize("loss", [PRECISION, FPR], ids=["precision", "fpr"])
gradients = pytest.mark.parametrize("mode", ["implicit", "stop"])


# --- the formulas -----------------------------------------------------------------------------------------------------


def find_threshold(pool: Pool, recall: float) -> tuple[float, float] | None:
    """The highest score of a positive at which the recall is reached, and the weight found; None if there is none."""
    positives = [i for i in range(len(pool.scores)) if pool.positive[i] and pool.weight[i] > 0]
    total = sum(pool.weight[i] for i in positives)
    reached = []
    for i in positives:
        found = sum(pool.weight[k] for k in positives if pool.scores[k] >= pool.scores[i])
        if found >= recall * total - 1e-12 * total:
            reached.append((pool.scores[i], found))
    return max(reached) if reached else None


def loss_at(name: str, scores: np.ndarray, pool: Pool, threshold: float, found: float, tau: float) -> float:
    negatives = [j for j in range(len(scores)) if not pool.positive[j]]
    false_alerts = sum(pool.weight[j] * expit((scores[j] - threshold) / tau) for j in negatives)
    if name == "precision":
        return float(1 - found / (found + false_alerts))
    return float(false_alerts / sum(pool.weight[j] for j in negatives))


def is_valid(pool: Pool) -> bool:
    return bool(pool.weight[pool.positive].sum() > 0 and pool.weight[pool.negative].sum() > 0)


def reference(loss: AtRecall, problem: Problem, cfg: Any) -> dict[str, Tensor]:
    """``loss``, ``threshold`` and ``recall`` of each class, nan where it is invalid."""
    rows = []
    for label in range(problem.num_classes):
        pool = pool_of(problem, label)
        if not is_valid(pool):
            rows.append((np.nan, np.nan, np.nan))
            continue
        threshold, found = find_threshold(pool, cfg.recall)
        value = loss_at(loss.name, pool.scores, pool, threshold, found, cfg.temperature)
        rows.append((value, threshold, found / pool.weight[pool.positive].sum()))
    columns = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(1)
    return dict(zip(("loss", "threshold", "recall"), columns, strict=True))


def reference_gradient(loss: AtRecall, problem: Problem, cfg: Any) -> Tensor:
    """Finite differences of the sum over classes; with "implicit" the soft quantile is solved for the moved scores."""
    result = torch.zeros(problem.logits.shape, dtype=torch.float64)
    for label in range(problem.num_classes):
        pool = pool_of(problem, label)
        if not is_valid(pool):
            continue
        threshold, found = find_threshold(pool, cfg.recall)
        step = 1e-4 * cfg.temperature
        for i, row in enumerate(pool.live_rows):
            values = []
            for sign in (1, -1):
                scores = pool.scores.copy()
                scores[i] += sign * step
                moved = threshold
                if cfg.threshold_gradient == "implicit":
                    moved = solve_soft_quantile(scores, pool, threshold, cfg.temperature)
                values.append(loss_at(loss.name, scores, pool, moved, found, cfg.temperature))
            result[row, label] = (values[0] - values[1]) / (2 * step)
    return result


def solve_soft_quantile(scores: np.ndarray, pool: Pool, threshold: float, tau: float) -> float:
    """The threshold at which the positives' soft count is what it was before their scores moved."""

    def count(at: np.ndarray, theta: float) -> float:
        return float((pool.weight * expit((at - theta) / tau))[pool.positive].sum())

    before = count(pool.scores, threshold)
    return float(brentq(lambda theta: count(scores, theta) - before, threshold - tau, threshold + tau, xtol=1e-13))


def assume_steep(problem: Problem, cfg: Any) -> None:
    """A soft quantile that does not move is too flat to be solved in float64."""
    for label in range(problem.num_classes):
        pool = pool_of(problem, label)
        if is_valid(pool):
            soft = expit((pool.scores - find_threshold(pool, cfg.recall)[0]) / cfg.temperature)
            assume((pool.weight * soft * (1 - soft))[pool.positive].sum() > 1e-4)

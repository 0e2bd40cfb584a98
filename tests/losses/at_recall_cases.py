"""The losses at a fixed recall as something that runs problems."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalanced_losses import (
    PerClass,
    QueueState,
    metrics,
)
from tests.registry import RANKING, RankingLoss
from tests.strategies import Problem


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


PRECISION = AtRecall("precision", RANKING["precision_at_recall"], metrics.precision_at_recall)
FPR = AtRecall("fpr", RANKING["fpr_at_recall"], metrics.fpr_at_recall)
both = pytest.mark.parametrize("loss", [PRECISION, FPR], ids=["precision", "fpr"])
gradients = pytest.mark.parametrize("mode", ["implicit", "stop"])

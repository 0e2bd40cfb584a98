"""The contract matrix: every variant of every ranking loss in the registry, as something that runs problems.

``CASES`` x ``KINDS`` (binary, multi-class, multi-label) x with and without a queue is the matrix. A test either walks
it with a fixed problem (``example``) or lets hypothesis draw kind, queue and rows (``strategies.problems``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalanced_losses import PerClass, QueueState, init_queue
from imbalanced_losses.queue import push
from tests.registry import RANKING, VARIANTS, RankingLoss, Variant
from tests.strategies import IGNORE, KINDS, Problem


@dataclass(frozen=True)
class Case:
    """One loss in one configuration, for problems of any kind."""

    name: str
    loss_name: str
    options: Mapping[str, Any]

    @property
    def loss(self) -> RankingLoss:
        return RANKING[self.loss_name]

    @property
    def variant(self) -> Variant:
        return self.loss.variants.get(self.name, Variant())

    @property
    def most(self) -> float:
        """The largest loss."""
        return self.variant.most

    @property
    def live_numerator(self) -> bool:
        return self.options.get("pos_numerator") == "live"

    @property
    def is_smooth(self) -> bool:
        """Whether it has no threshold, and no scale that is held."""
        return self.loss.smooth and "tau_scale" not in self.options

    @property
    def needs_negatives(self) -> bool:
        """Whether a class without negatives is invalid."""
        return self.loss.needs_negatives or self.options.get("budget_basis") == "fpr"

    @property
    def implicit(self) -> bool:
        """Whether the threshold follows the scores."""
        cfg = self.loss.config(num_classes=1, **self.options)
        return getattr(cfg, "threshold_gradient", "stop") == "implicit"

    def with_options(self, **changes: Any) -> Case:
        return replace(self, options={**self.options, **changes})

    def config(self, problem: Problem, **changes: Any) -> Any:
        kind = {"num_classes": problem.num_classes, "multilabel": problem.multilabel}
        return self.loss.config(**{**kind, **self.options, **changes})

    def shell(self, problem: Problem, **changes: Any) -> Any:
        kind = {"num_classes": problem.num_classes, "multilabel": problem.multilabel}
        return self.loss.shell(**{**kind, **self.options, "queue_size": 4, **changes})

    def run(self, problem: Problem, extras: Mapping[str, Any] | None = None, **changes: Any) -> Result:
        """Loss, gradient of its sum and new state; ``changes`` go to the config, ``extras`` to the call."""
        logits = problem.logits.detach().clone().requires_grad_()
        arguments = {**problem.extras, **(extras or {})}
        config = self.config(problem, **changes)
        loss, state = self.loss.function(logits, problem.targets, problem.state, config, **arguments)
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        return Result(loss.detach(), gradient, state)

    def per_class(self, problem: Problem, **changes: Any) -> PerClass:
        config = self.config(problem, **changes)
        return self.loss.per_class(problem.logits, problem.targets, problem.state, config, **problem.extras)[0]


@dataclass(frozen=True)
class Result:
    loss: Tensor
    gradient: Tensor
    state: QueueState


LOSS_OF = {name: loss_name for loss_name, loss in RANKING.items() for name in loss.variants}
CASES = [Case(name, LOSS_OF[name], {"temperature": 0.5, **variant.options}) for name, (_, variant) in VARIANTS.items()]


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


DEFAULTS = [Case(name, name, {}) for name in RANKING]


def _parametrize(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


over = {
    "cases": _parametrize(CASES),
    "losses": _parametrize([case_named(next(iter(loss.variants))) for loss in RANKING.values()]),
    "defaults": _parametrize(DEFAULTS),
    "pauc": _parametrize([case for case in CASES if case.loss_name == "pauc"]),
    "implicit": _parametrize([case for case in CASES if case.implicit]),
    "kinds": pytest.mark.parametrize("kind", KINDS),
    "queue": pytest.mark.parametrize("with_queue", [False, True], ids=["no_queue", "queue"]),
}
"""The axes of the matrix, as decorators."""


def example(
    kind: str = "binary",
    with_queue: bool = True,
    *,
    n: int = 14,
    capacity: int = 16,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Problem:
    """``n`` live rows and a queue that is three quarters full: every class is valid in every case."""
    generator = torch.Generator().manual_seed(seed)
    num_classes, multilabel = KINDS[kind]
    filled = 3 * capacity // 4 if with_queue else 0
    m = n + filled
    # a whole number of cycles in the live rows, so that every class has live positives and live negatives
    targets = torch.arange(m) % max(2, num_classes)
    if multilabel:
        targets = ((torch.arange(m)[:, None] + torch.arange(num_classes)) % 4 < 2).long()
        targets[7, 0] = IGNORE
    targets[5] = IGNORE
    logits = torch.randn(m, num_classes, generator=generator, dtype=torch.float64).to(dtype)
    iid = torch.arange(m) % 5 != 4
    weight = 0.5 + torch.rand(m, generator=generator, dtype=torch.float64).to(dtype)
    state = init_queue(capacity * with_queue, num_classes, multilabel=multilabel, dtype=dtype)
    state = push(state, logits[n:], targets[n:], iid[n:], weight[n:])
    return Problem(logits[:n], targets[:n], state, iid[:n], weight[:n])


def leaves(state: QueueState) -> dict[str, Tensor]:
    return {name: getattr(state, name) for name in type(state).__dataclass_fields__}


def assert_same_state(left: QueueState, right: QueueState) -> None:
    for name, leaf in leaves(left).items():
        torch.testing.assert_close(leaf, leaves(right)[name], rtol=0, atol=0, equal_nan=True, msg=name)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal up to the order of summation, in float64, relative to the largest element."""
    size = expected.abs().nan_to_num().max().clamp(min=1.0).item() if expected.numel() else 1.0
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance * size, equal_nan=True)

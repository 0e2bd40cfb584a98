"""The traced variants of the registry as cases that the tests of transforms, shells and checkpoints walk through.

Every case is one ranking loss in one configuration. Inputs are six live rows and a queue of eight that has wrapped:
small enough to compile often, with positives, negatives, an ignored row and a non-iid row in every class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from imbalanced_losses import QueueState, init_queue
from imbalanced_losses.queue import push
from tests.exhaustive import FURTHER
from tests.registry import RANKING, TRACED, RankingLoss
from tests.strategies import IGNORE, KINDS

N_ROWS, QUEUE_SIZE = 6, 8


@dataclass(frozen=True)
class Inputs:
    """One batch and the queue that it meets."""

    logits: Tensor
    targets: Tensor
    state: QueueState
    temperature: Tensor
    iid_mask: Tensor
    sample_weight: Tensor


@dataclass(frozen=True)
class Case:
    """One loss, one configuration, one kind of targets."""

    name: str
    loss: RankingLoss
    num_classes: int
    multilabel: bool
    options: Mapping[str, Any] = field(default_factory=dict)
    most: float = 1.0

    def __str__(self) -> str:
        return self.name

    def config(self, **changes: Any) -> Any:
        settings = {"num_classes": self.num_classes, "multilabel": self.multilabel, **self.options, **changes}
        return self.loss.config(**settings)

    def shell(self, **changes: Any) -> Any:
        settings = {"num_classes": self.num_classes, "multilabel": self.multilabel, "queue_size": QUEUE_SIZE}
        return self.loss.shell(**{**settings, **self.options, **changes})

    def call(
        self, logits: Tensor, targets: Tensor, state: QueueState, temperature: Tensor, **changes: Any
    ) -> tuple[Tensor, QueueState]:
        """The pure function with the case's config; a function of tensors alone."""
        result: tuple[Tensor, QueueState] = self.loss.function(
            logits, targets, state, self.config(**changes), temperature=temperature
        )
        return result

    def value(self, logits: Tensor, targets: Tensor, state: QueueState, temperature: Tensor) -> Tensor:
        return self.call(logits, targets, state, temperature)[0]

    def targets(self, generator: torch.Generator, n_rows: int = N_ROWS) -> Tensor:
        """Every class has a positive and a negative among the first rows; the last row is ignored."""
        if self.multilabel:
            labels = (torch.arange(n_rows)[:, None] + torch.arange(self.num_classes)) % 3 == 0
            labels = labels.long()[torch.randperm(n_rows, generator=generator)]
            labels[-1, 0] = IGNORE
            return labels
        ids = (torch.arange(n_rows) % max(2, self.num_classes))[torch.randperm(n_rows, generator=generator)]
        ids[-1] = IGNORE
        return ids

    def empty_queue(self, dtype: torch.dtype = torch.float64, queue_size: int = QUEUE_SIZE) -> QueueState:
        return init_queue(queue_size, self.num_classes, multilabel=self.multilabel, dtype=dtype)

    def inputs(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        state = self.empty_queue(dtype)
        for _ in range(2):
            batch = self._rows(generator, dtype)
            state = push(state, batch[0], batch[1], batch[2], batch[3])
        logits, targets, iid_mask, sample_weight = self._rows(generator, dtype)
        temperature = 0.3 + 0.4 * torch.rand((), generator=generator)
        return Inputs(logits, targets, state, temperature, iid_mask, sample_weight)

    def _rows(self, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = torch.randn(N_ROWS, self.num_classes, generator=generator, dtype=dtype)
        iid_mask = torch.arange(N_ROWS) != 1
        weights = 0.5 + torch.rand(N_ROWS, generator=generator)
        return logits, self.targets(generator), iid_mask, weights


def _case(variant: str, kind: str) -> Case:
    loss, own = TRACED[variant]
    return Case(f"{variant}-{kind}", loss, *KINDS[kind], own.options, own.most)


CASES = [_case(variant, kind) for variant in TRACED for kind in KINDS]
"""Every traced variant with every kind of targets."""

DIAGONAL = [_case(variant, list(KINDS)[i % 3]) for i, variant in enumerate(TRACED)]
"""Every traced variant once, the kinds in turn: for what costs a compilation."""

ONE_PER_LOSS = [
    _case([name for name in loss.variants if name in TRACED and name not in FURTHER][-1], list(KINDS)[(i + 1) % 3])
    for i, loss in enumerate(RANKING.values())
]
"""Every loss once, in its last traced variant, the kinds in turn."""

SMOOTH_CASES = [case for case in CASES if case.loss.smooth and "tau_scale" not in case.options]
"""Those that can be differentiated any number of times, at every score."""


def assert_same_state(actual: QueueState, expected: QueueState) -> None:
    torch.testing.assert_close(_pytree.tree_leaves(actual), _pytree.tree_leaves(expected), rtol=0, atol=0)


def assert_conforms(new: QueueState, old: QueueState) -> None:
    """Structure, shapes, dtypes and device of the old state, and no gradient."""
    assert _pytree.tree_structure(new) == _pytree.tree_structure(old)
    for name in (own.name for own in fields(QueueState)):
        now, before = getattr(new, name), getattr(old, name)
        assert (now.shape, now.dtype, now.device) == (before.shape, before.dtype, before.device), name
        assert not now.requires_grad, name

"""The cases that the tests of this folder compile with the default backend, as data.

Sizes decide which loops the compiler splits, tiles and distributes over threads. So the pure function of each loss is
crossed with every kind of labels and every pool. The other two forms of call, a module and an ensemble, take four pairs
of kind and pool per loss. ``sample_weight`` alternates from case to case instead of doubling their number.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from imbalanced_losses import QueueState, init_queue, stack_states
from imbalanced_losses.queue import push
from tests.registry import ELEMENTWISE, TRACED

THREADS = (1, 2, 4)
"""Thread counts to compile for and to run on."""

MEMBERS = 2
"""Size of an ensemble."""

IGNORE = -100

Form = Literal["function", "module", "ensemble"]
State = QueueState | tuple[()]


@dataclass(frozen=True)
class Loss:
    """A loss in one configuration. Ranking losses have a queue, elementwise losses have none."""

    function: Callable[..., Any]
    config: type
    module: type[nn.Module]
    options: Mapping[str, Any]
    in_suite: tuple[str, ...]
    has_queue: bool = True
    labels: bool = False
    """An elementwise loss of labels of the logits' shape."""

    def options_for(self, classes: int) -> dict[str, Any]:
        """Options that have a number for each class repeat theirs."""
        per_class = {name: value for name, value in self.options.items() if isinstance(value, tuple)}
        return {**self.options, **{name: (value * classes)[:classes] for name, value in per_class.items()}}


# With these budgets and temperatures every class has a gradient, even in a pool of 56 rows.
LOSSES: dict[str, Loss] = {
    name: Loss(
        loss.function,
        loss.config,
        loss.shell,
        {"temperature": 0.1, **variant.options},
        variant.compiled or ("function C=3 16+40",),
    )
    for name, (loss, variant) in TRACED.items()
}
LOSSES |= {
    name: Loss(loss.function, loss.config, loss.shell, own.options, own.compiled, has_queue=False, labels=own.labels)
    for loss in ELEMENTWISE.values()
    for name, own in loss.variants.items()
    if own.compiled
}


@dataclass(frozen=True)
class Kind:
    """Number of classes, and whether a row may be positive for several of them."""

    classes: int
    multilabel: bool = False

    def __str__(self) -> str:
        return f"C={self.classes}{'m' if self.multilabel else ''}"


@dataclass(frozen=True)
class Pool:
    """Number of rows in the batch and in the queue."""

    batch: int
    queue: int = 0

    def __str__(self) -> str:
        return f"{self.batch}+{self.queue}"


@dataclass(frozen=True)
class Batch:
    """Inputs of one step. Those of an ensemble have a leading axis of members."""

    logits: Tensor
    targets: Tensor
    extras: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One loss in one form of call, on one kind of labels and one pool."""

    loss_name: str
    form: Form
    kind: Kind
    pool: Pool
    weighted: bool

    def __str__(self) -> str:
        weighted = " weighted" if self.weighted else ""
        return f"{self.loss_name} {self.form} {self.kind} {self.pool}{weighted}"

    @property
    def loss(self) -> Loss:
        return LOSSES[self.loss_name]

    def evaluate(
        self, logits: Tensor, targets: Tensor, state: State, extras: dict[str, Tensor]
    ) -> tuple[Tensor, State]:
        """The loss and the new state from the pure function."""
        if not self.loss.has_queue:
            config = self.loss.config(**self.loss.options_for(self.kind.classes))
            return self.loss.function(logits, targets, config, **extras), state
        config = self.loss.config(num_classes=self.kind.classes, multilabel=self.kind.multilabel, **self.loss.options)
        result: tuple[Tensor, State] = self.loss.function(logits, targets, state, config, **extras)
        return result

    def module(self) -> Any:
        """The module, with the queue of :meth:`state`."""
        if not self.loss.has_queue:
            return self.loss.module(**self.loss.options_for(self.kind.classes))
        module = self.loss.module(
            num_classes=self.kind.classes,
            multilabel=self.kind.multilabel,
            queue_size=self.pool.queue,
            **self.loss.options,
        )
        module._store(self._member_state(0))
        return module

    def state(self) -> State:
        """A full queue whose ring has wrapped, or a stack of them for an ensemble."""
        if not self.loss.has_queue:
            return ()
        if self.form == "ensemble":
            return stack_states([self._member_state(member) for member in range(MEMBERS)])
        return self._member_state(0)

    def batch(self, step: int) -> Batch:
        """The rows of a step; every step has others."""
        if self.form != "ensemble":
            return self._member_batch(step, 0)
        batches = [self._member_batch(step, member) for member in range(MEMBERS)]
        return Batch(
            torch.stack([batch.logits for batch in batches]),
            torch.stack([batch.targets for batch in batches]),
            {name: torch.stack([batch.extras[name] for batch in batches]) for name in batches[0].extras},
        )

    def _member_state(self, member: int) -> QueueState:
        state = init_queue(self.pool.queue, self.kind.classes, multilabel=self.kind.multilabel)
        for n_rows in (self.pool.queue, 3):
            logits, targets, weights = self._rows(n_rows, f"queue of {n_rows}", member)
            state = push(state, logits, targets, torch.ones(n_rows, dtype=torch.bool), weights)
        return state

    def _member_batch(self, step: int, member: int) -> Batch:
        logits, targets, weights = self._rows(self.pool.batch, f"step {step}", member)
        if self.loss.labels:
            targets = targets.view_as(logits).float()
            if self.kind.classes == 1:
                logits, targets = logits[:, 0], targets[:, 0]
        return Batch(logits, targets, {"sample_weight": weights} if self.weighted else {})

    def _rows(self, n_rows: int, purpose: str, member: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[N, C]``, targets and weights ``[N]``.

        One row in ten is a positive of each class, and at least one row is. Of several exclusive classes the first one
        takes all the other rows. Logits of positives are higher by 1 on average. One target is ignored.
        """
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self} {purpose} {member}".encode()))
        classes, n_positives = self.kind.classes, max(1, n_rows // 10)
        logits = torch.randn(n_rows, classes, generator=generator)
        weights = 0.5 + torch.rand(n_rows, generator=generator)
        if self.kind.multilabel:
            order = torch.rand(n_rows, classes, generator=generator).argsort(0)
            targets = (order < n_positives).long()
            logits += targets
            targets[-1:, 0] = IGNORE
        else:
            order = torch.randperm(n_rows, generator=generator)
            share = order // n_positives + 1
            targets = torch.where(share < max(2, classes), share, 0)
            logits += targets[:, None] if classes == 1 else nn.functional.one_hot(targets, classes)
            targets[-1:] = IGNORE
        return logits, targets, weights


# --- the matrix --------------------------------------------------------------------------------------------------

POOLS = (Pool(16, 40), Pool(32, 200), Pool(32, 1024), Pool(64), Pool(600), Pool(2_000), Pool(20_000))
ROWS = tuple(Pool(n) for n in (16, 64, 600, 2_000, 20_000))
"""Pools of the losses that have no queue."""

KINDS = (*map(Kind, (1, 2, 3, 10)), *(Kind(classes, multilabel=True) for classes in (2, 3, 10)))

OTHER_FORMS = (
    (Kind(1), Pool(32, 1024)),
    (Kind(2), Pool(600)),
    (Kind(3), Pool(16, 40)),
    (Kind(10, multilabel=True), Pool(32, 200)),
)
"""Kinds and pools of the modules and ensembles."""


def kinds_of(loss_name: str) -> tuple[Kind, ...]:
    """The kinds that a loss can take: a softmax needs two classes, and sigmoid labels are not exclusive."""
    loss = LOSSES[loss_name]
    if loss.has_queue:
        return KINDS
    if loss.labels:
        return tuple(kind for kind in KINDS if kind.multilabel or kind.classes == 1)
    return tuple(kind for kind in KINDS if not kind.multilabel and kind.classes > 1)


def _crossed() -> Iterator[Case]:
    for i, (name, loss) in enumerate(LOSSES.items()):
        for j, kind in enumerate(kinds_of(name)):
            for k, pool in enumerate(POOLS if loss.has_queue else ROWS):
                yield Case(name, "function", kind, pool, weighted=(i + j + k) % 2 == 1)


def _in_other_forms() -> Iterator[Case]:
    forms: tuple[Form, ...] = ("module", "ensemble")
    for i, (name, loss) in enumerate(LOSSES.items()):
        pairs = OTHER_FORMS if loss.has_queue else tuple(itertools.product(kinds_of(name)[1:3], ROWS[1:3]))[::3]
        for (j, form), (k, (kind, pool)) in itertools.product(enumerate(forms), enumerate(pairs)):
            yield Case(name, form, kind, pool, weighted=(i + j + k) % 2 == 1)


CASES: dict[str, Case] = {str(case): case for case in (*_crossed(), *_in_other_forms())}

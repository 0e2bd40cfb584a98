"""The contract of elementwise losses: every variant in the registry as something that runs, and its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.registry import ELEMENTWISE, Elements, ElementwiseLoss


@dataclass(frozen=True)
class Case:
    """One loss in one configuration, on one path through its code, for logits ``[N, *rest]``."""

    name: str
    loss: ElementwiseLoss
    own: Elements
    path: str = ""
    streams: bool = False

    def __str__(self) -> str:
        return "-".join(filter(None, (self.name, self.path, "stream" if self.streams else "")))

    @property
    def rest(self) -> tuple[int, ...]:
        return self.own.rest

    @property
    def ignore_index(self) -> int | None:
        return self.config().ignore_index

    def config(self, **changes: Any) -> Any:
        return self.loss.config(**{**self.own.options, **changes})

    def shell(self, **changes: Any) -> Any:
        """A module whose stream, if it has one, has counted nothing yet."""
        stream: Mapping[str, Any] = (self.own.stream or {}) if self.streams else {}
        return self.loss.shell(**{**self.own.options, **stream, **changes})

    def call(self, logits: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None, **changes: Any) -> Tensor:
        return self.loss.function(logits, targets, self.config(**changes), sample_weight=sample_weight)

    def inputs(
        self, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64, ignored: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Logits, one of them 0, and targets of which the first is ignored if the case can ignore."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(n, *self.rest, generator=generator, dtype=torch.float64)
        logits.view(-1)[-1:] = 0
        if self.own.labels:
            targets = torch.rand(n, *self.rest, generator=generator, dtype=torch.float64)
            targets = targets if self.own.soft else targets.round()
        else:
            targets = torch.randint(0, self.rest[0], (n, *self.rest[1:]), generator=generator)
        if ignored and self.ignore_index is not None:
            targets.view(-1)[:1] = self.ignore_index
        return logits.to(dtype), targets

    def reference(self, logits: Tensor, targets: Tensor, **changes: Any) -> Tensor:
        """The loss of every target, in float64."""
        rows = logits.detach().double().numpy(), targets.numpy()
        return torch.from_numpy(self.loss.reference(*rows, self.config(**changes)))

    def counted(self, targets: Tensor) -> Tensor:
        return torch.ones_like(targets, dtype=torch.bool) if self.ignore_index is None else targets != self.ignore_index

    def of_logits(self, of_targets: Tensor) -> Tensor:
        """Flags of targets as flags of their logits."""
        return of_targets if self.own.labels else of_targets.unsqueeze(1).expand(-1, self.rest[0], *self.rest[1:])


def value_and_grad(loss_fn: Any, logits: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    loss = loss_fn(leaf, targets, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def made(case: Case, **changes: Any) -> tuple[Any, tuple[Tensor, Tensor]]:
    """A module that has seen a batch, and the batch, in float32."""
    batch = case.inputs(n=8, dtype=torch.float32)
    loss_fn: nn.Module = case.shell(**changes)
    loss_fn(*batch)
    return loss_fn, batch


CASES = [Case(name, loss, own) for loss in ELEMENTWISE.values() for name, own in loss.variants.items()]


def case_named(name: str) -> Case:
    return next(case for case in CASES if case.name == name)


def cases_of(loss_name: str) -> list[Case]:
    return [case for case in CASES if case.loss is ELEMENTWISE[loss_name]]


ON_PATHS = [Case(case.name, case.loss, case.own, path) for case in CASES for path in case.loss.paths]
MODULES = [*CASES, *(Case(case.name, case.loss, case.own, streams=True) for case in CASES if case.own.stream)]
IGNORING = [case for case in ON_PATHS if case.ignore_index is not None]

every_case = pytest.mark.parametrize("case", CASES, ids=str)
on_every_path = pytest.mark.parametrize("case", ON_PATHS, ids=str)
each_loss = pytest.mark.parametrize("case", [case for case in CASES if case.name in ELEMENTWISE], ids=str)
every_module = pytest.mark.parametrize("case", MODULES, ids=str)
each_module = pytest.mark.parametrize("case", [case for case in MODULES if case.name in ELEMENTWISE], ids=str)

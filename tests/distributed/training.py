"""Five SGD steps of a small model, by one process on all rows or by W on their shards: what the tests compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tests.registry import ELEMENTWISE as REGISTERED
from tests.registry import VARIANTS
from tests.strategies import KINDS

STEPS = 5
ROWS = 24  # of all ranks together
FEATURES = 5

ENDINGS = {"binary": "", "multiclass": "_classes", "multilabel": "_multilabel"}


def _ranking(shell: Callable[..., nn.Module], options: Mapping[str, Any], kind: str) -> Callable[..., nn.Module]:
    classes, multilabel = KINDS[kind]
    return partial(shell, classes, multilabel=multilabel, **{"temperature": 0.3, **options})


RANKING: dict[str, tuple[int, Callable[..., nn.Module]]] = {
    name + ENDINGS[kind]: (KINDS[kind][0], _ranking(loss.shell, variant.options, kind))
    for name, (loss, variant) in VARIANTS.items()
    for kind in variant.processes or (("binary",) if variant.main else ())
}
TRAINED = {
    loss_name: (loss, own) for loss_name, loss in REGISTERED.items() for own in loss.variants.values() if own.processes
}
ELEMENTWISE: dict[str, tuple[int, Callable[..., nn.Module]]] = {
    name: (own.rest[0], partial(loss.shell, **own.options)) for name, (loss, own) in TRAINED.items()
}
STREAMING: dict[str, tuple[int, Callable[..., nn.Module]]] = {
    f"{name}_stream": (own.rest[0], partial(loss.shell, **{**own.options, **own.stream}))
    for name, (loss, own) in TRAINED.items()
    if own.stream is not None
}
LABELS = {name for name in RANKING if name.endswith("_multilabel")}
LABELS |= {name for name, (_, own) in TRAINED.items() if own.labels}
"""Losses of labels ``[N, C]``."""


def reductions_of(loss: str) -> tuple[str, ...]:
    """Those that the processes have to agree on."""
    if loss in RANKING:
        return "mean", "sum", "none"
    return tuple(name for name in TRAINED[loss.removesuffix("_stream")][0].reductions if name != "none")


LOSSES = {**RANKING, **ELEMENTWISE, **STREAMING}


@dataclass(frozen=True)
class Recipe:
    """What is trained on what."""

    loss: str
    reduction: str = "mean"
    weighted: bool = False
    queue_size: int = 0
    shards: str = "even"
    options: tuple[tuple[str, Any], ...] = ()

    def make_loss(self, **options: Any) -> nn.Module:
        if self.loss in RANKING:
            options["queue_size"] = self.queue_size
        return LOSSES[self.loss][1](reduction=self.reduction, **dict(self.options), **options)

    def bounds(self, size: int) -> list[int]:
        """Where each rank's rows begin, and the end."""
        if size == 1:
            return [0, ROWS]
        if self.shards == "uneven":
            return [0, *(ROWS * (k + 1) ** 2 // (size**2) for k in range(size))]
        if self.shards == "empty":  # the last rank has no rows
            return [*(ROWS * k // (size - 1) for k in range(size)), ROWS]
        return [ROWS * k // size for k in range(size + 1)]

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """All ranks' rows. Without positives on the first rank if that is what ``shards`` says."""
        generator = torch.Generator().manual_seed(step)
        classes = LOSSES[self.loss][0]
        features = torch.randn(ROWS, FEATURES, generator=generator)
        labels = torch.randint(-1, 2 if classes == 1 else classes, (ROWS,), generator=generator)
        if self.shards == "no positives":
            labels[: self.bounds(size)[1]] = 0
        if self.loss in LABELS:
            targets = (torch.rand(ROWS, classes, generator=generator) < 0.4).float()
            targets[labels == 0] = 0
        else:
            targets = torch.where(labels < 0, -100, labels)
        weight = {"sample_weight": torch.rand(ROWS, generator=generator) + 0.5} if self.weighted else {}
        return features, targets, weight


def make_model(recipe: Recipe) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, LOSSES[recipe.loss][0]))


def to_scalar(loss: Tensor) -> Tensor:
    """With ``reduction="none"`` the sum over valid classes, as a user would write it."""
    return loss if loss.dim() == 0 else loss.nansum()


def train(recipe: Recipe, rank: int = 0, size: int = 1, parts: int | None = None, **options: Any) -> dict[str, Any]:
    """Train on the shard ``rank`` of ``size``; ``parts`` is the number of shards that the rows are made for."""
    model = make_model(recipe)
    net = DistributedDataParallel(model) if size > 1 else model
    loss_fn = recipe.make_loss(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start_parameters = torch.nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    start, end = recipe.bounds(size)[rank : rank + 2]
    losses = []
    for step in range(STEPS):
        features, targets, weight = recipe.batch(step, parts or size)
        weight = {name: value[start:end] for name, value in weight.items()}
        loss = to_scalar(loss_fn(net(features[start:end]), targets[start:end], **weight))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {
        "moved": (torch.nn.utils.parameters_to_vector(model.parameters()) - start_parameters).detach().norm(),
        "parameters": torch.cat([parameter.detach().flatten() for parameter in model.parameters()]),
        "losses": torch.tensor(losses),
        "state": loss_fn.state_dict(),
    }


def train_all(recipes: list[Recipe], **options: Any) -> list[dict[str, Any]]:
    """In a process of the group: one after another."""
    return [train(recipe, dist.get_rank(), dist.get_world_size(), **options) for recipe in recipes]

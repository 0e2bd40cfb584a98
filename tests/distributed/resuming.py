"""What the processes run for the tests of checkpoints: a whole training state, saved, lost and taken up again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss
from tests.registry import RANKING

FEATURES = 5
MAIN_LOSSES = {
    name: partial(loss.shell, **next(variant.options for variant in loss.variants.values() if variant.main))
    for name, loss in RANKING.items()
}


def push_all(loss: str, schedule: list[list[int]], rank: int | None = None) -> list[dict[str, Tensor]]:
    """The queue after each step of rows that differ in number from step to step and rank to rank.

    With ``rank=-1`` all ranks' rows at once.
    """
    rank = dist.get_rank() if rank is None else rank
    loss_fn = MAIN_LOSSES[loss](2, queue_size=17, max_pool_size=12)
    loss_fn._warned_of_subsampling = True
    states = []
    for step, counts in enumerate(schedule):
        generator = torch.Generator().manual_seed(step)
        n = sum(counts)
        logits = torch.randn(n, 2, generator=generator).to(torch.bfloat16 if step % 2 else torch.float32)
        targets = torch.tensor([-100, 0, 1])[torch.randint(3, (n,), generator=generator)]
        rows = {
            "iid_mask": torch.rand(n, generator=generator) < 0.7,
            "sample_weight": torch.rand(n, generator=generator),
        }
        own = slice(0, n) if rank < 0 else slice(sum(counts[:rank]), sum(counts[: rank + 1]))
        loss_fn(logits[own], targets[own], **{name: value[own] for name, value in rows.items()})
        states.append({name: value.clone() for name, value in loss_fn.state_dict().items()})
    return states


@dataclass
class Run:
    """Model, losses with their schedule and optimizer: what a checkpoint holds."""

    model: nn.Module
    loss: LossWarmupWrapper
    optimizer: torch.optim.Optimizer

    @classmethod
    def start(cls, loss: str) -> Run:
        """Two steps of warm-up, two of blend, then the main loss with a falling temperature."""
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))
        wrapper = LossWarmupWrapper(
            SigmoidFocalLoss(),
            MAIN_LOSSES[loss](1, queue_size=40),
            warmup_steps=2,
            blend_steps=2,
            temp_start=0.5,
            temp_end=0.2,
            temp_decay_steps=4,
        )
        return cls(model, wrapper, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))

    def save(self, path: str) -> None:
        parts = {name: part.state_dict() for name, part in vars(self).items()}
        torch.save(parts, path + ".new")
        Path(path + ".new").replace(path)

    def load(self, path: str) -> None:
        for name, state in torch.load(path).items():
            getattr(self, name).load_state_dict(state)

    def take_step(self, net: nn.Module, step: int, rank: int, size: int, death: str | None = None) -> float:
        features, targets = make_batch(step)
        own = slice(len(features) * rank // size, len(features) * (rank + 1) // size)
        self.loss.on_train_batch_start(step)
        if death == "before the forward":
            os._exit(1)
        loss = self.loss(net(features[own]), targets[own])
        if death == "before the backward":
            os._exit(1)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()  # type: ignore[no-any-return]


def make_batch(step: int) -> tuple[Tensor, Tensor]:
    """25 rows: 2, 3 or 4 ranks cannot share them evenly."""
    generator = torch.Generator().manual_seed(step)
    features = torch.randn(25, FEATURES, generator=generator)
    return features, (torch.rand(25, 1, generator=generator) < 0.3).long()


def go_on(
    loss: str,
    first: int,
    last: int,
    path: str | None = None,
    *,
    alone: bool = False,
    save_to: str | None = None,
    death: tuple[str, int, int] | None = None,
) -> dict[str, Any]:
    """Train from step ``first`` to before ``last``, from the checkpoint ``path`` if given; ``death`` is how, who, when.

    The first rank saves after every step.
    """
    rank, size = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
    run = Run.start(loss)
    if path is not None:
        run.load(path)
    net = run.model if alone else DistributedDataParallel(run.model)
    losses = []
    for step in range(first, last):
        how = death[0] if death is not None and death[1:] == (rank, step) else None
        losses.append(run.take_step(net, step, rank, size, how))
        if rank == 0 and save_to is not None:
            run.save(save_to)
    parameters = torch.cat([parameter.detach().flatten() for parameter in run.model.parameters()])
    return {"parameters": parameters, "losses": torch.tensor(losses), "state": run.loss.state_dict()}

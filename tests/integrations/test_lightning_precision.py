"""Mixed precision: the queue stays float32, and a step that overflows leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from imbalanced_losses import QueueState
from imbalanced_losses.metrics import average_precision
from tests.integrations.lightning_runs import (
    BATCHES,
    EPOCHS,
    IN_EPOCHS,
    IN_STEPS,
    MAIN_LOSSES,
    ROWS,
    Batches,
    Ranker,
    count_batches,
    make_batch,
    make_loss,
    make_trainer,
    step_by_hand,
    train,
)


@pytest.mark.parametrize("schedule", [IN_EPOCHS, IN_STEPS], ids=["epochs", "steps"])
@pytest.mark.parametrize("main_loss", MAIN_LOSSES)
def test_bfloat16_autocast_trains(main_loss: str, schedule: dict[str, Any]) -> None:
    model = train(make_loss(main_loss, **schedule), precision="bf16-mixed")
    assert model.stands == step_by_hand(model.loss_fn.config, count_batches())
    losses = torch.stack(model.losses)
    assert losses.dtype == torch.float32
    assert losses.isfinite().all()
    assert score(model) > score(Ranker(make_loss())) + 0.1
    dtypes = {name: value.dtype for name, value in model.loss_fn.main_loss.state_dict().items()}
    assert dtypes["queue_logits"] == dtypes["temperature"] == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


@torch.no_grad()
def score(model: Ranker) -> float:
    features, targets = (torch.cat(rows) for rows in zip(*map(make_batch, range(9990, 9999)), strict=True))
    return average_precision(model.net(features)[:, 0], targets).item()


class Overflows(Ranker):
    """The logits of one batch are too large for float16."""

    def __init__(self, main_loss: str, step: int) -> None:
        super().__init__(make_loss(main_loss, **IN_STEPS))
        self.step = step
        self.parameters_before: list[Tensor] = []
        self.queues: list[QueueState] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, targets = batch
        self.parameters_before.append(parameters_to_vector(self.net.parameters()).detach())
        logits = self.net(features)
        if len(self.losses) == self.step:
            logits = logits * 1e9
        assert logits.dtype == torch.float16
        assert logits.isfinite().tolist() == [[len(self.losses) != self.step]] * ROWS
        loss: Tensor = self.loss_fn(logits, targets)
        self.losses.append(loss.detach())
        self.queues.append(deepcopy(self.loss_fn.main_loss.queue_state))
        return loss


def make_scaler() -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=64.0)


def train_by_lightning(model: Overflows) -> torch.amp.GradScaler:
    scaler = make_scaler()
    trainer = make_trainer(plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    trainer.fit(model, Batches())
    return scaler


def train_by_hand(model: Overflows) -> torch.amp.GradScaler:
    scaler, optimizer, batches = make_scaler(), model.configure_optimizers(), Batches()
    step = 0
    for epoch in range(EPOCHS):
        model.loss_fn.on_train_epoch_start(epoch)
        for batch in batches:
            model.loss_fn.on_train_batch_start(step)
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model.training_step(batch, step)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            step += 1
    return scaler


@pytest.mark.parametrize("main_loss", ["smooth_ap", "recall", "pauc"])
@pytest.mark.parametrize("step", [5, 12], ids=["blend", "main"])
@pytest.mark.parametrize("fit", [train_by_hand, train_by_lightning])
def test_an_overflowed_step_is_skipped_and_leaves_no_trace(
    fit: Callable[[Overflows], torch.amp.GradScaler], step: int, main_loss: str
) -> None:
    model = Overflows(main_loss, step)
    scaler = fit(model)
    assert scaler.get_scale() == 32  # halved once
    finite = torch.stack(model.losses).isfinite()
    assert finite.tolist() == [number != step for number in range(EPOCHS * BATCHES)]
    before = torch.stack(model.parameters_before)
    assert before.isfinite().all()
    moved = (before[1:] != before[:-1]).any(-1)
    assert moved.tolist() == [number != step for number in range(EPOCHS * BATCHES - 1)]
    assert all(queue.logits.isfinite().all() for queue in model.queues)
    old, new = model.queues[step - 1 : step + 1]
    pushed = (old.cursor + torch.arange(ROWS)) % len(old.logits)
    expected = old.targets.clone()
    expected[pushed] = -100
    assert torch.equal(new.targets, expected)
    assert (model.queues[-1].targets != -100).all()  # they have been pushed out

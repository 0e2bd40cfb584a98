"""The Accelerate loop of docs/training_loops.md: with ``register_for_checkpointing`` it resumes exactly."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, skip_first_batches
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss, SmoothAPLoss

EPOCHS, BATCHES, ACCUMULATED = 4, 6, 2


@dataclass
class Run:
    accelerator: Accelerator
    model: nn.Module
    loss_fn: LossWarmupWrapper
    optimizer: torch.optim.Optimizer
    loader: DataLoader[tuple[Tensor, ...]]

    @classmethod
    def start(cls, seed: int) -> Run:
        torch.manual_seed(seed)
        accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATED)
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
        loss_fn = LossWarmupWrapper(
            SigmoidFocalLoss(alpha=-1, gamma=0),
            SmoothAPLoss(num_classes=1, queue_size=64),
            warmup_epochs=1,
            blend_epochs=1,
            temp_start=1.0,
            temp_end=0.1,
            temp_decay_steps=5,
        )
        generator = torch.Generator().manual_seed(7)  # of the rows, which do not depend on the seed
        features = torch.randn(8 * BATCHES, 5, generator=generator)
        targets = (torch.rand(8 * BATCHES, 1, generator=generator) < 0.3).long()
        loader = DataLoader(TensorDataset(features, targets), batch_size=8)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        accelerator.register_for_checkpointing(loss_fn)
        model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
        return cls(accelerator, model, loss_fn, optimizer, loader)

    def train(self, folder: Path | None = None, skip: int = 0) -> list[Tensor]:
        """From batch ``skip`` of the run on; with a folder each optimizer step leaves a checkpoint there."""
        losses = []
        step = skip // ACCUMULATED
        for epoch in range(skip // BATCHES, EPOCHS):
            self.loss_fn.on_train_epoch_start(epoch)
            done = skip % BATCHES if epoch == skip // BATCHES else 0
            for features, targets in skip_first_batches(self.loader, done):
                with self.accelerator.accumulate(self.model):
                    self.loss_fn.on_train_batch_start(step)
                    loss = self.loss_fn(self.model(features), targets)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                losses.append(loss.detach())
                if self.accelerator.sync_gradients:
                    step += 1
                    if folder is not None:
                        self.accelerator.save_state(str(folder / str(step)))
        return losses

    def end(self) -> dict[str, Tensor]:
        return {**self.model.state_dict(), **{f"loss.{key}": value for key, value in self.loss_fn.state_dict().items()}}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Tensor], dict[str, Tensor]]:
    """The folder of its checkpoints, its losses and its end."""
    run, folder = Run.start(seed=0), tmp_path_factory.mktemp("whole")
    return folder, run.train(folder), run.end()


@pytest.mark.parametrize(("step", "phase"), [(2, "warmup"), (4, "blend"), (8, "main"), (9, "main")])
def test_a_resumed_run_equals_one_that_never_stopped(
    step: int, phase: str, whole_run: tuple[Path, list[Tensor], dict[str, Tensor]]
) -> None:
    """Stopped within an epoch of each phase, and (9) between two; the new objects begin with other numbers."""
    folder, losses, end = whole_run
    resumed = Run.start(seed=1)
    resumed.accelerator.load_state(str(folder / str(step)))
    assert resumed.loss_fn._phase == phase
    remaining = resumed.train(skip=step * ACCUMULATED)
    assert len(remaining) == EPOCHS * BATCHES - step * ACCUMULATED
    for one, other in zip(remaining, losses[step * ACCUMULATED :], strict=True):
        assert torch.equal(one, other)
    for name, value in resumed.end().items():
        assert torch.equal(value, end[name]), name


def test_accumulated_gradients_are_the_mean_over_micro_batches() -> None:
    """``accelerator.backward`` divides by their number."""
    run = Run.start(seed=0)
    batches = list(run.loader)[:ACCUMULATED]
    for features, targets in batches:
        with run.accelerator.accumulate(run.model):
            run.accelerator.backward(run.loss_fn.main_loss(run.model(features), targets))
    accumulated = [parameter.grad.clone() for parameter in run.model.parameters()]
    run.model.zero_grad()
    run.loss_fn.main_loss.reset_queue()
    for features, targets in batches:
        (run.loss_fn.main_loss(run.model(features), targets) / ACCUMULATED).backward()
    for parameter, gradient in zip(run.model.parameters(), accumulated, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)

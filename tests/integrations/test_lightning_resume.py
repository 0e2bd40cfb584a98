"""A run of Lightning that goes on from a checkpoint file equals one that never stopped, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tests.integrations.lightning_runs import (
    BATCHES,
    EPOCHS,
    IN_EPOCHS,
    IN_STEPS,
    MAIN_LOSSES,
    Batches,
    Ranker,
    assert_same_run,
    make_loss,
    make_trainer,
)

# Lightning warns that the folder of the run that it goes on with is there
pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

# within the epochs of warm-up, blend and decay, and after the last batch of an epoch
STOPS = {3: "warmup", 5: "warmup", 7: "blend", 11: "main", 13: "main"}


class Run:
    """An uninterrupted run that has left checkpoint files on its way."""

    def __init__(self, folder: Path, main_loss: str, settings: dict[str, Any], **options: Any) -> None:
        self.folder, self.main_loss, self.settings, self.options = folder, main_loss, settings, options
        self.model = self.fit()

    def fit(self, **options: Any) -> Ranker:
        """As in a process of its own: module, loss, optimizer, loader and trainer are new, the weights others."""
        model = Ranker(make_loss(self.main_loss, **self.settings), seed=2 if "ckpt_path" in options else 1)
        kept = 0 if "ckpt_path" in options else -1  # none or all
        saves = ModelCheckpoint(self.folder, "{step}", every_n_train_steps=1, save_top_k=kept)
        trainer = make_trainer(saves, enable_checkpointing=True, **self.options)
        trainer.fit(model, Batches(), **options)
        return model

    def resume(self, step: int) -> Ranker:
        return self.fit(ckpt_path=self.folder / f"step={step}.ckpt")


every_run = pytest.mark.parametrize(
    ("main_loss", "settings", "options"),
    [
        *((name, IN_EPOCHS, {}) for name in MAIN_LOSSES),
        *((name, {**IN_STEPS, "warmup_steps": 6}, {}) for name in MAIN_LOSSES),
        ("smooth_ap", {**IN_EPOCHS, "reset_queue_each_epoch": True}, {}),
        ("pauc", {**IN_EPOCHS, "reset_queue_each_epoch": True, "final_main_weight": 0.5}, {"precision": "bf16-mixed"}),
    ],
)


@every_run
def test_resumes_as_if_never_stopped(
    tmp_path: Path, main_loss: str, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    run = Run(tmp_path, main_loss, settings, **options)
    assert len(run.model.losses) == EPOCHS * BATCHES
    for step, phase in STOPS.items():
        assert run.model.stands[step - 1][0] == phase
        assert_same_run(run.resume(step), run.model, first=step)


@pytest.mark.parametrize("bare", [False, True])
def test_a_resumed_run_keeps_its_queue_without_a_warm_up(tmp_path: Path, bare: bool) -> None:
    """In a wrapper or not, and in objects that another run has used."""

    def make() -> Ranker:
        wrapper = make_loss()
        return Ranker(wrapper.main_loss if bare else wrapper)

    def fit(model: Ranker, **options: Any) -> Ranker:
        model.losses.clear()
        saves = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        make_trainer(saves, max_epochs=2, enable_checkpointing=True).fit(model, Batches(), **options)
        return model

    whole, used = fit(make()), make()
    for step in (3, BATCHES):
        make_trainer(max_epochs=1).fit(used, Batches())
        fit(used, ckpt_path=tmp_path / f"step={step}.ckpt")
        assert torch.equal(torch.stack(used.losses), torch.stack(whole.losses[step:]))


def test_goes_on_between_accumulated_steps(tmp_path: Path) -> None:
    """Three steps an epoch, the third of one batch."""
    run = Run(tmp_path, "smooth_ap", IN_EPOCHS, accumulate_grad_batches=2)
    for step, batches in {2: 4, 3: 5, 5: 9, 8: 14}.items():
        assert_same_run(run.resume(step), run.model, first=batches)


def test_goes_on_where_max_steps_stopped_it(tmp_path: Path) -> None:
    """In warm-up, blend and decay; the file is the last step's, for to Lightning the run's end ends the epoch, too."""
    whole = Run(tmp_path / "whole", "recall", IN_EPOCHS)
    for step in (3, 7, 13):
        stopped = Run(tmp_path / f"stopped {step}", "recall", IN_EPOCHS, max_steps=step)
        assert len(stopped.model.losses) == step
        stopped.options = {}
        assert_same_run(stopped.resume(step), whole.model, first=step)


def test_a_state_that_was_lost_would_be_noticed(tmp_path: Path) -> None:
    run, path = Run(tmp_path, "smooth_ap", IN_EPOCHS), tmp_path / "step=7.ckpt"
    whole = path.read_bytes()
    for name in ("main_loss.queue_logits", "switch_step", "main_loss.queue_cursor"):
        path.write_bytes(whole)
        checkpoint = torch.load(path, weights_only=False)
        checkpoint["state_dict"][f"loss_fn.{name}"].fill_(0)
        torch.save(checkpoint, path)
        with pytest.raises(AssertionError):
            assert_same_run(run.resume(7), run.model, first=7)

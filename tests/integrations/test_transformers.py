"""The Trainer's callback: schedules as the pure functions have them, logs, and exact resuming."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.modeling_outputs import SequenceClassifierOutput

from imbalanced_losses import ScheduleConfig, SmoothAPLoss
from imbalanced_losses.integrations.transformers import LossWarmupCallback
from tests.integrations.transformers_runs import (
    ACCUMULATED,
    BY_EPOCH,
    BY_STEP,
    STEPS_PER_EPOCH,
    Network,
    Recorder,
    digits,
    make_loss,
    make_network,
    make_trainer,
    pure_trace,
    without_dropout,
)

SCHEDULES = {"epochs": BY_EPOCH, "steps": BY_STEP}


@dataclass
class Run:
    cfg: ScheduleConfig
    folder: Path
    recorder: Recorder
    log_history: list[dict[str, float]]
    end: dict[str, Tensor]


def run(cfg: ScheduleConfig, folder: Path, checkpoint: Path | None = None) -> Run:
    loss_fn, model = make_loss(cfg), make_network()
    saves = "steps" if checkpoint is None else "no"
    trainer, recorder = make_trainer(folder, loss_fn, model, digits(), save_strategy=saves, save_steps=3)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    end = {**model.state_dict(), **{f"loss.{name}": value for name, value in loss_fn.state_dict().items()}}
    return Run(cfg, folder, recorder, trainer.state.log_history, end)


@pytest.fixture(scope="module", params=SCHEDULES)
def whole_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run(SCHEDULES[request.param], tmp_path_factory.mktemp("whole"))


def test_phase_weight_and_temperature_are_the_pure_schedules(whole_run: Run) -> None:
    assert whole_run.recorder.trace == list(pure_trace(whole_run.cfg))


def test_logs_tell_weight_and_temperature(whole_run: Run) -> None:
    expected = [row[2:] for row in list(pure_trace(whole_run.cfg))[::ACCUMULATED]]
    for logs in (whole_run.recorder.logs, whole_run.log_history):
        training = [line for line in logs if "loss" in line]
        assert [(line["main_weight"], line["temperature"]) for line in training] == expected
        assert not any("main_weight" in line for line in logs if "loss" not in line)


@pytest.mark.parametrize(
    ("step", "phase"), [(3, (True, False)), (9, (False, True)), (15, (False, False)), (18, (False, False))]
)
def test_a_resumed_run_equals_one_that_never_stopped(
    whole_run: Run, step: int, phase: tuple[bool, bool], tmp_path: Path
) -> None:
    """Stopped within warm-up, blend and decay, and (18) between two epochs; with new objects and another folder."""
    resumed = run(whole_run.cfg, tmp_path, whole_run.folder / f"checkpoint-{step}")
    done = step * ACCUMULATED
    assert whole_run.recorder.trace[done - 1][:2] == phase
    assert resumed.recorder.trace == whole_run.recorder.trace[done:]
    assert len(resumed.recorder.losses) > 0
    for one, other in zip(resumed.recorder.losses, whole_run.recorder.losses[done:], strict=True):
        assert torch.equal(one, other)
    assert resumed.end.keys() == whole_run.end.keys()
    for name, value in whole_run.end.items():
        assert torch.equal(resumed.end[name], value), name


class Stopper(TrainerCallback):
    """Cuts an epoch short, or saves and ends the training."""

    def __init__(self, step: int, *orders: str) -> None:
        self.step, self.orders = step, orders

    def on_step_end(self, *arguments: Any, **_: Any) -> None:
        _, state, control = arguments
        for order in self.orders if state.global_step == self.step else ():
            setattr(control, order, True)


@pytest.mark.parametrize("step", [4, 10, 16])
def test_a_run_that_was_stopped_goes_on(whole_run: Run, step: int, tmp_path: Path) -> None:
    """Within warm-up, blend and decay."""
    loss_fn = make_loss(whole_run.cfg)
    recorder, stopper = Recorder(loss_fn), Stopper(step, "should_save", "should_training_stop")
    callbacks = [LossWarmupCallback(loss_fn), recorder, stopper]
    make_trainer(tmp_path / "stopped", loss_fn, make_network(), digits(), callbacks=callbacks)[0].train()
    assert len(recorder.trace) == step * ACCUMULATED
    resumed = run(whole_run.cfg, tmp_path / "resumed", tmp_path / "stopped" / f"checkpoint-{step}")
    assert recorder.trace + resumed.recorder.trace == whole_run.recorder.trace
    for name, value in whole_run.end.items():
        assert torch.equal(resumed.end[name], value), name


def test_an_epoch_that_was_cut_short_counts(tmp_path: Path) -> None:
    """state.epoch is then 0.5 when the next epoch begins."""
    loss_fn = make_loss(BY_EPOCH)
    recorder = Recorder(loss_fn)
    callbacks = [LossWarmupCallback(loss_fn), recorder, Stopper(3, "should_epoch_stop")]
    trainer, _ = make_trainer(tmp_path, loss_fn, make_network(), digits(), num_train_epochs=2, callbacks=callbacks)
    trainer.train()
    assert [row[2] for row in recorder.trace] == [0.0] * 3 * ACCUMULATED + [0.5] * STEPS_PER_EPOCH * ACCUMULATED


def test_a_second_run_starts_the_schedule_anew(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path, make_loss(BY_EPOCH), make_network(), digits())
    trainer.train()
    trainer.train()
    assert recorder.trace == list(pure_trace(BY_EPOCH)) * 2


@pytest.mark.parametrize("cfg", [None, ScheduleConfig()], ids=["bare", "no-warm-up"])
@pytest.mark.parametrize("in_model", [False, True])
def test_a_second_run_starts_with_an_empty_queue(cfg: ScheduleConfig | None, in_model: bool, tmp_path: Path) -> None:
    """``train()`` twice, then another Trainer with the same loss, as for folds and trials."""
    loss_fn = SmoothAPLoss(1, queue_size=128) if cfg is None else make_loss(cfg)
    runs = []
    for make_anew in (True, False, True):
        if make_anew:
            model = make_network()
            settings = {"num_train_epochs": 1, "optim": "sgd"}  # the Trainer keeps its optimizer's state
            trainer, recorder = make_trainer(tmp_path, loss_fn, model, digits(), **settings)
            if in_model:
                model.loss_fn = loss_fn
                trainer.pop_callback(LossWarmupCallback)
                trainer.add_callback(LossWarmupCallback())
        before = len(recorder.losses)
        torch.manual_seed(0)
        model.load_state_dict({**model.state_dict(), **make_network().state_dict()})
        trainer.train()
        runs.append(torch.stack(recorder.losses[before:]))
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2])


def test_a_bare_ranking_loss_resumes_with_its_queue(tmp_path: Path) -> None:
    """In a loss object that another run has used."""
    losses = []
    for checkpoint in (None, tmp_path / "checkpoint-3"):
        loss_fn = SmoothAPLoss(1, queue_size=128)
        loss_fn(torch.randn(9), torch.tensor([1] * 9))
        settings = {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 1}
        trainer, recorder = make_trainer(tmp_path, loss_fn, make_network(), digits(), **settings)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        losses.append(recorder.losses)
    assert torch.equal(torch.stack(losses[1]), torch.stack(losses[0][3 * ACCUMULATED :]))


def test_an_epoch_without_a_valid_class_warns_once(tmp_path: Path) -> None:
    rows = digits()
    rows.labels = torch.zeros_like(rows.labels)
    trainer, _ = make_trainer(tmp_path, SmoothAPLoss(1), make_network(), rows, num_train_epochs=2)
    with pytest.warns(UserWarning, match="expected a class that SmoothAPLoss can rank in some step of the") as caught:
        trainer.train()
    assert len(caught) == 1


@pytest.mark.parametrize("cfg", SCHEDULES.values(), ids=SCHEDULES)
def test_evaluation_within_an_epoch_leaves_training_as_it_was(cfg: ScheduleConfig, tmp_path: Path) -> None:
    ends, losses = [], []
    for settings in ({}, {"eval_strategy": "steps", "eval_steps": 1, "eval_dataset": digits(200, 240)}):
        loss_fn, model = make_loss(cfg), without_dropout(make_network())
        trainer, recorder = make_trainer(tmp_path, loss_fn, model, digits(), **settings)
        trainer.train()
        ends.append({**model.state_dict(), **{f"loss.{name}": value for name, value in loss_fn.state_dict().items()}})
        losses.append(recorder.losses)
    assert len(recorder.eval_losses) == len(recorder.trace) // ACCUMULATED * 5  # batches of 8 in 40 rows
    told = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    expected = torch.stack(recorder.eval_losses).reshape(-1, 5).mean(dim=1)
    assert told == pytest.approx(expected.tolist(), abs=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(*losses, strict=True))
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_bf16(tmp_path: Path) -> None:
    """The network computes in bf16, the loss in float32, and the schedule is the same."""
    loss_fn = make_loss(BY_EPOCH)
    model = make_network()
    dtypes = set()
    model.layers[0].register_forward_hook(lambda _, __, output: dtypes.add(output.dtype))
    trainer, recorder = make_trainer(tmp_path, loss_fn, model, digits(), bf16=True)
    trainer.train()
    assert dtypes == {torch.bfloat16}
    assert recorder.trace == list(pure_trace(BY_EPOCH))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in recorder.losses)
    assert loss_fn.main_loss.queue_state.targets.eq(1).any()
    assert trainer.evaluate(digits(200, 240))["eval_loss"] < 1


# --- where the wrappers are -------------------------------------------------------------------------------------------


class NetworkWithLoss(Network):
    """Computes its loss itself, as models on the hub do."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.loss_fn = make_loss(BY_EPOCH)

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Any:
        logits = self.layers(features)
        return SequenceClassifierOutput(loss=self.loss_fn(logits, labels[:, None]), logits=logits)


def test_wrappers_in_the_model_are_driven_and_resumed(tmp_path: Path) -> None:
    histories, ends = [], []
    for checkpoint in (None, str(tmp_path / "checkpoint-9")):
        model = without_dropout(NetworkWithLoss(make_network().config))
        settings = {"save_strategy": "steps", "save_steps": 9, "callbacks": [LossWarmupCallback()]}
        trainer, _ = make_trainer(tmp_path, nn.Identity(), model, digits(), **settings)
        trainer.compute_loss_func = None
        trainer.train(resume_from_checkpoint=checkpoint)
        histories.append(trainer.state.log_history)
        ends.append(model.state_dict())
    told = [(line["main_weight"], line["temperature"]) for line in histories[0] if "loss" in line]
    assert told == [row[2:] for row in list(pure_trace(BY_EPOCH))[::ACCUMULATED]]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


class Both(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine = make_loss(BY_EPOCH), make_loss(BY_STEP)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self.coarse(logits, targets) + self.fine(logits, targets)


def test_several_wrappers_are_told_apart(tmp_path: Path) -> None:
    trainer, recorder = make_trainer(tmp_path, Both(), make_network(), digits())
    trainer.train()
    for name, cfg in (("coarse", BY_EPOCH), ("fine", BY_STEP)):
        told = [line[f"loss_fn.{name}/main_weight"] for line in recorder.logs if "loss" in line]
        assert told == [row[2] for row in list(pure_trace(cfg))[::ACCUMULATED]]


# --- what a checkpoint lacks ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_callback(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a run that had no callback."""
    folder = tmp_path_factory.mktemp("without")
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3, "callbacks": []}
    trainer, _ = make_trainer(folder, SmoothAPLoss(1), make_network(), digits(), **settings)
    trainer.train()
    return folder / "checkpoint-3"


def test_a_checkpoint_without_the_losss_state_is_warned_of(without_callback: Path, tmp_path: Path) -> None:
    loss_fn = make_loss(BY_STEP)
    settings = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    trainer, recorder = make_trainer(tmp_path, loss_fn, make_network(), digits(), **settings)
    with pytest.warns(UserWarning, match="expected the state of loss_fn in the checkpoint, got none"):
        trainer.train(resume_from_checkpoint=str(without_callback))
    assert recorder.trace == list(pure_trace(BY_STEP))[3 * ACCUMULATED : 6 * ACCUMULATED]
    assert "loss_state" in (tmp_path / "checkpoint-6" / "trainer_state.json").read_text()  # from now on it is there


def test_a_callback_without_the_loss_is_refused(whole_run: Run, tmp_path: Path) -> None:
    for settings in ({"callbacks": [LossWarmupCallback()]}, {"restore_callback_states_from_checkpoint": True}):
        trainer, _ = make_trainer(tmp_path, make_loss(whole_run.cfg), make_network(), digits(), **settings)
        with pytest.raises(ValueError, match="expected LossWarmupCallback to have the loss_fn whose state"):
            trainer.train(resume_from_checkpoint=str(whole_run.folder / "checkpoint-3"))


def test_two_callbacks_are_refused(tmp_path: Path) -> None:
    callbacks = [LossWarmupCallback(make_loss(BY_EPOCH)), LossWarmupCallback(make_loss(BY_STEP))]
    trainer, _ = make_trainer(tmp_path, callbacks[0].loss_fn, make_network(), digits(), callbacks=callbacks)
    with pytest.raises(ValueError, match="expected one LossWarmupCallback in a Trainer, got 2"):
        trainer.train()


# --- the extra --------------------------------------------------------------------------------------------------------


def test_the_extra_is_imported_lazily_and_named_when_missing() -> None:
    code = """
import sys, imbalanced_losses.integrations
print({"transformers", "accelerate"} & set(sys.modules))
sys.modules["transformers"] = None  # as if it were not installed
import imbalanced_losses.integrations.transformers
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "set()\n", done.stderr
    assert done.returncode == 1
    assert "ImportError: imbalanced_losses.integrations.transformers needs Transformers" in done.stderr
    assert "pip install 'imbalanced-losses[transformers]'" in done.stderr

"""Runs of Lightning's own Trainer follow the pure schedule, and log it."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss
from imbalanced_losses.integrations.lightning import LossWarmupCallback
from imbalanced_losses.schedule import PHASES
from tests.integrations.lightning_runs import (
    BATCHES,
    EPOCHS,
    IN_EPOCHS,
    IN_STEPS,
    QUIET,
    Batches,
    Ranker,
    assert_same_run,
    count_batches,
    make_loss,
    make_loss_without_temperature,
    make_trainer,
    step_by_hand,
    train,
)

schedules = pytest.mark.parametrize(
    "schedule",
    [IN_EPOCHS, IN_STEPS, {**IN_EPOCHS, "final_main_weight": 0.5}, {"blend_steps": 7, **IN_STEPS, "warmup_steps": 0}],
    ids=["epochs", "steps", "mix", "no-warm-up"],
)


def read_log(logger: CSVLogger) -> list[dict[str, float]]:
    with Path(logger.log_dir, "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


@pytest.mark.parametrize("accumulate", [1, 2])
@schedules
def test_a_run_follows_the_pure_schedule(schedule: dict[str, Any], accumulate: int, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    model = train(make_loss(**schedule), accumulate_grad_batches=accumulate, logger=logger, log_every_n_steps=1)
    counters = count_batches(accumulate)
    expected = step_by_hand(model.loss_fn.config, counters)
    assert model.stands == expected
    by_step = dict(zip((step for _, step in counters), expected, strict=True))  # of a step's batches the last
    assert [(row["step"], row["main_weight"], row["temperature"]) for row in read_log(logger)] == [
        (step, weight, temperature) for step, (_, weight, temperature) in by_step.items()
    ]


@pytest.mark.parametrize(("schedule", "lengths"), [(IN_EPOCHS, (5, 5, 10)), (IN_STEPS, (4, 3, 13))])
def test_the_runs_are_long_enough_for_every_phase(schedule: dict[str, Any], lengths: tuple[int, ...]) -> None:
    stands = step_by_hand(make_loss(**schedule).config, count_batches())
    phases = [phase for phase, _, _ in stands]
    assert phases == [phase for phase, length in zip(PHASES, lengths, strict=True) for _ in range(length)]
    assert [stands[0][2], stands[-1][2]] == pytest.approx([0.5, 0.1])


class ManyLosses(Ranker):
    """Wrappers in containers, in a module's module, one within another, and one under two names."""

    def __init__(self) -> None:
        super().__init__(make_loss(**IN_EPOCHS))
        self.same = self.loss_fn
        heads = {"fraud": make_loss("recall", **IN_STEPS), "spam": make_loss_without_temperature(warmup_steps=7)}
        self.heads = nn.ModuleDict(heads)
        with pytest.warns(UserWarning, match="LossWarmupWrapper has no temperature and no reset_queue"):
            nested = LossWarmupWrapper(SigmoidFocalLoss(), make_loss("pauc", **IN_STEPS), warmup_epochs=2)
        self.deep = nn.Sequential(nn.Identity(), nn.ModuleList([nested]))
        self.wrappers = {name: part for name, part in self.named_modules() if isinstance(part, LossWarmupWrapper)}
        self.weights: dict[str, list[float]] = {name: [] for name in self.wrappers}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, targets = batch
        logits = self.net(features)
        for name, wrapper in self.wrappers.items():
            self.weights[name].append(wrapper.main_weight)
        loss: Tensor = self.loss_fn(logits, targets) + self.deep[1][0](logits, targets)
        return loss + self.heads["fraud"](logits, targets) + self.heads["spam"](logits, targets.float())


def test_every_wrapper_is_driven_and_logged_by_its_path(tmp_path: Path) -> None:
    model, logger = ManyLosses(), CSVLogger(tmp_path)
    make_trainer(logger=logger, log_every_n_steps=1).fit(model, Batches())
    log = read_log(logger)
    paths = ["loss_fn", "heads.fraud", "heads.spam", "deep.1.0", "deep.1.0.main_loss"]
    assert sorted(model.wrappers) == sorted(paths)
    for path, wrapper in model.wrappers.items():
        expected = step_by_hand(wrapper.config, count_batches())
        assert model.weights[path] == [weight for _, weight, _ in expected]
        assert [row[f"{path}/main_weight"] for row in log] == model.weights[path]
        if path not in ("heads.spam", "deep.1.0"):  # whose main losses have no temperature
            assert [row[f"{path}/temperature"] for row in log] == [temperature for _, _, temperature in expected]
    names = {name.rpartition("/")[2] for name in log[0]}
    assert names == {"epoch", "step", "main_weight", "temperature"}
    assert {name for name in log[0] if name.endswith("temperature")} == {
        f"{path}/temperature" for path in ("loss_fn", "heads.fraud", "deep.1.0.main_loss")
    }


class WiresHooks(Ranker):
    """As one had to before there was the callback."""

    def on_train_epoch_start(self) -> None:
        self.loss_fn.on_train_epoch_start(self.current_epoch)

    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        self.loss_fn.on_train_batch_start(self.global_step)


@pytest.mark.parametrize("schedule", [IN_EPOCHS, IN_STEPS], ids=["epochs", "steps"])
def test_hooks_that_the_module_calls_too_change_nothing(schedule: dict[str, Any]) -> None:
    twice = WiresHooks(make_loss(reset_queue_each_epoch=True, **schedule))
    make_trainer().fit(twice, Batches())
    assert_same_run(twice, train(make_loss(reset_queue_each_epoch=True, **schedule)))


class TwoOptimizers(Ranker):
    """Manual optimization: two steps a batch."""

    def __init__(self, loss_fn: LossWarmupWrapper) -> None:
        super().__init__(loss_fn)
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.net[0], self.net[2])]


def test_several_optimizers_count_a_step_each_as_in_max_steps() -> None:
    model = TwoOptimizers(make_loss(**IN_STEPS))
    trainer = make_trainer()
    trainer.fit(model, Batches())
    assert trainer.global_step == 2 * EPOCHS * BATCHES
    assert model.stands == step_by_hand(model.loss_fn.config, [(epoch, 2 * step) for epoch, step in count_batches()])


class Validated(Ranker):
    """Its loss is computed on held-out batches, too."""

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        features, targets = batch
        self.log("validation_loss", self.loss_fn(self.net(features), targets))


def test_validation_leaves_schedule_and_queue_alone() -> None:
    validated = Validated(make_loss(**IN_EPOCHS))
    trainer = make_trainer(val_check_interval=2, num_sanity_val_steps=2)
    trainer.fit(validated, Batches(), Batches())
    assert "validation_loss" in trainer.callback_metrics
    assert_same_run(validated, train(make_loss(**IN_EPOCHS)))


def test_a_checkpoint_is_validated_as_the_model_it_holds(tmp_path: Path) -> None:
    """Without a fit: no hook runs, and the loss is that of the phase in which training stopped."""
    trained, path = Validated(make_loss(**IN_EPOCHS)), tmp_path / "last.ckpt"
    trainer = make_trainer(max_epochs=2)
    trainer.fit(trained, Batches(), Batches())
    trainer.save_checkpoint(path)
    assert trained.stands[-1][0] == "blend"
    loaded = Validated(make_loss(**IN_EPOCHS), seed=2)
    (of_loaded,) = make_trainer().validate(loaded, Batches(), ckpt_path=path, verbose=False)
    (of_trained,) = make_trainer().validate(trained, Batches(), verbose=False)
    assert of_loaded == of_trained
    assert loaded.loss_fn.main_weight == 0.5
    assert loaded.loss_fn.state_dict().keys() == trained.loss_fn.state_dict().keys()
    for name, value in trained.loss_fn.state_dict().items():
        assert torch.equal(loaded.loss_fn.state_dict()[name], value), name


def test_a_second_fit_begins_anew() -> None:
    model = train(make_loss(**IN_EPOCHS))
    first = model.stands.copy()
    model.stands.clear()
    make_trainer().fit(model, Batches())
    assert model.stands == first


class Bare(Ranker):
    """A ranking loss without a wrapper."""

    def __init__(self, only_zeros: bool = False) -> None:
        super().__init__(make_loss().main_loss)
        self.only_zeros = only_zeros

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, targets = batch
        loss: Tensor = self.loss_fn(self.net(features), targets * 0 if self.only_zeros else targets)
        self.losses.append(loss.detach())
        return loss


def of_one_run(model: Ranker) -> Tensor:
    """The losses of a run from the same weights as every other."""
    model.net.load_state_dict(Ranker(make_loss()).net.state_dict())
    model.losses.clear()
    make_trainer(max_epochs=1).fit(model, Batches())
    return torch.stack(model.losses)


@pytest.mark.parametrize(
    "make",
    [Bare, lambda: Ranker(make_loss()), lambda: Ranker(make_loss(**IN_STEPS))],
    ids=["bare", "no-warm-up", "steps"],
)
def test_every_fit_of_a_new_trainer_starts_with_an_empty_queue(make: Any) -> None:
    """Of one epoch: the epoch hook alone does not tell."""
    model = make()
    first = of_one_run(model)
    assert torch.equal(of_one_run(model), first)
    assert torch.equal(of_one_run(model), first)


def test_a_run_resumed_from_a_checkpoint_of_step_0_keeps_its_queue(tmp_path: Path) -> None:
    """A queue may have been filled before the first training step."""
    model, path = Bare(), tmp_path / "filled.ckpt"
    model.loss_fn.load_state_dict(train(make_loss()).loss_fn.main_loss.state_dict())
    trainer = make_trainer(max_steps=0)
    trainer.fit(model, Batches())
    trainer.save_checkpoint(path)
    resumed = Bare()
    make_trainer(max_steps=1).fit(resumed, Batches(), ckpt_path=path)
    assert resumed.loss_fn.queue_state.valid.all()  # one batch alone does not fill it


def test_an_epoch_without_a_valid_class_warns_once() -> None:
    with pytest.warns(UserWarning, match="expected a class that SmoothAPLoss can rank in some step of the epoch"):
        make_trainer(max_epochs=1).fit(model := Bare(only_zeros=True), Batches())
    make_trainer(max_epochs=2).fit(model, Batches())  # warnings are errors: it would raise if it warned again


class Plain(L.LightningModule):
    """Its wrapper is in a list, which is no module: neither Lightning nor a checkpoint knows of it."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.hidden = nn.Linear(5, 1), [make_loss()]

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.net(batch[0]), batch[1].float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_without_a_wrapper_it_warns_and_trains() -> None:
    trainer = make_trainer(max_epochs=1)
    with pytest.warns(UserWarning, match=r"expected a LossWarmupWrapper or a ranking loss in Plain, got none: "):
        trainer.fit(Plain(), Batches())
    assert trainer.global_step == BATCHES
    assert not trainer.callback_metrics


def test_the_trainer_of_pytorch_lightning_takes_the_callback() -> None:
    class Module(pytorch_lightning.LightningModule):
        training_step, configure_optimizers = Ranker.training_step, Ranker.configure_optimizers

        def __init__(self) -> None:
            super().__init__()
            self.net, self.loss_fn = nn.Linear(5, 1), make_loss(**IN_STEPS)
            self.losses: list[Tensor] = []
            self.stands: list[Any] = []

    model = Module()
    options = {**QUIET, "max_epochs": EPOCHS, "logger": False, "enable_checkpointing": False}
    pytorch_lightning.Trainer(callbacks=[LossWarmupCallback()], **options).fit(model, Batches())
    assert model.stands == step_by_hand(model.loss_fn.config, count_batches())


def test_the_extra_is_imported_lazily_and_named_when_missing() -> None:
    code = """
import sys, imbalanced_losses.integrations
print([name for name in sys.modules if "lightning" in name])
sys.modules["lightning"] = None  # as if it were not installed
try:
    import imbalanced_losses.integrations.lightning
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "[]",
        "imbalanced_losses.integrations.lightning needs Lightning: pip install 'imbalanced-losses[lightning]'",
    ]

"""Saving, loading into new objects and going on equals never having stopped, bit for bit, for every loss."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss, SmoothAPLoss, SoftmaxFocalLoss
from tests.transforms.cases import CASES, Case

N_STEPS, STEPS_PER_EPOCH, BATCH, FEATURES = 12, 2, 6, 4


@dataclass(frozen=True)
class Setting:
    """A loss, and the shapes that it trains with."""

    make_loss: Callable[[], nn.Module]
    num_classes: int
    make_targets: Callable[[torch.Generator], Tensor]


@dataclass
class Run:
    """Everything that a training script has and saves."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss_fn: nn.Module

    @classmethod
    def start(cls, setting: Setting, seed: int) -> Run:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(FEATURES, 5), nn.Tanh(), nn.Linear(5, setting.num_classes))
        return cls(model, torch.optim.Adam(model.parameters(), lr=0.05), setting.make_loss())

    def parts(self) -> dict[str, Any]:
        return {"model": self.model, "optimizer": self.optimizer, "loss_fn": self.loss_fn}

    def save(self) -> io.BytesIO:
        file = io.BytesIO()
        torch.save({name: part.state_dict() for name, part in self.parts().items()}, file)
        file.seek(0)
        return file

    def load(self, file: io.BytesIO) -> None:
        """Through the default ``torch.load``, which unpickles nothing but tensors and plain containers."""
        saved = torch.load(file)
        for name, part in self.parts().items():
            part.load_state_dict(saved[name])

    def step(self, setting: Setting, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        rows = torch.randn(BATCH, FEATURES, generator=generator)
        targets = setting.make_targets(generator)
        hooked = isinstance(self.loss_fn, LossWarmupWrapper)
        if hooked and index % STEPS_PER_EPOCH == 0:
            self.loss_fn.on_train_epoch_start(index // STEPS_PER_EPOCH)
        if hooked:
            self.loss_fn.on_train_batch_start(index)
        self.optimizer.zero_grad()
        loss: Tensor = self.loss_fn(self.model(rows), targets)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def facts(self) -> dict[str, Any]:
        """What must agree at the end: weights, moments, queue, temperature, schedule."""
        states = {name: part.state_dict() for name, part in self.parts().items()}
        names = ("in_warmup", "in_blend", "main_weight", "current_temperature")
        return {**states, **{name: getattr(self.loss_fn, name) for name in names if hasattr(self.loss_fn, name)}}


def assert_resumes_exactly(setting: Setting, stop: int) -> None:
    uninterrupted, first = Run.start(setting, 0), Run.start(setting, 0)
    losses = [uninterrupted.step(setting, i) for i in range(N_STEPS)]
    interrupted_losses = [first.step(setting, i) for i in range(stop)]
    resumed = Run.start(setting, seed=99)
    resumed.load(first.save())
    interrupted_losses += [resumed.step(setting, i) for i in range(stop, N_STEPS)]
    assert torch.equal(torch.stack(interrupted_losses), torch.stack(losses))
    torch.testing.assert_close(resumed.facts(), uninterrupted.facts(), rtol=0, atol=0)
    assert len(set(map(float, losses))) > N_STEPS // 2  # it did train


# --- ranking losses ---------------------------------------------------------------------------------------------------


def ranking_setting(case: Case, **options: Any) -> Setting:
    return Setting(lambda: case.shell(temperature=0.3, **options), case.num_classes, case.targets)


@pytest.mark.parametrize("stop", [1, 7])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ranking_losses(case: Case, stop: int) -> None:
    """Before the ring wraps and after."""
    assert_resumes_exactly(ranking_setting(case), stop)


def test_the_queue_is_what_makes_the_difference() -> None:
    """Without the loss's state the resumed run differs: the tests above would notice a queue that is not saved."""
    setting = ranking_setting(CASES[0])
    uninterrupted, resumed = Run.start(setting, 0), Run.start(setting, 99)
    for i in range(5):
        uninterrupted.step(setting, i)
    state = uninterrupted.loss_fn.state_dict()
    resumed.load(uninterrupted.save())
    resumed.loss_fn.reset_queue()
    forgetful = resumed.step(setting, 5)
    resumed.loss_fn.load_state_dict(state)
    assert not torch.equal(uninterrupted.step(setting, 5), forgetful)


def test_an_assigned_temperature_goes_on() -> None:
    """Also when the new object was built with another one."""
    case = CASES[0]
    setting = ranking_setting(case)
    first, second = Run.start(setting, 0), Run.start(setting, 1)
    first.loss_fn.temperature = 0.07
    second.load(first.save())
    assert float(second.loss_fn.temperature) == float(first.loss_fn.temperature)
    assert torch.equal(first.step(setting, 0), second.step(setting, 0))


# --- focal losses -----------------------------------------------------------------------------------------------------


def sigmoid_labels(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (BATCH, 2), generator=generator).float()


def class_ids(generator: torch.Generator) -> Tensor:
    return torch.randint(0, 3, (BATCH,), generator=generator)


FOCAL = {
    "sigmoid": Setting(SigmoidFocalLoss, 2, sigmoid_labels),
    "softmax": Setting(SoftmaxFocalLoss, 3, class_ids),
    "softmax-alpha": Setting(lambda: SoftmaxFocalLoss(alpha=[0.2, 1.0, 3.0]), 3, class_ids),
}


@pytest.mark.parametrize("setting", FOCAL.values(), ids=FOCAL.keys())
def test_focal_losses(setting: Setting) -> None:
    assert_resumes_exactly(setting, 5)


# --- the wrapper, in each phase ---------------------------------------------------------------------------------------

SCHEDULES: dict[str, dict[str, Any]] = {
    "epochs": {"warmup_epochs": 2, "blend_epochs": 2},
    "steps": {"warmup_steps": 3, "blend_steps": 5},
    "final weight": {"warmup_epochs": 1, "blend_epochs": 1, "final_main_weight": 0.5},
    "reset each epoch": {"warmup_epochs": 1, "blend_epochs": 2, "reset_queue_each_epoch": True},
}


def wrapped(main: Callable[[], nn.Module], schedule: dict[str, Any]) -> Setting:
    def make() -> nn.Module:
        return LossWarmupWrapper(
            nn.BCEWithLogitsLoss(), main(), temp_start=0.5, temp_end=0.1, temp_decay_steps=6, **schedule
        )

    def labels(generator: torch.Generator) -> Tensor:
        return (torch.arange(BATCH) % 2)[torch.randperm(BATCH, generator=generator)].float()[:, None]

    return Setting(make, 1, labels)


@pytest.mark.parametrize("stop", range(N_STEPS))
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_wrapper_stopped_before_any_step(schedule: dict[str, Any], stop: int) -> None:
    """In warm-up, at the switch, in the blend, while the temperature falls and after; at and inside an epoch."""
    assert_resumes_exactly(wrapped(lambda: SmoothAPLoss(1, queue_size=16), schedule), stop)


@pytest.mark.parametrize("case", [case for case in CASES if case.num_classes == 1], ids=str)
@pytest.mark.parametrize("stop", [2, 6, 10])
def test_wrapper_around_every_ranking_loss(case: Case, stop: int) -> None:
    assert_resumes_exactly(wrapped(case.shell, SCHEDULES["epochs"]), stop)


@pytest.mark.parametrize("stop", [3, 5, 9])
def test_a_hook_repeated_after_loading_changes_nothing(stop: int) -> None:
    """A trainer that resumes inside an epoch announces that epoch again."""
    setting = wrapped(lambda: SmoothAPLoss(1, queue_size=16), SCHEDULES["epochs"])
    run, resumed = Run.start(setting, 0), Run.start(setting, 99)
    for i in range(stop):
        run.step(setting, i)
    resumed.load(run.save())
    resumed.loss_fn.on_train_epoch_start((stop - 1) // STEPS_PER_EPOCH)
    torch.testing.assert_close(resumed.facts(), run.facts(), rtol=0, atol=0)


def test_wrapper_around_a_focal_loss() -> None:
    """A main loss with neither temperature nor queue."""
    setting = wrapped(SigmoidFocalLoss, SCHEDULES["steps"])
    with pytest.warns(UserWarning, match="SigmoidFocalLoss"):
        assert_resumes_exactly(setting, 5)


def phases(run: Run) -> Iterator[tuple[bool, bool, float]]:
    for i in range(N_STEPS):
        run.loss_fn.on_train_epoch_start(i // STEPS_PER_EPOCH)
        run.loss_fn.on_train_batch_start(i)
        yield run.loss_fn.in_warmup, run.loss_fn.in_blend, run.loss_fn.main_weight


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedules_visit_every_phase(schedule: dict[str, Any]) -> None:
    """Else stopping before any step would not stop in each of them."""
    visited = list(phases(Run.start(wrapped(lambda: SmoothAPLoss(1, queue_size=16), schedule), 0)))
    assert any(warmup for warmup, _, _ in visited)
    assert any(blend for _, blend, _ in visited)
    assert visited[-1] == (False, False, schedule.get("final_main_weight", 1.0))


@pytest.mark.parametrize("stop", range(N_STEPS))
def test_saved_state_is_plain_tensors_of_the_same_kind_in_every_phase(stop: int) -> None:
    """So that a checkpoint of one phase fits a fresh wrapper in another."""
    setting = wrapped(lambda: SmoothAPLoss(1, queue_size=16), SCHEDULES["epochs"])
    run, fresh = Run.start(setting, 0), Run.start(setting, 1)
    for i in range(stop):
        run.step(setting, i)
    kinds = [
        {name: (type(value), value.shape, value.dtype) for name, value in own.loss_fn.state_dict().items()}
        for own in (run, fresh)
    ]
    assert kinds[0] == kinds[1]
    assert all(kind[0] is Tensor for kind in kinds[0].values())

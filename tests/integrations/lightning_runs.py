"""Small real runs of Lightning on the CPU, and what the pure schedule says of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from imbalanced_losses import LossWarmupWrapper, PAUCAtBudgetLoss, RecallAtQuantileLoss, SigmoidFocalLoss, SmoothAPLoss
from imbalanced_losses import schedule as pure
from imbalanced_losses.integrations.lightning import LossWarmupCallback
from imbalanced_losses.schedule import PHASES, ScheduleConfig

EPOCHS, BATCHES, ROWS, FEATURES = 4, 5, 16, 5
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
DECAY = {"temp_start": 0.5, "temp_end": 0.1, "temp_decay_steps": 8}
IN_EPOCHS = {"warmup_epochs": 1, "blend_epochs": 1, **DECAY}
IN_STEPS = {"warmup_steps": 4, "blend_steps": 3, **DECAY}
MAIN_LOSSES = {
    "smooth_ap": partial(SmoothAPLoss, queue_size=40),
    "recall": partial(RecallAtQuantileLoss, queue_size=40, quantile=0.3, threshold_gradient="implicit"),
    "pauc": partial(PAUCAtBudgetLoss, queue_size=40, beta=0.5, surrogate="pairwise"),
    "no_queue": partial(SmoothAPLoss, queue_size=0),
}
# phase, main_weight and temperature: of the schedule, or as a wrapper says
Stand = tuple[str, float, float]


def make_loss(main_loss: str = "smooth_ap", **settings: Any) -> LossWarmupWrapper:
    return LossWarmupWrapper(SigmoidFocalLoss(), MAIN_LOSSES[main_loss](num_classes=1), **settings)


def make_loss_without_temperature(**settings: Any) -> LossWarmupWrapper:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* has no .*: the schedule goes without", UserWarning)
        return LossWarmupWrapper(SigmoidFocalLoss(), nn.BCEWithLogitsLoss(), **settings)


class Batches:
    """Batches that are a function of epoch and position; it says where it is, as Lightning needs to resume within an
    epoch. Of each batch it gives the ``rank``-th of ``size`` shares."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.epoch, self.position = 0, 0

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.position == BATCHES:
            self.epoch, self.position = self.epoch + 1, 0
        while self.position < BATCHES:
            batch = make_batch(1000 * self.epoch + self.position)
            self.position += 1
            features, targets = (rows.tensor_split(self.size)[self.rank] for rows in batch)
            yield features, targets

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.position = state["epoch"], state["position"]


def make_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(ROWS, FEATURES, generator=generator)
    return features, (features[:, :1] + torch.randn(ROWS, 1, generator=generator) > 1).long()


class Ranker(L.LightningModule):
    """A small network; it writes down what it trained on."""

    def __init__(self, loss_fn: Any, seed: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 1))
        self.loss_fn = loss_fn
        self.losses: list[Tensor] = []
        self.stands: list[Stand] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        features, targets = batch
        loss: Tensor = self.loss_fn(self.net(features), targets)
        self.losses.append(loss.detach())
        if isinstance(self.loss_fn, LossWarmupWrapper):
            self.stands.append(stand_of(self.loss_fn))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9)


def stand_of(wrapper: LossWarmupWrapper) -> Stand:
    phase = "warmup" if wrapper.in_warmup else "blend" if wrapper.in_blend else "main"
    temperature = wrapper.current_temperature
    assert temperature is not None
    assert temperature == wrapper.main_loss.temperature.item()  # what the loss really computes with
    return phase, wrapper.main_weight, temperature


def step_by_hand(cfg: ScheduleConfig, counters: Sequence[tuple[int, int]]) -> list[Stand]:
    """Where the pure schedule stands at each batch, of which the epoch and the step are given."""
    state, stands, under_way = pure.init_schedule(cfg), [], -1
    for epoch, step in counters:
        if epoch != under_way:
            state, under_way = pure.start_epoch(state, cfg, epoch), epoch
        state = pure.start_step(state, cfg, step)
        weight, temperature = pure.main_weight(state, cfg).item(), pure.temperature(state, cfg).item()
        stands.append((PHASES[int(pure.phase(state, cfg))], weight, temperature))
    return stands


def count_batches(accumulate: int = 1) -> list[tuple[int, int]]:
    """Epoch and optimizer step of each batch; an epoch's last step takes the batches that are left."""
    steps_per_epoch = -(-BATCHES // accumulate)
    return [(e, e * steps_per_epoch + batch // accumulate) for e in range(EPOCHS) for batch in range(BATCHES)]


def make_trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    without = {"logger": False, "enable_checkpointing": False, "max_epochs": EPOCHS}
    return L.Trainer(callbacks=[LossWarmupCallback(), *callbacks], **{**QUIET, **without, **options})


def train(loss_fn: LossWarmupWrapper, **options: Any) -> Ranker:
    model = Ranker(loss_fn)
    make_trainer(**options).fit(model, Batches())
    return model


def assert_same_run(model: Ranker, other: Ranker, first: int = 0) -> None:
    """Bit for bit: every loss from the ``first`` batch of ``other`` on; parameters, queue and schedule at the end."""
    assert torch.equal(torch.stack(model.losses), torch.stack(other.losses[first:]))
    assert model.stands == other.stands[first:]
    states = model.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())

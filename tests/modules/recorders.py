"""Losses that record their calls, and a training loop, for the tests of the warm-up wrapper."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from imbalanced_losses import LossWarmupWrapper

WARMUP_VALUE, MAIN_VALUE = 1.0, 3.0
LOGITS, TARGETS = torch.zeros(4), torch.zeros(4)
WEIGHT = torch.full((4,), 2.0)


class Recorder(nn.Module):
    """A loss of one value that keeps the keyword arguments of its calls."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value
        self.calls: list[dict[str, Any]] = []

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._record(logits)

    def _record(self, logits: Tensor, **kwargs: Any) -> Tensor:
        self.calls.append(kwargs)
        return self.value + 0 * logits.sum()


class WeightedRecorder(Recorder):
    def forward(self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        return self._record(logits, sample_weight=sample_weight)


class CatchAllRecorder(Recorder):
    def forward(self, logits: Tensor, targets: Tensor, **kwargs: Any) -> Tensor:
        return self._record(logits, **kwargs)


class MainLoss(CatchAllRecorder):
    """A foreign loss with a Python number as temperature and a queue."""

    def __init__(self) -> None:
        super().__init__(MAIN_VALUE)
        self.temperature: Any = 7.0
        self.resets = 0
        self.gather_distributed: bool | None = None

    def reset_queue(self) -> None:
        self.resets += 1


def make(warmup_loss: Any = None, main_loss: Any = None, **settings: Any) -> Any:
    warmup_loss = Recorder(WARMUP_VALUE) if warmup_loss is None else warmup_loss
    return LossWarmupWrapper(warmup_loss, MainLoss() if main_loss is None else main_loss, **settings)


def train(wrapper: Any, steps: Iterable[int], steps_per_epoch: int = 3, **kwargs: Any) -> list[Any]:
    """Drive a wrapper as a training loop does; the batches depend on the step alone."""
    losses = []
    for step in steps:
        if step % steps_per_epoch == 0:
            wrapper.on_train_epoch_start(step // steps_per_epoch)
        wrapper.on_train_batch_start(step)
        logits = torch.randn(4, generator=torch.Generator().manual_seed(step))
        losses.append(wrapper(logits, torch.tensor([1.0, 0.0, 1.0, 0.0]), **kwargs))
    return losses


def save_and_load(wrapper: nn.Module) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file)
    return loaded


def bits(states: Any) -> list[bytes]:
    return [leaf.detach().numpy().tobytes() for leaf in _pytree.tree_leaves(states)]

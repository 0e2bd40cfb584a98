"""What all adapters do with a model's losses: find them, start a run, and read the values to log."""

from __future__ import annotations

from torch import nn

from imbalanced_losses.modules._queue import QueueLoss
from imbalanced_losses.modules._runs import forget_rows
from imbalanced_losses.modules.logit_adjusted import LogitAdjustedLoss
from imbalanced_losses.modules.warmup import LossWarmupWrapper

__all__ = ["find_wrappers", "has_losses", "read_schedules", "start_new_run"]


def find_wrappers(module: nn.Module) -> dict[str, LossWarmupWrapper]:
    """Return every wrapper in a module, at any depth and once each, by its path."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LossWarmupWrapper)}


def has_losses(module: nn.Module) -> bool:
    """Whether a module contains a wrapper, or a loss that keeps rows or class counts."""
    return any(isinstance(part, LossWarmupWrapper) or _remembers(part) for part in module.modules())


def start_new_run(module: nn.Module) -> None:
    """Restart every schedule, and reset the queue and class counts of every loss: nothing of an earlier run is left.

    Unlike a wrapper's loss, a model may have other parts with a ``reset_queue``, which is not ours to call.
    """
    for part in module.modules():
        if isinstance(part, LossWarmupWrapper):
            part.start_new_run()
        elif _remembers(part):
            forget_rows(part)


def _remembers(part: nn.Module) -> bool:
    """Whether it is a loss with a queue, or one that estimates its priors from a stream."""
    return isinstance(part, QueueLoss) or (isinstance(part, LogitAdjustedLoss) and part.num_classes is not None)


def read_schedules(wrappers: dict[str, LossWarmupWrapper]) -> dict[str, float]:
    """Return ``main_weight`` and ``temperature`` of each wrapper; with several, as ``path/main_weight`` and so on."""
    values: dict[str, float] = {}
    for name, wrapper in wrappers.items():
        prefix = f"{name}/" if len(wrappers) > 1 else ""
        values[f"{prefix}main_weight"] = wrapper.main_weight
        if wrapper.current_temperature is not None:
            values[f"{prefix}temperature"] = wrapper.current_temperature
    return values

"""What every adapter does with a model's losses: find them, start a run, and read off what is worth logging."""

from __future__ import annotations

from torch import nn

from imbalanced_losses.modules._ranking import RankingLoss
from imbalanced_losses.modules.warmup import LossWarmupWrapper

__all__ = ["find_wrappers", "has_losses", "read_schedules", "start_new_run"]


def find_wrappers(module: nn.Module) -> dict[str, LossWarmupWrapper]:
    """Every wrapper in a module, at any depth and once each, by its path."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LossWarmupWrapper)}


def has_losses(module: nn.Module) -> bool:
    """Whether there is a wrapper or a ranking loss in a module."""
    return any(isinstance(part, (LossWarmupWrapper, RankingLoss)) for part in module.modules())


def start_new_run(module: nn.Module) -> None:
    """Set every schedule to its start and empty every ranking loss's queue: what an earlier run left there."""
    for part in module.modules():
        if isinstance(part, LossWarmupWrapper):
            part.start_new_run()
        elif isinstance(part, RankingLoss):
            part.reset_queue()


def read_schedules(wrappers: dict[str, LossWarmupWrapper]) -> dict[str, float]:
    """``main_weight`` and ``temperature`` of each wrapper; with several, ``path/main_weight`` and so on."""
    values: dict[str, float] = {}
    for name, wrapper in wrappers.items():
        prefix = f"{name}/" if len(wrappers) > 1 else ""
        values[f"{prefix}main_weight"] = wrapper.main_weight
        if wrapper.current_temperature is not None:
            values[f"{prefix}temperature"] = wrapper.current_temperature
    return values

"""What every adapter does with a model's schedules: find them, and read off what is worth logging."""

from __future__ import annotations

from torch import nn

from imbalanced_losses.modules.warmup import LossWarmupWrapper

__all__ = ["find_wrappers", "read_schedules"]


def find_wrappers(module: nn.Module) -> dict[str, LossWarmupWrapper]:
    """Every wrapper in a module, at any depth and once each, by its path."""
    return {name: part for name, part in module.named_modules() if isinstance(part, LossWarmupWrapper)}


def read_schedules(wrappers: dict[str, LossWarmupWrapper]) -> dict[str, float]:
    """``main_weight`` and ``temperature`` of each wrapper; with several, ``path/main_weight`` and so on."""
    values: dict[str, float] = {}
    for name, wrapper in wrappers.items():
        prefix = f"{name}/" if len(wrappers) > 1 else ""
        values[f"{prefix}main_weight"] = wrapper.main_weight
        if wrapper.current_temperature is not None:
            values[f"{prefix}temperature"] = wrapper.current_temperature
    return values

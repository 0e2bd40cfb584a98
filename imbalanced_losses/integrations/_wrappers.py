"""What every adapter does with a model's schedules: find them, and read off what is worth logging."""

from __future__ import annotations

import warnings

from torch import nn

from imbalanced_losses.modules.warmup import LossWarmupWrapper

__all__ = ["find_wrappers", "read_schedules"]


def find_wrappers(module: nn.Module) -> dict[str, LossWarmupWrapper]:
    """Every wrapper in a module, at any depth and once each, by its path.

    Without one it warns only: whoever compares losses swaps a plain one in and leaves the callbacks as they are.
    """
    wrappers = {name: part for name, part in module.named_modules() if isinstance(part, LossWarmupWrapper)}
    if not wrappers:
        warnings.warn(
            f"expected a LossWarmupWrapper in {type(module).__name__}, got none: there is no schedule to drive. "
            "Assign the wrapper to an attribute of the module; a plain list or dict hides it",
            stacklevel=3,
        )
    return wrappers


def read_schedules(wrappers: dict[str, LossWarmupWrapper]) -> dict[str, float]:
    """``main_weight`` and ``temperature`` of each wrapper; with several, ``path/main_weight`` and so on."""
    values: dict[str, float] = {}
    for name, wrapper in wrappers.items():
        prefix = f"{name}/" if len(wrappers) > 1 else ""
        values[f"{prefix}main_weight"] = wrapper.main_weight
        if wrapper.current_temperature is not None:
            values[f"{prefix}temperature"] = wrapper.current_temperature
    return values

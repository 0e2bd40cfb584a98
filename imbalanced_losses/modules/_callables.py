"""Helpers for the warm-up wrapper, whose losses may be any callables: query their features and set attributes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

__all__ = [
    "Loss",
    "first",
    "has_temperature",
    "keeps_temperature",
    "override_gather",
    "set_temperature",
    "takes",
    "warn_of_missing_hooks",
]

Loss: TypeAlias = Callable[..., Any]


def takes(loss: Loss, keyword: str) -> bool:
    """Whether a loss accepts the keyword, by its signature; False if it has none."""
    loss = getattr(loss, "_orig_mod", loss)  # torch.compile(module) is a wrapper whose forward accepts any keyword
    if isinstance(loss, partial) and isinstance(loss.func, nn.Module):  # a module's __call__ accepts any keyword, too
        return takes(loss.func, keyword)
    try:
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    except (TypeError, ValueError):
        return False
    return keyword in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def first(output: Any) -> Any:
    """Return the loss in a call's output: the first element of a tuple."""
    return output[0] if isinstance(output, tuple) else output


def has_temperature(loss: Loss) -> bool:
    """Whether the loss has a temperature."""
    return getattr(loss, "temperature", None) is not None


def set_temperature(loss: Any, value: float) -> None:
    """Fill ``loss.temperature`` if it is a tensor, else assign the number to the attribute or property."""
    if keeps_temperature(loss):
        with torch.no_grad():
            loss.temperature.fill_(value)
    else:
        loss.temperature = value


def keeps_temperature(loss: Any) -> bool:
    """Whether ``loss.temperature`` is a tensor to fill, such as a buffer."""
    is_property = isinstance(getattr(type(loss), "temperature", None), property)
    return isinstance(getattr(loss, "temperature", None), Tensor) and not is_property


def override_gather(gather_distributed: bool | None, *losses: Loss) -> None:
    """Set ``gather_distributed`` on the losses that have it, unless it is ``None``."""
    for loss in losses:
        if gather_distributed is not None and hasattr(loss, "gather_distributed"):
            loss.gather_distributed = gather_distributed


def warn_of_missing_hooks(main_loss: Loss) -> None:
    """Warn about a main loss without a temperature or a queue; the warning points to the caller's caller."""
    missing = [name for name in ("temperature", "reset_queue") if getattr(main_loss, name, None) is None]
    if missing:
        names = " and no ".join(missing)
        warnings.warn(f"{type(main_loss).__name__} has no {names}: the schedule goes without", stacklevel=3)

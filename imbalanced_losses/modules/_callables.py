"""What the warm-up wrapper asks of a loss that may be any callable, and does to it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
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
    """Whether the signature has the keyword, or takes any. What shows no signature does not."""
    loss = getattr(loss, "_orig_mod", loss)  # what torch.compile(module) wraps with a forward that takes anything
    try:
        parameters = inspect.signature(loss.forward if isinstance(loss, nn.Module) else loss).parameters
    except (TypeError, ValueError):
        return False
    return keyword in parameters or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())


def first(output: Any) -> Any:
    """The loss in what a call gave: of a tuple the first element."""
    return output[0] if isinstance(output, tuple) else output


def has_temperature(loss: Loss) -> bool:
    """Whether there is a temperature to set."""
    return getattr(loss, "temperature", None) is not None


def set_temperature(loss: Any, value: float) -> None:
    """Fill the tensor that ``loss.temperature`` is, else assign the number to the attribute or property."""
    if keeps_temperature(loss):
        with torch.no_grad():
            loss.temperature.fill_(value)
    else:
        loss.temperature = value


def keeps_temperature(loss: Any) -> bool:
    """Whether ``loss.temperature`` is a tensor to be filled, such as a buffer."""
    is_property = isinstance(getattr(type(loss), "temperature", None), property)
    return isinstance(getattr(loss, "temperature", None), Tensor) and not is_property


def override_gather(gather_distributed: bool | None, *losses: Loss) -> None:
    """Set the attribute of that name, where there is one, unless it is ``None``."""
    for loss in losses:
        if gather_distributed is not None and hasattr(loss, "gather_distributed"):
            loss.gather_distributed = gather_distributed


def warn_of_missing_hooks(main_loss: Loss) -> None:
    """Warn of a main loss without a temperature or a queue; the warning points to the caller's caller."""
    missing = [name for name in ("temperature", "reset_queue") if getattr(main_loss, name, None) is None]
    if missing:
        names = " and no ".join(missing)
        warnings.warn(f"{type(main_loss).__name__} has no {names}: the schedule goes without", stacklevel=3)

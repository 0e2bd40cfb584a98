"""Settings: what stands for a number or a flag, as the plain Python value that a frozen configuration keeps.

Python's own values compare, hash and pickle, and a compiler can guard on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["check_fields", "described", "optional", "plain"]

Check = Callable[[str, Any], Any]
"""Takes a setting's name and its value, returns the value to keep or raises."""


def plain(value: object) -> object:
    """A NumPy scalar, a 0-dim array or a 0-dim tensor as its Python number; anything else as it is.

    A tensor that requires grad is more than a number, one on ``meta`` is none: they stay, so that a check refuses them.
    """
    is_refused = isinstance(value, Tensor) and (value.requires_grad or value.is_meta)
    if isinstance(value, (int, float, str)) or is_refused:
        return value
    is_scalar = getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if is_scalar else value  # type: ignore[attr-defined]


def described(value: object) -> str:
    """What a message shows of a value that is refused."""
    if not isinstance(value, Tensor):
        return repr(value)
    if value.requires_grad:
        return "a tensor that requires grad: a setting is not trained, pass it with .detach()"
    if value.is_meta:
        kind = "number" if value.dim() == 0 else "list"
        return f"a tensor on meta, which holds no values: pass a Python {kind}"
    return repr(value) if value.dim() == 0 else f"a tensor of shape {list(value.shape)}"


def check_fields(config: object, **checks: Check) -> None:
    """Put fields of a frozen dataclass through their checks, and keep what the checks return."""
    for name, check in checks.items():
        object.__setattr__(config, name, check(name, getattr(config, name)))


def optional(check: Check) -> Check:
    """The same check for a setting that may be ``None``."""
    return lambda name, value: None if value is None else check(name, value)

"""Settings: numbers and flags of any kind, converted to the Python values that a frozen configuration keeps.

Python values compare, hash and pickle, and a compiler can guard on them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = ["check_fields", "described", "optional", "plain"]

Check = Callable[[str, Any], Any]
"""A function of a setting's name and value that returns the value to keep, or raises."""


def plain(value: object) -> object:
    """Convert a NumPy scalar, a 0-dim array or a 0-dim tensor to a Python number; return anything else as it is.

    A tensor that requires grad or is on ``meta`` is not converted, so that the checks refuse it.
    """
    is_refused = isinstance(value, Tensor) and (value.requires_grad or value.is_meta)
    if isinstance(value, (int, float, str)) or is_refused:
        return value
    is_scalar = getattr(value, "shape", None) == () and hasattr(value, "item")
    return value.item() if is_scalar else value  # type: ignore[attr-defined]


def described(value: object) -> str:
    """Describe a refused value in an error message."""
    if not isinstance(value, Tensor):
        return repr(value)
    if value.requires_grad:
        return "a tensor that requires grad: a setting is not trained, pass it with .detach()"
    if value.is_meta:
        kind = "number" if value.dim() == 0 else "list"
        return f"a tensor on meta, which holds no values: pass a Python {kind}"
    return repr(value) if value.dim() == 0 else f"a tensor of shape {list(value.shape)}"


def check_fields(config: object, **checks: Check) -> None:
    """Check fields of a frozen dataclass, and set them to what the checks return."""
    for name, check in checks.items():
        object.__setattr__(config, name, check(name, getattr(config, name)))


def optional(check: Check) -> Check:
    """Return the same check, which also accepts ``None``."""
    return lambda name, value: None if value is None else check(name, value)

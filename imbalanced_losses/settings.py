"""Settings: numbers and flags of any kind, checked and converted to the Python values that a configuration keeps.

Python values compare, hash and pickle, and a compiler can guard on them. Every error says what was expected and what
came. Tensor arguments of a step are checked in :mod:`imbalanced_losses.validation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from imbalanced_losses import remedies

__all__ = [
    "check_callable",
    "check_choice",
    "check_config",
    "check_counter",
    "check_fields",
    "check_finite_number",
    "check_flag",
    "check_fraction",
    "check_ignore_index",
    "check_integer",
    "check_module",
    "check_nonnegative",
    "check_normal_number",
    "check_number",
    "check_open_fraction",
    "check_positive",
    "check_prior_sequence",
    "check_share_sequence",
    "check_weight_sequence",
    "described",
    "optional",
    "plain",
]

T = TypeVar("T")

INT64 = torch.iinfo(torch.int64)

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


def check_config(cfg: object, expected: type) -> None:
    """Check that ``cfg`` is of the loss's configuration class."""
    if not isinstance(cfg, expected):
        raise TypeError(f"expected cfg to be a {expected.__name__}, got {type(cfg).__name__}")


def check_choice(name: str, value: T, choices: Sequence[object]) -> T:
    """Return ``value`` if it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, choices))}, got {described(value)}")
    return value


def check_flag(name: str, value: object) -> bool:
    """Return a bool (Python's, NumPy's or a 0-dim tensor) as Python's."""
    flag = plain(value)
    if not isinstance(flag, bool):
        raise TypeError(f"expected {name} to be True or False, got {described(value)}")
    return flag


def check_integer(name: str, value: object, minimum: int) -> int:
    """Return an int >= ``minimum`` (Python's, NumPy's or a 0-dim tensor, but not a bool) as Python's."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"expected {name} to be an int, got {described(value)}")
    if number < minimum:
        raise ValueError(f"expected {name} to be at least {minimum}, got {number}")
    return int(number)


def check_ignore_index(name: str, value: object) -> int:
    """Return an int that fits int64, the dtype of targets, as Python's."""
    number = check_integer(name, value, minimum=INT64.min)
    if number > INT64.max:
        raise ValueError(f"expected {name} to be at most {INT64.max}, got {number}")
    return number


def check_counter(name: str, value: object) -> int | Tensor:
    """Return an int >= 0 as Python's; a 0-dim integer tensor is returned as it is, and its value is not read."""
    if not isinstance(value, Tensor):
        return check_integer(name, value, minimum=0)
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"expected {name} of an integer dtype, got {value.dtype}")
    if value.dim() != 0:
        raise ValueError(f"expected {name} as an int or a 0-dim tensor, got shape {list(value.shape)}")
    return value


def check_module(name: str, value: object) -> None:
    """Check that ``value`` is an ``nn.Module``."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"expected {name} to be an nn.Module, got {type(value).__name__}")


def check_callable(name: str, value: object) -> None:
    """Check that ``value`` is callable."""
    if not callable(value):
        raise TypeError(f"expected {name} to be an nn.Module or another callable, got {type(value).__name__}")


def check_number(name: str, value: object) -> float:
    """Return a number (Python's, NumPy's or a 0-dim tensor, but not a bool) as a Python float."""
    number = plain(value)
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise TypeError(f"expected {name} to be a number, got {described(value)}")
    return float(number)


def check_finite_number(name: str, value: object) -> float:
    """Return a finite number as a float."""
    number = check_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"expected {name} to be a finite number, got {number}")
    return number


def check_positive(name: str, value: object) -> float:
    """Return a finite number > 0 as a float."""
    number = check_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"expected {name} to be a finite number above 0, got {number}")
    return number


def check_nonnegative(name: str, value: object) -> float:
    """Return a finite number >= 0 as a float."""
    number = check_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"expected {name} to be a finite number of at least 0, got {number}")
    return number


def check_fraction(name: str, value: object) -> float:
    """Return a number in [0, 1] as a float."""
    number = check_number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"expected {name} in [0, 1], got {number}")
    return number


def check_open_fraction(name: str, value: object, remedy: str) -> float:
    """Return a number strictly between 0 and 1 as a float."""
    number = check_number(name, value)
    if not 0 < number < 1:
        raise ValueError(f"expected {name} strictly between 0 and 1, got {number}: {remedy}")
    return number


def check_normal_number(name: str, value: object) -> float:
    """Return a number that is finite and > 0 also in float32, in which losses divide or multiply by it."""
    number = check_positive(name, value)
    float32 = torch.finfo(torch.float32)
    if not float32.tiny <= number <= float32.max:
        raise ValueError(
            f"expected {name} in [{float32.tiny:.2e}, {float32.max:.2e}] (normal in float32), got {number}"
        )
    return number


def check_weight_sequence(name: str, weights: object) -> tuple[float, ...]:
    """Return finite numbers >= 0, given as a sequence or a Tensor ``[C]``, as a tuple."""
    if isinstance(weights, Tensor) and (weights.requires_grad or weights.is_meta):
        raise TypeError(f"expected {name} to be a sequence of numbers, got {described(weights)}")
    if isinstance(weights, Tensor) and weights.dim() != 1:
        remedy = remedies.for_weight_sequence() if weights.dim() == 0 else ""
        raise ValueError(f"expected {name} of shape [C], got {list(weights.shape)}{remedy}")
    values = getattr(weights, "tolist", lambda: weights)()  # also turns NumPy numbers into Python's
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        remedy = remedies.for_weight_sequence() if isinstance(values, (int, float)) else ""
        raise TypeError(f"expected {name} to be a sequence of numbers, got {described(weights)}{remedy}")
    return tuple(check_nonnegative(f"every weight in {name}", weight) for weight in values)


def check_share_sequence(name: str, shares: object) -> tuple[float, ...]:
    """Return finite numbers >= 0 as a tuple; given as a number, a sequence or a Tensor ``[C]``."""
    number = plain(shares)
    return check_weight_sequence(name, [number] if isinstance(number, (int, float)) else shares)


def check_prior_sequence(name: str, priors: object) -> tuple[float, ...]:
    """Return :func:`check_share_sequence` of numbers that are not all 0."""
    values = check_share_sequence(name, priors)
    if not any(values):
        raise ValueError(f"expected {name} with a class above 0, got {values}: pass class counts or shares")
    return values


def check_fields(config: object, **checks: Check) -> None:
    """Check fields of a frozen dataclass, and set them to what the checks return."""
    for name, check in checks.items():
        object.__setattr__(config, name, check(name, getattr(config, name)))


def optional(check: Check) -> Check:
    """Return the same check, which also accepts ``None``."""
    return lambda name, value: None if value is None else check(name, value)

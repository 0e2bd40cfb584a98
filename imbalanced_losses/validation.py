"""Argument checks: every error says what was expected and what came.

They look at shapes, dtypes, devices and Python values only, so they cost nothing, never synchronise with a device, and
run in the pure functions. Checks that read tensor data are in :mod:`imbalanced_losses.label_values`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from imbalanced_losses import remedies
from imbalanced_losses.settings import described, plain

__all__ = [
    "check_callable",
    "check_choice",
    "check_class_ids",
    "check_class_priors",
    "check_class_weights",
    "check_config",
    "check_counter",
    "check_element_targets",
    "check_element_weights",
    "check_finite_number",
    "check_flag",
    "check_fraction",
    "check_integer",
    "check_logits",
    "check_module",
    "check_nonnegative",
    "check_number",
    "check_open_fraction",
    "check_positive",
    "check_prior_sequence",
    "check_row_flags",
    "check_row_weights",
    "check_targets",
    "check_temperature",
    "check_temperature_number",
    "check_tensor",
    "check_weight_sequence",
]


T = TypeVar("T")


def check_tensor(name: str, value: object) -> None:
    """Check that ``value`` is a dense Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"expected {name} to be a dense Tensor, got one of layout {value.layout}")


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


def check_temperature_number(name: str, value: object) -> float:
    """Return a number that is finite and > 0 also in float32, in which losses divide by it."""
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


def check_prior_sequence(name: str, priors: object) -> tuple[float, ...]:
    """Return finite numbers >= 0, not all 0, as a tuple; given as a number, a sequence or a Tensor ``[C]``."""
    number = plain(priors)
    values = check_weight_sequence(name, [number] if isinstance(number, (int, float)) else priors)
    if not any(values):
        raise ValueError(f"expected {name} with a class above 0, got {values}: pass class counts or shares")
    return values


def check_logits(logits: Tensor, num_classes: int) -> Tensor:
    """Return raw scores ``[N, C]``; ``[N]`` is taken as ``[N, 1]``."""
    _check_floating(logits)
    columns = logits.unsqueeze(-1) if logits.dim() == 1 else logits
    if columns.dim() != 2 or columns.shape[1] != num_classes:
        remedy = remedies.for_ranking_logits(logits, num_classes)
        raise ValueError(f"expected logits of shape [N, {num_classes}], got {list(logits.shape)}{remedy}")
    return columns


NO_LABEL = -1  # replaces a nan or a fraction, which is not a label


def check_targets(targets: Tensor, logits: Tensor, *, multilabel: bool) -> Tensor:
    """Return class ids ``[N]`` or, with ``multilabel``, 0/1 labels ``[N, C]`` as int64; ``[N, 1]`` is taken as ``[N]``.

    Binary and multi-label targets may be bool or float, so that the same targets feed ``BCEWithLogitsLoss``.
    """
    check_tensor("targets", targets)
    n, num_classes = logits.shape
    if targets.is_complex():
        raise TypeError(f"expected integer targets, got {targets.dtype}")
    if not multilabel and num_classes > 1 and (targets.is_floating_point() or targets.dtype == torch.bool):
        remedy = remedies.for_ranking_targets(targets, logits, multilabel=False)
        raise TypeError(f"expected integer class ids as targets, got {targets.dtype}{remedy}")
    expected = [n, num_classes] if multilabel else [n]
    rows = targets.squeeze(-1) if not multilabel and targets.dim() == 2 and targets.shape[1] == 1 else targets
    if list(rows.shape) != expected:
        remedy = remedies.for_ranking_targets(targets, logits, multilabel=multilabel)
        raise ValueError(f"expected targets of shape {expected}, got {list(targets.shape)}{remedy}")
    _check_device("targets", targets, logits)
    labels = rows.long()
    return torch.where(labels == rows, labels, NO_LABEL) if rows.is_floating_point() else labels


def check_row_flags(name: str, flags: Tensor, logits: Tensor) -> Tensor:
    """Return bool flags ``[N]``; with logits ``[N, 1]``, ``[N, 1]`` is taken as ``[N]``."""
    check_tensor(name, flags)
    if flags.dtype != torch.bool:
        raise TypeError(f"expected {name} of dtype torch.bool, got {flags.dtype}: use {name}.bool()")
    return _check_rows(name, flags, logits)


def check_row_weights(name: str, weights: Tensor, logits: Tensor) -> Tensor:
    """Return real weights ``[N]`` without gradient; with logits ``[N, 1]``, ``[N, 1]`` is taken as ``[N]``."""
    _check_real(name, weights)
    return _check_rows(name, weights, logits).detach()


def check_element_targets(targets: Tensor, logits: Tensor) -> Tensor:
    """Return labels of the logits' shape, of any real dtype, without gradient."""
    _check_floating(logits)
    check_tensor("targets", targets)
    if targets.is_complex():
        raise TypeError(f"expected targets of a real dtype, got {targets.dtype}")
    if targets.shape != logits.shape:
        remedy = remedies.for_element_targets(targets, logits)
        expected = f"expected targets of shape {list(logits.shape)} like the logits"
        raise ValueError(f"{expected}, got {list(targets.shape)}{remedy}")
    _check_device("targets", targets, logits)
    return targets.detach() if targets.requires_grad else targets


def check_class_ids(targets: Tensor, logits: Tensor) -> None:
    """Check that class ids ``[N, ...]`` of an integer dtype fit logits ``[N, C, ...]``."""
    _check_floating(logits)
    check_tensor("targets", targets)
    if logits.dim() < 2 or logits.shape[1] == 0:
        remedy = ": for one logit a row use SigmoidFocalLoss" if logits.dim() == 1 else ""
        expected = "expected logits of shape [N, C, ...] with at least one class"
        raise ValueError(f"{expected}, got {list(logits.shape)}{remedy}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        remedy = remedies.for_class_ids(targets, logits)
        raise TypeError(f"expected integer class ids as targets, got {targets.dtype}{remedy}")
    positions = [logits.shape[0], *logits.shape[2:]]
    if list(targets.shape) != positions:
        shapes = f"{positions} for logits of shape {list(logits.shape)}, got {list(targets.shape)}"
        raise ValueError(f"expected targets of shape {shapes}{remedies.for_class_ids(targets, logits)}")
    _check_device("targets", targets, logits)


def check_class_weights(name: str, weights: Tensor, logits: Tensor) -> Tensor:
    """Return floating-point weights ``[C]`` for logits ``[N, C, ...]``, without gradient."""
    check_tensor(name, weights)
    if not weights.is_floating_point():
        raise TypeError(f"expected floating-point {name}, got {weights.dtype}")
    if list(weights.shape) != [logits.shape[1]]:
        raise ValueError(f"expected {name} of shape {[logits.shape[1]]}, got {list(weights.shape)}")
    remedy = f"{remedies.for_loss_elsewhere(logits.device)}, {name}.to({str(logits.device)!r})"
    _check_device(name, weights, logits, remedy)
    return weights.detach()


def check_class_priors(name: str, priors: Tensor, logits: Tensor) -> Tensor:
    """Return real priors ``[C]`` for logits ``[N, C, ...]``, without gradient; with one logit per row also ``[2]``."""
    _check_real(name, priors)
    num_classes = logits.shape[1] if logits.dim() > 1 else 1
    if list(priors.shape) != [num_classes] and not (num_classes == 1 and list(priors.shape) == [2]):
        expected = "[1], or [2] for the labels 0 and 1" if num_classes == 1 else f"[{num_classes}]"
        raise ValueError(f"expected {name} of shape {expected}, got {list(priors.shape)}")
    if priors.device != logits.device:  # asked first, because the remedy takes time to write
        _check_device(name, priors, logits, remedies.for_loss_elsewhere(logits.device))
    return priors.detach() if priors.requires_grad else priors


def check_element_weights(name: str, weights: Tensor, targets: Tensor) -> Tensor:
    """Return real weights of rows, ``[N]``, or of elements, without gradient.

    Element weights broadcast to the targets' shape ``[N, ...]``, with a first axis of N.
    """
    _check_real(name, weights)
    n_rows, shape = list(targets.shape[:1]), list(targets.shape)
    own = list(weights.shape)
    of_elements = len(own) == len(shape) and own[:1] == n_rows
    if own != n_rows and not (of_elements and all(k in (1, size) for k, size in zip(own, shape, strict=True))):
        expected = f"{n_rows} or {shape} (an axis after the first may be 1)" if len(shape) > 1 else f"{n_rows}"
        raise ValueError(f"expected {name} of shape {expected}, got {own}")
    _check_device(name, weights, targets)
    return weights.detach()


def check_temperature(temperature: Tensor | float, like: Tensor) -> Tensor:
    """Return a finite number > 0 or a 0-dim tensor as a 0-dim tensor, detached, of ``like``'s dtype and device."""
    if not isinstance(temperature, Tensor):
        number = check_temperature_number("temperature", temperature)
        return torch.full((), number, dtype=like.dtype, device=like.device)
    if temperature.is_complex() or temperature.dtype == torch.bool:
        raise TypeError(f"expected temperature of a real dtype, got {temperature.dtype}")
    if temperature.dim() != 0:
        raise ValueError(f"expected temperature as a float or a 0-dim tensor, got shape {list(temperature.shape)}")
    # a copy: autograd saves it, and the buffer that it may come from can be overwritten before the backward
    return temperature.detach().to(like, copy=True)


def _check_floating(logits: Tensor) -> None:
    check_tensor("logits", logits)
    if not logits.is_floating_point():
        raise TypeError(f"expected floating-point logits, got {logits.dtype}{remedies.for_integer_logits(logits)}")


def _check_real(name: str, weights: Tensor) -> None:
    check_tensor(name, weights)
    if weights.is_complex() or weights.dtype == torch.bool:
        remedy = "" if weights.is_complex() else f": use {name}.float()"
        raise TypeError(f"expected {name} of a real dtype, got {weights.dtype}{remedy}")


def _check_rows(name: str, value: Tensor, logits: Tensor) -> Tensor:
    rows = value.squeeze(-1) if value.dim() == 2 and value.shape[1] == logits.shape[1] == 1 else value
    if list(rows.shape) != [logits.shape[0]]:
        raise ValueError(f"expected {name} of shape {[logits.shape[0]]}, got {list(value.shape)}")
    _check_device(name, value, logits)
    return rows


def _check_device(name: str, value: Tensor, logits: Tensor, remedy: str = "") -> None:
    if value.device != logits.device:
        remedy = remedy or remedies.for_tensor_elsewhere(name, logits.device)
        raise ValueError(f"expected {name} on {logits.device} like the logits, got {value.device}{remedy}")

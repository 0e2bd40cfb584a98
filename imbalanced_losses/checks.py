"""Argument checks: every error says what was expected and what came.

Most checks look at shapes, dtypes, devices and Python values only: they cost nothing, never synchronise with a device,
and run in the pure functions. Those named ``check_*_values`` read tensor data: only the module shells call them, in
eager mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "check_callable",
    "check_choice",
    "check_class_id_values",
    "check_class_ids",
    "check_class_weights",
    "check_config",
    "check_counter",
    "check_element_targets",
    "check_element_weights",
    "check_fraction",
    "check_integer",
    "check_logits",
    "check_module",
    "check_nonnegative",
    "check_number",
    "check_positive",
    "check_probability_values",
    "check_row_flags",
    "check_row_weights",
    "check_target_values",
    "check_targets",
    "check_temperature",
    "check_temperature_number",
    "check_tensor",
    "check_weight_sequence",
    "check_weight_values",
]


def check_tensor(name: str, value: object) -> None:
    """``value`` must be a dense Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"expected {name} to be a dense Tensor, got one of layout {value.layout}")


def check_config(cfg: object, expected: type) -> None:
    """``cfg`` must be of the class that the loss is configured with."""
    if not isinstance(cfg, expected):
        raise TypeError(f"expected cfg to be a {expected.__name__}, got {type(cfg).__name__}")


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """``value`` must be one of ``choices``."""
    if value not in choices:
        raise ValueError(f"expected {name} to be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_integer(name: str, value: object, minimum: int) -> None:
    """``value`` must be a Python int (not a bool) of at least ``minimum``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected {name} to be an int, got {value!r}")
    if value < minimum:
        raise ValueError(f"expected {name} to be at least {minimum}, got {value}")


def check_counter(name: str, value: Tensor | int) -> None:
    """``value`` must be a Python int >= 0 or a 0-dim integer tensor (whose value is not read)."""
    if not isinstance(value, Tensor):
        check_integer(name, value, minimum=0)
    elif value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"expected {name} of an integer dtype, got {value.dtype}")
    elif value.dim() != 0:
        raise ValueError(f"expected {name} as an int or a 0-dim tensor, got shape {list(value.shape)}")


def check_module(name: str, value: object) -> None:
    """``value`` must be an ``nn.Module``."""
    if not isinstance(value, nn.Module):
        raise TypeError(f"expected {name} to be an nn.Module, got {type(value).__name__}")


def check_callable(name: str, value: object) -> None:
    """``value`` must be callable."""
    if not callable(value):
        raise TypeError(f"expected {name} to be an nn.Module or another callable, got {type(value).__name__}")


def check_number(name: str, value: object) -> None:
    """``value`` must be a Python number (not a bool)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"expected {name} to be a number, got {value!r}")


def check_positive(name: str, value: float) -> None:
    """``value`` must be a finite number above zero."""
    check_number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"expected {name} to be a finite number above 0, got {value}")


def check_nonnegative(name: str, value: float) -> None:
    """``value`` must be a finite number of at least zero."""
    check_number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"expected {name} to be a finite number of at least 0, got {value}")


def check_fraction(name: str, value: float) -> None:
    """``value`` must lie in [0, 1]."""
    check_number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"expected {name} in [0, 1], got {value}")


def check_temperature_number(name: str, value: float) -> None:
    """``value`` must be a finite number above zero also in float32: losses divide by it there."""
    check_positive(name, value)
    float32 = torch.finfo(torch.float32)
    if not float32.tiny <= value <= float32.max:
        raise ValueError(f"expected {name} in [{float32.tiny:.2e}, {float32.max:.2e}] (normal in float32), got {value}")


def check_weight_sequence(name: str, weights: object) -> tuple[float, ...]:
    """A sequence, or Tensor ``[C]``, of finite numbers of at least zero, as a tuple."""
    if isinstance(weights, Tensor) and weights.dim() != 1:
        raise ValueError(f"expected {name} of shape [C], got {list(weights.shape)}")
    values = getattr(weights, "tolist", lambda: weights)()  # also NumPy's numbers become Python's
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise TypeError(f"expected {name} to be a sequence of numbers, got {weights!r}")
    for weight in values:
        check_nonnegative(f"every weight in {name}", weight)
    return tuple(float(weight) for weight in values)


def check_logits(logits: Tensor, num_classes: int) -> Tensor:
    """Raw scores ``[N, C]`` (``[N]`` is taken as ``[N, 1]``), returned as ``[N, C]``."""
    _check_floating(logits)
    columns = logits.unsqueeze(-1) if logits.dim() == 1 else logits
    if columns.dim() != 2 or columns.shape[1] != num_classes:
        raise ValueError(f"expected logits of shape [N, {num_classes}], got {list(logits.shape)}")
    return columns


NO_LABEL = -1  # what a nan becomes, which is no label


def check_targets(targets: Tensor, logits: Tensor, *, multilabel: bool) -> Tensor:
    """Class ids ``[N]`` (``[N, 1]`` is taken as ``[N]``) or, with ``multilabel``, 0/1 labels ``[N, C]``, as int64.

    Labels that can only be 0 or 1 (binary, multi-label) may be bool or float, so that the same targets feed
    ``BCEWithLogitsLoss``.
    """
    check_tensor("targets", targets)
    n, num_classes = logits.shape
    if targets.is_complex():
        raise TypeError(f"expected integer targets, got {targets.dtype}")
    if not multilabel and num_classes > 1 and (targets.is_floating_point() or targets.dtype == torch.bool):
        raise TypeError(f"expected integer class ids as targets, got {targets.dtype}")
    expected = [n, num_classes] if multilabel else [n]
    rows = targets.squeeze(-1) if not multilabel and targets.dim() == 2 and targets.shape[1] == 1 else targets
    if list(rows.shape) != expected:
        raise ValueError(f"expected targets of shape {expected}, got {list(targets.shape)}")
    _check_device("targets", targets, logits)
    return rows.nan_to_num(nan=NO_LABEL).long() if rows.is_floating_point() else rows.long()


def check_row_flags(name: str, flags: Tensor, logits: Tensor) -> Tensor:
    """A bool ``[N]``."""
    check_tensor(name, flags)
    if flags.dtype != torch.bool:
        raise TypeError(f"expected {name} of dtype torch.bool, got {flags.dtype}")
    return _check_rows(name, flags, logits)


def check_row_weights(name: str, weights: Tensor, logits: Tensor) -> Tensor:
    """A real-valued ``[N]``, returned without gradient."""
    check_tensor(name, weights)
    if weights.is_complex() or weights.dtype == torch.bool:
        raise TypeError(f"expected {name} of a real dtype, got {weights.dtype}")
    return _check_rows(name, weights, logits).detach()


def check_element_targets(targets: Tensor, logits: Tensor) -> Tensor:
    """One label in [0, 1] of any real dtype for each of the logits, returned without gradient."""
    _check_floating(logits)
    check_tensor("targets", targets)
    if targets.is_complex():
        raise TypeError(f"expected targets of a real dtype, got {targets.dtype}")
    if targets.shape != logits.shape:
        raise ValueError(f"expected targets of shape {list(logits.shape)} like the logits, got {list(targets.shape)}")
    _check_device("targets", targets, logits)
    return targets.detach() if targets.requires_grad else targets


def check_class_ids(targets: Tensor, logits: Tensor) -> None:
    """Class ids ``[N, ...]`` of an integer dtype for logits ``[N, C, ...]``."""
    _check_floating(logits)
    check_tensor("targets", targets)
    if logits.dim() < 2 or logits.shape[1] == 0:
        raise ValueError(f"expected logits of shape [N, C, ...] with at least one class, got {list(logits.shape)}")
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"expected integer class ids as targets, got {targets.dtype}")
    expected = [logits.shape[0], *logits.shape[2:]]
    if list(targets.shape) != expected:
        raise ValueError(
            f"expected targets of shape {expected} for logits of shape {list(logits.shape)}, got {list(targets.shape)}"
        )
    _check_device("targets", targets, logits)


def check_class_weights(name: str, weights: Tensor, logits: Tensor) -> Tensor:
    """A floating-point ``[C]`` for logits ``[N, C, ...]``, returned without gradient."""
    check_tensor(name, weights)
    if not weights.is_floating_point():
        raise TypeError(f"expected floating-point {name}, got {weights.dtype}")
    if list(weights.shape) != [logits.shape[1]]:
        raise ValueError(f"expected {name} of shape {[logits.shape[1]]}, got {list(weights.shape)}")
    _check_device(name, weights, logits)
    return weights.detach()


def check_element_weights(name: str, weights: Tensor, targets: Tensor) -> Tensor:
    """A real-valued ``[N]`` or weights of the targets' shape ``[N, ...]``, returned without gradient."""
    check_tensor(name, weights)
    if weights.is_complex() or weights.dtype == torch.bool:
        raise TypeError(f"expected {name} of a real dtype, got {weights.dtype}")
    allowed = [list(targets.shape[:1]), list(targets.shape)]
    if list(weights.shape) not in allowed:
        expected = " or ".join(map(str, allowed if targets.dim() > 1 else allowed[:1]))
        raise ValueError(f"expected {name} of shape {expected}, got {list(weights.shape)}")
    _check_device(name, weights, targets)
    return weights.detach()


def check_temperature(temperature: Tensor | float, like: Tensor) -> Tensor:
    """A finite number above 0 or a 0-dim tensor, as a 0-dim tensor without gradient of ``like``'s dtype and device."""
    if not isinstance(temperature, Tensor):
        check_temperature_number("temperature", temperature)
        return torch.full((), temperature, dtype=like.dtype, device=like.device)
    if temperature.dim() != 0:
        raise ValueError(f"expected temperature as a float or a 0-dim tensor, got shape {list(temperature.shape)}")
    # a copy: autograd keeps it, and the buffer that it may come from is filled anew before a late backward
    return temperature.detach().to(like, copy=True)


def check_target_values(targets: Tensor, num_classes: int, ignore_index: int, *, multilabel: bool) -> None:
    """Reads data: labels must be 0 or 1 (binary, multi-label) or class ids in ``[0, C)``, or ``ignore_index``."""
    binary = multilabel or num_classes == 1
    n_labels = 2 if binary else num_classes
    if not targets.is_floating_point() and _all_within(targets, 0, n_labels - 1):
        return
    labels = targets.long()  # uint8 156 equals -100 if asked as it is
    wrong = (targets != labels) | ~(((labels >= 0) & (labels < n_labels)) | (labels == ignore_index))
    if wrong.any():
        expected = "labels in {0, 1}" if binary else f"class ids in [0, {num_classes})"
        raise ValueError(f"expected {expected} or ignore_index={ignore_index}, got {targets[wrong][0].item()}")


def check_probability_values(targets: Tensor, ignore_index: int | None) -> None:
    """Reads data: labels must lie in [0, 1] or equal ``ignore_index``."""
    if _all_within(targets, 0, 1):
        return
    labels = targets if targets.is_floating_point() else targets.float()  # uint8 156 equals -100 if asked as it is
    allowed = (labels >= 0) & (labels <= 1)
    wrong = ~(allowed if ignore_index is None else allowed | (labels == ignore_index))
    if wrong.any():
        also = "" if ignore_index is None else f" or ignore_index={ignore_index}"
        raise ValueError(f"expected targets in [0, 1]{also}, got {targets[wrong][0].item()}")


def check_class_id_values(targets: Tensor, num_classes: int, ignore_index: int) -> None:
    """Reads data: class ids must lie in ``[0, C)`` or equal ``ignore_index``."""
    if _all_within(targets, 0, num_classes - 1):
        return
    ids = targets.long()  # uint8 156 equals -100 if asked as it is
    wrong = ~(((ids >= 0) & (ids < num_classes)) | (ids == ignore_index))
    if wrong.any():
        expected = f"class ids in [0, {num_classes}) or ignore_index={ignore_index}"
        raise ValueError(f"expected {expected}, got {targets[wrong][0].item()}")


def check_weight_values(weights: Tensor, name: str = "sample_weight") -> None:
    """Reads data: weights must be finite and not negative."""
    wrong = ~(weights.isfinite() & (weights >= 0))
    if wrong.any():
        raise ValueError(f"expected finite {name} >= 0, got {weights[wrong][0].item()}")


def _all_within(values: Tensor, low: int, high: int) -> bool:
    """Whether all values lie in ``[low, high]``: one operator for the data of most batches."""
    if values.numel() == 0 or values.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which aminmax refuses
        return False
    lowest, highest = torch.aminmax(values)
    return low <= lowest.item() and highest.item() <= high


def _check_floating(logits: Tensor) -> None:
    check_tensor("logits", logits)
    if not logits.is_floating_point():
        raise TypeError(f"expected floating-point logits, got {logits.dtype}")


def _check_rows(name: str, value: Tensor, logits: Tensor) -> Tensor:
    if list(value.shape) != [logits.shape[0]]:
        raise ValueError(f"expected {name} of shape {[logits.shape[0]]}, got {list(value.shape)}")
    _check_device(name, value, logits)
    return value


def _check_device(name: str, value: Tensor, logits: Tensor) -> None:
    if value.device != logits.device:
        raise ValueError(f"expected {name} on {logits.device} like the logits, got {value.device}")

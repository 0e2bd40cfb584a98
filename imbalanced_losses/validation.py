"""Checks of tensor arguments: every error says what was expected and what came.

They look at shapes, dtypes and devices only, so they cost nothing, never synchronise with a device, and run in the pure
functions. Checks that read tensor data are in :mod:`imbalanced_losses.label_values`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses import remedies
from imbalanced_losses.dispatch import is_traced
from imbalanced_losses.settings import check_normal_number

__all__ = [
    "check_class_ids",
    "check_class_priors",
    "check_class_weights",
    "check_element_targets",
    "check_element_weights",
    "check_floating",
    "check_logits",
    "check_row_flags",
    "check_row_weights",
    "check_targets",
    "check_temperature",
    "check_tensor",
    "ids_in_range",
]


def check_tensor(name: str, value: object) -> None:
    """Check that ``value`` is a dense Tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"expected {name} to be a Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"expected {name} to be a dense Tensor, got one of layout {value.layout}")


def check_logits(logits: Tensor, num_classes: int) -> Tensor:
    """Return raw scores ``[N, C]``; ``[N]`` is taken as ``[N, 1]``."""
    check_floating("logits", logits)
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
    check_floating("logits", logits)
    check_tensor("targets", targets)
    if targets.is_complex():
        raise TypeError(f"expected targets of a real dtype, got {targets.dtype}")
    if targets.shape != logits.shape:
        remedy = remedies.for_element_targets(targets, logits)
        expected = f"expected targets of shape {list(logits.shape)} like the logits"
        raise ValueError(f"{expected}, got {list(targets.shape)}{remedy}")
    _check_device("targets", targets, logits)
    return targets.detach()


def check_class_ids(targets: Tensor, logits: Tensor) -> None:
    """Check that class ids ``[N, ...]`` of an integer dtype fit logits ``[N, C, ...]``."""
    check_floating("logits", logits)
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


def ids_in_range(targets: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Return class ids; in traced code, whose values are not checked, ``ignore_index`` for one out of range."""
    if not is_traced():
        return targets
    ids = targets.long()  # in uint8, 156 == -100
    return torch.where(ids.clamp(0, num_classes - 1) == ids, ids, ignore_index)


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
    if priors.device != logits.device:  # tested here, so that the remedy is formatted only when needed
        _check_device(name, priors, logits, remedies.for_loss_elsewhere(logits.device))
    return priors.detach()


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
        number = check_normal_number("temperature", temperature)
        return torch.full((), number, dtype=like.dtype, device=like.device)
    if temperature.is_complex() or temperature.dtype == torch.bool:
        raise TypeError(f"expected temperature of a real dtype, got {temperature.dtype}")
    if temperature.dim() != 0:
        raise ValueError(f"expected temperature as a float or a 0-dim tensor, got shape {list(temperature.shape)}")
    # a copy: autograd saves it, and the buffer that it may come from can be overwritten before the backward
    return temperature.detach().to(like, copy=True)


def check_floating(name: str, scores: Tensor) -> None:
    """Check that scores are a dense Tensor of a floating-point dtype."""
    check_tensor(name, scores)
    if not scores.is_floating_point():
        raise TypeError(f"expected floating-point {name}, got {scores.dtype}{remedies.for_integer_logits(scores)}")


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

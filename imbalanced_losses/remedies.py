"""Remedies for common mistakes: the last part of an error message, which says what to do.

Each function looks at shapes and dtypes only (:func:`for_label` also at one label) and returns ``""`` if it knows no
remedy.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "for_class_ids",
    "for_element_targets",
    "for_integer_logits",
    "for_label",
    "for_loss_elsewhere",
    "for_one_class",
    "for_ranking_logits",
    "for_ranking_targets",
    "for_tensor_elsewhere",
    "for_weight_sequence",
]


def for_integer_logits(logits: Tensor) -> str:
    """Remedy for logits of an integer dtype, which usually are predicted classes."""
    return "" if logits.is_complex() else ": pass raw scores, not predictions (whole-number scores as .float())"


def for_ranking_logits(logits: Tensor, num_classes: int) -> str:
    """Remedy for logits that are not ``[N, num_classes]``."""
    if num_classes == 1 and logits.dim() == 2 and logits.shape[1] == 2:
        one_logit = "for a binary task with two logits use logits[:, 1] - logits[:, 0]"
        return f": {one_logit}, and for one-hot labels targets[:, 1]"
    if num_classes == 2 and (logits.dim() == 1 or logits.shape[1:] == (1,)):
        return ": for one logit use num_classes=1"
    if logits.dim() < 3:
        return ""
    second, last = logits.shape[1] == num_classes, logits.shape[-1] == num_classes
    if second == last and num_classes > 1:  # no class axis, or two candidates
        return ""
    rows = "{}.flatten(0, -2)" if last else "{}.movedim(1, -1).flatten(0, -2)"
    ids = f"{rows.format('logits')} with class ids targets.flatten()"
    return f": flatten to rows, {ids} or, with multilabel=True, {rows.format('targets')}" if second or last else ""


def for_ranking_targets(targets: Tensor, logits: Tensor, *, multilabel: bool) -> str:
    """Remedy for targets of the wrong shape or dtype, given logits ``[N, C]``."""
    n, num_classes = logits.shape
    if multilabel:
        one_id_a_row = targets.shape in ((n,), (n, 1))
        return ": for class ids use multilabel=False" if one_id_a_row and num_classes > 1 else ""
    if targets.shape == logits.shape and num_classes > 1:
        return f": for one-hot labels use {_argmax(targets)}, for several labels a row multilabel=True"
    if num_classes == 1 and targets.shape == (n, 2):
        return ": for one-hot labels use targets[:, 1]"
    steps = "" if targets.shape in ((n,), (n, 1)) else ".flatten()"
    if num_classes > 1 and _is_float_or_bool(targets):
        steps += ".long()"
    return f": use targets{steps}" if steps and targets.numel() == n and not targets.is_complex() else ""


def for_class_ids(targets: Tensor, logits: Tensor) -> str:
    """Remedy for class ids of the wrong shape or dtype, given logits ``[N, C, ...]``."""
    if targets.is_complex():
        return ""
    if targets.shape == logits.shape:
        one_hot = f"for one-hot labels use {_argmax(targets)}, for several labels a row"
        return f": {'for one logit use' if logits.shape[1] == 1 else one_hot} SigmoidFocalLoss"
    positions = logits.shape[:1] + logits.shape[2:]
    as_ids = ".long()" if _is_float_or_bool(targets) else ""
    if targets.shape == positions:
        return f": use targets{as_ids}" if as_ids else ""
    if targets.shape == (*logits.shape[:1], 1, *logits.shape[2:]):
        return f": use targets.squeeze(1){as_ids}"
    if targets.shape == logits.shape[:-1]:
        beside = f" and targets{as_ids}" if as_ids else ""
        return f": classes are the second axis, use logits.movedim(-1, 1){beside}"
    return ""


def for_one_class(label: float) -> str:
    """Remedy for a class id that is out of range, given softmax logits ``[N, 1, ...]``."""
    return ": for one logit and labels in {0, 1} use SigmoidFocalLoss, targets.unsqueeze(1)" if label == 1 else ""


def for_element_targets(targets: Tensor, logits: Tensor) -> str:
    """Remedy for targets that are not of the logits' shape."""
    if targets.shape == (*logits.shape, 1):
        return ": use targets.squeeze(-1)"
    if logits.dim() < 2:
        return ""
    for source, destination in ((-1, 1), (1, -1)):
        if targets.dim() == logits.dim() and targets.movedim(source, destination).shape == logits.shape:
            return f": use targets.movedim({source}, {destination})"
    classes_second = targets.shape == logits.shape[:1] + logits.shape[2:]
    classes_last = targets.shape == logits.shape[:-1]
    if logits.dim() > 2 and classes_second == classes_last:  # not class ids, or the layout is ambiguous
        return ""
    if classes_second and logits.shape[1] == 1:
        return ": use targets.unsqueeze(1)"
    if classes_last and logits.shape[-1] == 1:
        return ": use targets.unsqueeze(-1)"
    return _for_ids(targets, logits, last=not classes_second) if classes_second or classes_last else ""


def _for_ids(targets: Tensor, logits: Tensor, *, last: bool) -> str:
    """Remedy for class ids, given logits of several classes on the second axis or the last."""
    num_classes = logits.shape[-1 if last else 1]
    ids = "targets" if targets.dtype == torch.int64 else "targets.long()"
    one_hot = f"one_hot({ids}, {num_classes}){'' if last or logits.dim() == 2 else '.movedim(-1, 1)'}"
    softmax = f"SoftmaxFocalLoss{'(...)(logits.movedim(-1, 1), ' + ids + ')' if last else ''}"
    pick = "logits[..., 1] - logits[..., 0]" if last else "logits[:, 1] - logits[:, 0]"
    binary = f", for a binary task one logit, {pick}" if num_classes == 2 else ""
    return f": for class ids use {softmax}{binary}, or make labels with {one_hot}"


def for_weight_sequence() -> str:
    """Remedy for one number where each class needs a weight."""
    return ": pass one weight per class, for two classes [1 - alpha, alpha]"


def for_label(label: float, *, binary: bool) -> str:
    """Remedy for a label that is out of range."""
    if label not in (-1, -100, 255):  # common markers in datasets
        return ""
    ignored = f"to ignore such labels use ignore_index={label:.0f}"
    mapped = {
        -1.0: "if the labels are -1 and 1, use (targets > 0).long(); if -1 marks rows to ignore, use ignore_index=-1",
        255.0: "if the labels are 0 and 255, use targets / 255; if 255 marks rows to ignore, use ignore_index=255",
    }
    return f": {mapped.get(label, ignored) if binary else ignored}"


def for_tensor_elsewhere(name: str, device: torch.device) -> str:
    """Remedy for an argument that is not on the logits' device."""
    return f": move it with {name}.to({str(device)!r})"


def for_loss_elsewhere(device: torch.device) -> str:
    """Remedy for a module's buffer, or a function's argument, that is not on the logits' device.

    The caller appends a comma and an expression that makes the argument on that device.
    """
    return f": create it there, with loss_fn.to({str(device)!r}) or, for the pure function"


def _is_float_or_bool(targets: Tensor) -> bool:
    return targets.is_floating_point() or targets.dtype == torch.bool


def _argmax(targets: Tensor) -> str:
    # argmax does not take bool
    return "targets.int().argmax(1)" if targets.dtype == torch.bool else "targets.argmax(1)"

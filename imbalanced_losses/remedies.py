"""The last part of an error message: what to do about inputs that a well-known mistake explains.

Each function looks at shapes and dtypes only, and gives ``""`` where it knows no remedy.
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
    "for_ranking_logits",
    "for_ranking_targets",
    "for_tensor_elsewhere",
]

ONE_HOT = ": for one-hot labels use targets.argmax(1), for several labels a row multilabel=True"


def for_integer_logits(logits: Tensor) -> str:
    """Integers are seldom scores; where they are, a float dtype says so."""
    return "" if logits.is_complex() else ": pass raw scores, not predictions (whole-number scores as .float())"


def for_ranking_logits(logits: Tensor, num_classes: int) -> str:
    """Of logits that are not ``[N, num_classes]``."""
    if num_classes == 1 and logits.dim() == 2 and logits.shape[1] == 2:
        return ": of two logits for a binary task make one, logits[:, 1] - logits[:, 0]"
    if num_classes == 2 and (logits.dim() == 1 or logits.shape[1:] == (1,)):
        return ": for one logit use num_classes=1"
    if logits.dim() == 3 and logits.shape[-1] == num_classes:
        return ": flatten sequences, logits.flatten(0, 1) and targets.flatten()"
    return ""


def for_ranking_targets(targets: Tensor, num_classes: int, *, multilabel: bool) -> str:
    """Of targets of the wrong shape or dtype beside logits ``[N, num_classes]``."""
    if multilabel:
        one_id_a_row = targets.dim() == 1 or targets.shape[1:] == (1,)
        return ": for class ids use multilabel=False" if one_id_a_row and num_classes > 1 else ""
    if targets.dim() == 2 and targets.shape[1] == num_classes > 1:
        return ONE_HOT
    if num_classes == 1 and targets.dim() == 2 and targets.shape[1] == 2:
        return ": for one-hot labels use targets[:, 1]"
    return _for_ids_of_another_dtype(targets)


def for_class_ids(targets: Tensor, logits: Tensor) -> str:
    """Of targets of the wrong shape or dtype beside logits ``[N, C, ...]``."""
    if targets.shape == logits.shape:
        return ": for one-hot labels use targets.argmax(1), for several labels a row SigmoidFocalLoss"
    if targets.dim() == logits.dim() and targets.shape[1] == 1:
        return ": use targets.squeeze(1)"
    return _for_ids_of_another_dtype(targets)


def for_element_targets(targets: Tensor, logits: Tensor) -> str:
    """Of targets that are not of the logits' shape."""
    without_classes = logits.shape[:1] + logits.shape[2:]
    if logits.dim() < 2 or targets.shape != without_classes:
        return ""
    if logits.shape[1] == 1:
        return ": use targets.unsqueeze(1)"
    binary = ", for a binary task one logit, logits[:, 1] - logits[:, 0]" if logits.shape[1] == 2 else ""
    return f": for class ids use SoftmaxFocalLoss{binary}, or make labels with one_hot(targets, {logits.shape[1]})"


def for_label(label: float, *, binary: bool) -> str:
    """Of a label that is out of range."""
    if label != -1:
        return ""
    ignored = "for rows to ignore use ignore_index=-1"
    return f": map labels in {{-1, 1}} to (targets > 0).long(); {ignored}" if binary else f": {ignored}"


def for_tensor_elsewhere(name: str, device: torch.device) -> str:
    """Of an argument that is not on the logits' device."""
    return f": move it with {name}.to({str(device)!r})"


def for_loss_elsewhere(device: torch.device) -> str:
    """Of what a loss keeps, or a function is given, that is not on the logits' device."""
    return f": move the loss with loss_fn.to({str(device)!r}), or make what the function is given there"


def _for_ids_of_another_dtype(targets: Tensor) -> str:
    if targets.is_complex() or not (targets.is_floating_point() or targets.dtype == torch.bool):
        return ""
    return ": use targets.long()"

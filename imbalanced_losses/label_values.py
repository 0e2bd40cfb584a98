"""Checks that read tensor data: values of labels and weights. Only the module shells make them, in eager mode."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses import remedies
from imbalanced_losses.precision import label_slack

__all__ = ["check_class_id_values", "check_probability_values", "check_target_values", "check_weight_values"]


def check_target_values(targets: Tensor, num_classes: int, ignore_index: int, *, multilabel: bool) -> None:
    """Labels must be 0 or 1 (binary, multi-label) or class ids in ``[0, C)``, or ``ignore_index``."""
    binary = multilabel or num_classes == 1
    n_labels = 2 if binary else num_classes
    if not targets.is_floating_point() and _all_within(targets, 0, n_labels - 1):
        return
    labels = targets.long()  # uint8 156 equals -100 if asked as it is
    wrong = (targets != labels) | ~(((labels >= 0) & (labels < n_labels)) | (labels == ignore_index))
    if wrong.any():
        expected = "labels in {0, 1}" if binary else f"class ids in [0, {num_classes})"
        _refuse(targets[wrong], f"{expected} or ignore_index={ignore_index}", binary=binary)


def check_probability_values(targets: Tensor, ignore_index: int | None) -> None:
    """Labels must lie in [0, 1], up to a few roundings, or equal ``ignore_index``."""
    slack = label_slack(targets.dtype)
    if _all_within(targets, -slack, 1 + slack):
        return
    labels = targets if targets.is_floating_point() else targets.float()  # uint8 156 equals -100 if asked as it is
    allowed = (labels >= -slack) & (labels <= 1 + slack)
    wrong = ~(allowed if ignore_index is None else allowed | (labels == ignore_index))
    if wrong.any():
        also = "" if ignore_index is None else f" or ignore_index={ignore_index}"
        _refuse(targets[wrong], f"targets in [0, 1]{also}", binary=True)


def check_class_id_values(targets: Tensor, num_classes: int, ignore_index: int) -> None:
    """Class ids must lie in ``[0, C)`` or equal ``ignore_index``."""
    if _all_within(targets, 0, num_classes - 1):
        return
    ids = targets.long()  # uint8 156 equals -100 if asked as it is
    wrong = ~(((ids >= 0) & (ids < num_classes)) | (ids == ignore_index))
    if wrong.any():
        _refuse(targets[wrong], f"class ids in [0, {num_classes}) or ignore_index={ignore_index}", binary=False)


def check_weight_values(weights: Tensor, name: str = "sample_weight") -> None:
    """Weights must be finite and not negative."""
    wrong = ~(weights.isfinite() & (weights >= 0))
    if wrong.any():
        raise ValueError(f"expected finite {name} >= 0, got {weights[wrong][0].item()}")


def _all_within(values: Tensor, low: float, high: float) -> bool:
    """Whether all values lie in ``[low, high]``: one operator for the data of most batches."""
    if values.numel() == 0 or values.dtype in (torch.uint16, torch.uint32, torch.uint64):  # which aminmax refuses
        return False
    lowest, highest = torch.aminmax(values)
    return low <= lowest.item() and highest.item() <= high


def _refuse(wrong: Tensor, expected: str, *, binary: bool) -> None:
    label = wrong[0].item()
    raise ValueError(f"expected {expected}, got {label}{remedies.for_label(label, binary=binary)}")

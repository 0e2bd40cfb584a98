"""Checks of the values of labels and weights. They read tensor data; only the module shells run them, in eager mode."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses import remedies
from imbalanced_losses.dtypes import label_slack

__all__ = [
    "Bounds",
    "check_class_id_values",
    "check_probability_values",
    "check_target_values",
    "check_weight_values",
    "read_bounds",
]

FEW_OPERATORS = (torch.uint16, torch.uint32, torch.uint64)
"""Dtypes for which torch has neither ``aminmax`` nor comparisons."""

Bounds = tuple[float, float]
"""The lowest and the highest of some values; nan if one of them is."""


def check_target_values(targets: Tensor, num_classes: int, ignore_index: int, *, multilabel: bool) -> None:
    """Check that labels are 0 or 1 (binary, multi-label), class ids in ``[0, C)``, or ``ignore_index``."""
    if not multilabel and num_classes > 1:
        check_class_id_values(targets, num_classes, ignore_index)
        return
    label = _find_wrong(targets, 0, 1, ignore_index, whole=True)
    if label is not None:
        remedy = remedies.for_label(label, binary=True)
        raise ValueError(f"expected labels in {{0, 1}} or ignore_index={ignore_index}, got {label}{remedy}")


def check_probability_values(targets: Tensor, ignore_index: int | None, bounds: Bounds | None = None) -> None:
    """Check that labels lie in [0, 1], up to rounding, or equal ``ignore_index``; ``bounds`` are read if left out."""
    slack = label_slack(targets.dtype)
    label = _find_wrong(targets, -slack, 1 + slack, ignore_index, bounds, whole=False)
    if label is not None:
        also = "" if ignore_index is None else f" or ignore_index={ignore_index}"
        raise ValueError(f"expected targets in [0, 1]{also}, got {label}{remedies.for_label(label, binary=True)}")


def check_class_id_values(targets: Tensor, num_classes: int, ignore_index: int, bounds: Bounds | None = None) -> None:
    """Check that class ids lie in ``[0, C)`` or equal ``ignore_index``; ``bounds`` are read if left out."""
    label = _find_wrong(targets, 0, num_classes - 1, ignore_index, bounds, whole=True)
    if label is not None:
        remedy = remedies.for_one_class(label) if num_classes == 1 else ""
        remedy = remedy or remedies.for_label(label, binary=False)
        raise ValueError(
            f"expected class ids in [0, {num_classes}) or ignore_index={ignore_index}, got {label}{remedy}"
        )


def check_weight_values(weights: Tensor, name: str = "sample_weight") -> None:
    """Check that weights are finite and not negative."""
    if weights.dtype in FEW_OPERATORS:
        return  # they hold no other numbers
    wrong = ~(weights.isfinite() & (weights >= 0))
    if wrong.any():
        raise ValueError(f"expected finite {name} >= 0, got {weights[wrong][0].item()}")


def read_bounds(values: Tensor) -> Bounds | None:
    """Read lowest and highest value; None for empty tensors and dtypes without ``aminmax``."""
    if values.numel() == 0 or values.dtype in FEW_OPERATORS:
        return None
    lowest, highest = torch.aminmax(values)
    return lowest.item(), highest.item()


def _find_wrong(
    targets: Tensor, low: float, high: float, ignore_index: int | None, bounds: Bounds | None = None, *, whole: bool
) -> float | None:
    """Return the first label that is neither ``ignore_index`` nor in ``[low, high]`` (and an integer if ``whole``)."""
    needs_rounding = whole and targets.is_floating_point()
    if not needs_rounding:
        bounds = bounds or read_bounds(targets)
        if bounds is not None and low <= bounds[0] and bounds[1] <= high:
            return None
    labels = targets if targets.is_floating_point() else targets.long()  # in uint8, 156 == -100
    allowed = (labels >= low) & (labels <= high)
    if needs_rounding:
        allowed &= labels == labels.trunc()
    if ignore_index is not None:
        allowed |= labels == ignore_index
    return None if allowed.all() else targets[~allowed][0].item()

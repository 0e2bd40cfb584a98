"""Convert the output of a Hugging Face model and its labels to the rows that a loss takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["IGNORED", "as_rows", "find_logits", "is_shifted"]

IGNORED = -100
"""The label that the Trainer does not count as an item, whatever the loss's ``ignore_index``."""


def find_logits(outputs: Any) -> Tensor:
    """Return the logits from a ``ModelOutput`` or other mapping, a tuple or list that starts with them, or a tensor."""
    if isinstance(outputs, Mapping):
        if "logits" not in outputs:
            raise ValueError(f"expected logits in what the model returns, got {', '.join(map(str, outputs))}")
        outputs = outputs["logits"]
    # the logits come first: the Trainer removed the labels from the batch, so the model returns no loss
    logits: Tensor = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    return logits


def is_shifted(outputs: Any, logits: Tensor, labels: Tensor, shift_labels: bool | None) -> bool:
    """Whether the logits at position ``t`` of a sequence are scored against label ``t + 1``."""
    if shift_labels is None:
        is_causal = any("CausalLMOutput" in kind.__name__ for kind in type(outputs).__mro__)
        return is_causal and labels.dim() == 2 and labels.shape == logits.shape[:-1]
    if shift_labels and (logits.dim() < 3 or labels.shape[:2] != logits.shape[:2]):
        shapes = f"{list(logits.shape)} and {list(labels.shape)}"
        raise ValueError(f"expected logits [B, T, C] and labels [B, T] with shift_labels=True, got {shapes}")
    return shift_labels


def as_rows(logits: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return logits ``[N, C]`` and labels, ``[N]`` or ``[N, C]``, of the rows that have a label."""
    if labels is None:
        raise ValueError(
            "expected labels in the batch, got None: the Trainer takes the column 'labels', and drops it unless the "
            "model's forward has an argument of that name or label_names=['labels'] is set"
        )
    if labels.shape != logits.shape and labels.shape != logits.shape[:-1]:
        shapes = f"{list(logits.shape[:-1])} or {list(logits.shape)}"
        raise ValueError(f"expected labels of shape {shapes}, got {list(labels.shape)}{_shape_remedy(logits, labels)}")
    num_classes = logits.shape[-1] if logits.dim() > 1 else 1
    one_label_per_row = labels.shape != logits.shape and num_classes > 1
    targets = labels.reshape(-1) if one_label_per_row else labels.reshape(-1, num_classes)
    kept = targets != IGNORED if one_label_per_row else (targets != IGNORED).any(dim=1)
    return logits.reshape(-1, num_classes)[kept], targets[kept]


def _shape_remedy(logits: Tensor, labels: Tensor) -> str:
    if labels.dim() != 2 or logits.dim() != 3 or labels.shape[0] != logits.shape[0]:
        return ""
    extra = logits.shape[1] - labels.shape[1]
    if extra <= 0:
        return ""
    return f": for prompt tuning leave the virtual tokens out, outputs.logits = outputs.logits[:, {extra}:]"

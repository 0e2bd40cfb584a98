"""The dtypes for arithmetic, which do not depend on autocast, and the tolerance for rounded labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["accumulation_dtype", "at_least_float32", "compute_dtype", "label_slack", "moved_at_least_float32"]

ROUNDINGS = 4  # mixing, smoothing or resizing labels rounds a few times


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Return the dtype to compute scores, weights and losses in: float64 for float64 input, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def at_least_float32(tensor: Tensor) -> Tensor:
    """Return ``tensor``, converted to float32 if it has a half dtype."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor


def moved_at_least_float32(move: Callable[[Tensor], Tensor], buffer: Tensor) -> Tensor:
    """Apply a module's ``.to()`` to a buffer, but keep the buffer's precision if it casts to a half dtype."""
    moved = move(buffer)
    is_half = moved.is_floating_point() and moved.dtype.itemsize < 4
    return at_least_float32(buffer).to(moved.device) if is_half else moved


def label_slack(dtype: torch.dtype) -> float:
    """How far outside [0, 1] rounding may move a label of this dtype, or of float32 if that is coarser."""
    if not dtype.is_floating_point:
        return 0.0
    return ROUNDINGS * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Return float64, for values that float32 cannot hold (positions beyond 2^24); float32 on MPS, which lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64

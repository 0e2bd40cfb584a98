"""The two dtypes that arithmetic runs in, whatever autocast says, and how far labels may be rounded."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["accumulation_dtype", "compute_dtype", "label_slack"]

ROUNDINGS = 4  # mixing, smoothing or resizing labels makes a few


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """Of scores, weights and losses: float32, or float64 if they come in float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def label_slack(dtype: torch.dtype) -> float:
    """How far rounding may take a label of this dtype, or of float32 where that is coarser, out of [0, 1]."""
    if not dtype.is_floating_point:
        return 0.0
    return ROUNDINGS * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """For what float32 is too narrow for, such as positions beyond 2^24: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64

"""The two dtypes that arithmetic runs in, whatever autocast says."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["widest_dtype", "working_dtype"]


def working_dtype(tensor: Tensor) -> torch.dtype:
    """Of scores, weights and losses: float32, or float64 if they come in float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def widest_dtype(device: torch.device) -> torch.dtype:
    """For what float32 is too narrow for, such as positions beyond 2^24: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64

"""Sorting rows of scores, on the CPU by way of integers.

``torch.sort`` has a parallel radix sort for one-dimensional integers on the CPU; floats and rows go through a serial
merge sort. The bits of an IEEE float, with all but the sign of a negative number flipped, are an integer that sorts
like the float.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.kernels.tuning import JOINED_UP_TO, RADIX_FROM

__all__ = ["argsort_rows", "sorts_by_integers"]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def sorts_by_integers(values: Tensor) -> bool:
    """Whether :func:`argsort_rows` beats ``values.sort(-1)`` by far: a question of shape, dtype and device."""
    rows, length = values.shape
    if values.device.type != "cpu" or values.dtype not in _INTEGERS:
        return False
    return length >= RADIX_FROM or (values.dtype == torch.float32 and RADIX_FROM <= rows * length <= JOINED_UP_TO)


def argsort_rows(values: Tensor) -> Tensor:
    """``values.argsort(-1)`` of float values ``[R, M]`` without ``nan``; called within kernels only.

    Cost: O(R M) where :func:`sorts_by_integers`, else O(R M log M).
    """
    if not sorts_by_integers(values):
        return values.argsort(-1)
    bits = values.contiguous().view(_INTEGERS[values.dtype])
    keys = bits ^ ((bits >> (torch.iinfo(bits.dtype).bits - 1)) & torch.iinfo(bits.dtype).max)
    rows, length = keys.shape
    if length >= RADIX_FROM:
        return torch.stack([row.argsort() for row in keys.unbind(0)])
    row = torch.arange(rows, device=keys.device)[:, None]
    return (keys + (row << 32)).flatten().argsort().view(rows, length) - row * length

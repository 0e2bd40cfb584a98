"""Sorting of rows of scores, on the CPU as integers.

``torch.sort`` has a parallel radix sort for one-dimensional integers on the CPU, but uses a serial merge sort for
floats and for rows. The bits of an IEEE float are an integer that sorts like the float, once all bits but the sign are
flipped in negative numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.kernels.tuning import JOINED_UP_TO, RADIX_FROM

__all__ = ["argsort_rows", "sorts_by_integers"]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def sorts_by_integers(values: Tensor) -> bool:
    """Whether :func:`argsort_rows` is much faster than ``values.sort(-1)``, by shape, dtype and device."""
    rows, length = values.shape
    if values.device.type != "cpu" or values.dtype not in _INTEGERS:
        return False
    return length >= RADIX_FROM or (values.dtype == torch.float32 and RADIX_FROM <= rows * length <= JOINED_UP_TO)


def argsort_rows(values: Tensor) -> Tensor:
    """Return ``values.argsort(-1)`` for float values ``[R, M]`` without ``nan``. Only kernels may call it.

    Cost: O(R M) if :func:`sorts_by_integers`, else O(R M log M).
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

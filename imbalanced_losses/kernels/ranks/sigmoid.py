"""The sigmoid and its derivatives with full precision in both tails."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from imbalanced_losses.dtypes import accumulation_dtype

__all__ = ["sigmoid_derivative", "stop_underflow", "wide_sigmoid"]


def wide_sigmoid(x: Tensor) -> Tensor:
    """Return the sigmoid in float64, if the device has it, so that autograd's ``y (1 - y)`` is precise up to x = 30.

    In float32 it loses precision from 8 on, and is 0 from 17 on, where a positive is missed most.
    """
    return x.to(accumulation_dtype(x.device)).sigmoid()


def stop_underflow(x: Tensor) -> Tensor:
    """Clamp ``x`` in-place so that its sigmoid is a normal number: with subnormal ones a CPU takes twice as long."""
    limit = math.floor(-math.log(torch.finfo(x.dtype).tiny))
    return x.clamp_(-limit, limit)


def sigmoid_derivative(x: Tensor, order: int) -> Tensor:
    """Return the n-th derivative of the sigmoid, accurate in both tails; overwrites ``x``."""
    x = stop_underflow(x)
    if order == 0:
        return x.sigmoid_()
    sign = torch.sign(x) if order == 2 else None
    tail = x.abs_().neg_().sigmoid_()
    if order == 1:
        return tail.addcmul_(tail, tail, value=-1)
    bell = tail * (1 - tail)
    if sign is not None:
        return bell.mul_(tail.mul_(2).sub_(1)).mul_(sign)
    if order == 3:
        return bell * (1 - 6 * bell)
    raise NotImplementedError(f"soft ranks can be differentiated three times, this is time {order}")

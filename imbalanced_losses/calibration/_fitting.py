"""The fits of the calibrators: convex functions of one or two variables, by Newton's method."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["fit_platt", "fit_temperature"]

Objective = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""Of points [C, K]: values [C], gradients [C, K] and Hessians [C, K, K]."""

MAX_STEPS, MAX_HALVINGS = 100, 40
TOLERANCE = 1e-8  # of the last step
DAMPING = 1e-14  # of the Hessian's trace: makes it regular where logits do not vary
SLACK = 1e-14  # what rounding may add to a value


def fit_platt(z: Tensor, is_positive: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[C]`` for scores ``[C, M]``."""
    total = weight.sum(-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    ones = (weight * is_positive).sum(-1, keepdim=True)
    zeros = (weight * ~is_positive).sum(-1, keepdim=True)
    targets = torch.where(is_positive, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    share = weight / total
    mean = (share * z).sum(-1, keepdim=True)
    spread = (share * (z - mean).square()).sum(-1, keepdim=True).sqrt()
    varies = spread > 1e-12 * mean.abs()  # not only by rounding
    spread = torch.where(varies, spread, 1)
    x = torch.where(varies, (z - mean) / spread, 0)
    design = torch.stack([x, torch.ones_like(x)], -1)

    def objective(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        margin = (design @ point.unsqueeze(-1)).squeeze(-1)
        loss = (share * functional.binary_cross_entropy_with_logits(margin, targets, reduction="none")).sum(-1)
        p = margin.sigmoid()
        gradient = (share * (p - targets)).unsqueeze(-2) @ design
        curvature = (share * p * (1 - p)).unsqueeze(-1) * design
        return loss, gradient.squeeze(-2), design.mT @ curvature

    start = torch.cat([torch.zeros_like(ones), ((ones + 1) / (zeros + 1)).log()], -1)
    slope, offset = _minimize(objective, start).unbind(-1)
    scale = torch.where(varies[:, 0], slope / spread[:, 0], 1)
    return scale, offset - scale * mean[:, 0]


def fit_temperature(gaps: Tensor, weight: Tensor) -> float:
    """The temperature for the gaps ``[M, C]`` of each class's logit to that of the right class."""
    share = weight / weight.sum()
    spread = (share[:, None] * gaps.square()).sum().sqrt()
    d = gaps / spread

    def objective(point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scaled = point * d
        p = scaled.softmax(1)
        mean = (p * d).sum(1)
        variance = (p * (d - mean[:, None]).square()).sum(1)
        value, gradient, curvature = ((share * term).sum() for term in (scaled.logsumexp(1), mean, variance))
        return value[None], gradient[None, None], curvature[None, None, None]

    inverse = _minimize(objective, d.new_zeros(1, 1)).item()
    return spread.item() / inverse


def _minimize(objective: Objective, point: Tensor) -> Tensor:
    """Newton's method with step halving, for C convex functions of K variables at once."""
    value, gradient, hessian = objective(point)
    identity = torch.eye(point.shape[-1], dtype=point.dtype, device=point.device)
    for _ in range(MAX_STEPS):
        trace = hessian.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        step: Tensor = torch.linalg.solve(
            hessian + (DAMPING * trace + torch.finfo(point.dtype).tiny) * identity, gradient
        )
        if (step.abs() <= TOLERANCE * (1 + point.abs())).all():
            return point - step  # it squares the error
        needed = 1e-4 * (gradient * step).sum(-1)
        length = torch.ones_like(value)
        for _ in range(MAX_HALVINGS):
            trial = objective(point - length[:, None] * step)
            is_too_long = ~(trial[0] <= value - length * needed + SLACK * value.abs())
            if not is_too_long.any():
                break
            length = torch.where(is_too_long, length / 2, length)
        else:  # rounding alone decides there
            length = torch.where(is_too_long, 0, length)
            trial = objective(point - length[:, None] * step)
            if not length.any():
                break
        point = point - length[:, None] * step
        value, gradient, hessian = trial
    return point

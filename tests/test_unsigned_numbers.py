"""Labels, weights and counts of torch's unsigned dtypes, for which it has few operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imbalanced_losses import (
    AsymmetricLoss,
    LDAMLoss,
    LogitAdjustedLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
    class_weights,
    deferred_weights,
    pos_weight,
)
from imbalanced_losses.calibration import PlattScaling, TemperatureScaling

every_dtype = pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])


def problem(columns: tuple[int, ...], highest: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(12, *columns, generator=generator)
    return logits, torch.arange(12) % (highest + 1), torch.randint(0, 5, (12,), generator=generator)


@every_dtype
@pytest.mark.parametrize(
    ("loss_fn", "columns", "highest"),
    [
        (LogitAdjustedLoss([5, 3, 1]), (3,), 2),
        (LogitAdjustedLoss(0.1), (), 1),
        (LDAMLoss([5, 3, 1]), (3,), 2),
        (LDAMLoss([5, 3]), (), 1),
        (AsymmetricLoss(ignore_index=-100), (), 1),
        (SigmoidFocalLoss(ignore_index=-100), (), 1),
        (SoftmaxFocalLoss(), (3,), 2),
        (SmoothAPLoss(num_classes=3, queue_size=0), (3,), 2),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_losses_take_them(loss_fn: Any, columns: tuple[int, ...], highest: int, dtype: torch.dtype) -> None:
    logits, targets, weights = problem(columns, highest)
    own = loss_fn(logits, targets.to(dtype), sample_weight=weights.to(dtype))
    assert torch.equal(own, loss_fn(logits, targets, sample_weight=weights))


@every_dtype
def test_class_weights_take_them(dtype: torch.dtype) -> None:
    counts = torch.tensor([90, 10, 0])
    assert torch.equal(class_weights(counts.to(dtype)), class_weights(counts))
    assert torch.equal(deferred_weights(1, counts.to(dtype), 1), deferred_weights(1, counts, 1))
    assert torch.equal(pos_weight(counts.to(dtype), counts.to(dtype)), pos_weight(counts, counts))


@every_dtype
def test_calibrators_take_them(dtype: torch.dtype) -> None:
    logits, targets, weights = problem((3,), 2)
    fitted, expected = (
        TemperatureScaling().fit(logits + 2 * torch.eye(3)[targets], y, sample_weight=w)
        for y, w in ((targets.to(dtype), weights.to(dtype)), (targets, weights))
    )
    assert torch.equal(fitted.temperature, expected.temperature)
    labels = targets.clamp_max(1)
    platt, exact = (
        PlattScaling().fit(logits[:, 0], y, sample_weight=w)
        for y, w in ((labels.to(dtype), weights.to(dtype)), (labels, weights))
    )
    assert torch.equal(platt.scale, exact.scale)
    assert torch.equal(platt.shift, exact.shift)

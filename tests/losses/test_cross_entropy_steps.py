"""How often the losses that are a cross-entropy of changed logits look at the data, in eager mode."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from imbalanced_losses import LDAMLoss, LogitAdjustedLoss

READS = {"aminmax", "amin", "amax", "_local_scalar_dense"}


class Counted(TorchDispatchMode):
    """Counts the operators that are run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("loss_fn", "most"),
    [
        # the bounds of the targets: one operator, two numbers; whether the loss is finite: one number
        (LogitAdjustedLoss([5, 3, 1]), {"aminmax": 1, "_local_scalar_dense": 3}),
        # and the count of the rarest class
        (LDAMLoss([5, 3, 1]), {"aminmax": 1, "amin": 1, "_local_scalar_dense": 4}),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else None,
)
def test_the_targets_are_read_once(loss_fn: Any, most: dict[str, int]) -> None:
    """By the check of their values and by the question which are ignored, together."""
    logits, targets = torch.randn(8, 3, requires_grad=True), torch.arange(8) % 3
    with Counted() as counted:
        loss_fn(logits, targets)
    assert {name: number for name, number in counted.calls.items() if name in READS} == most
    with pytest.raises(ValueError, match="expected class ids"):
        loss_fn(logits, targets + 1)


@pytest.mark.parametrize("loss_fn", [LogitAdjustedLoss([5, 3]), LDAMLoss([5, 3])])
@pytest.mark.parametrize("bad", [2.0, -1.0, torch.nan])
def test_bounds_that_are_shared_still_find_wrong_labels(loss_fn: Any, bad: float) -> None:
    targets = torch.tensor([0.0, 1.0, bad, -100.0])
    with pytest.raises(ValueError, match=f"expected targets in .* got {bad}"):
        loss_fn(torch.randn(4), targets)
    loss_fn.validate_targets = False
    assert loss_fn(torch.randn(4), targets).isfinite() == (bad == bad)
    loss_fn.validate_targets = True

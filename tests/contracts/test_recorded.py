"""Graphs that are kept, checkpointed, traced or differentiated in both directions give the plain step's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.graph import saved_tensors_hooks
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    RecallAtQuantileConfig,
    SigmoidFocalConfig,
    SmoothAPConfig,
    SoftmaxFocalConfig,
    init_queue,
    pauc_at_budget,
    recall_at_quantile,
    sigmoid_focal,
    smooth_ap,
    softmax_focal,
)

Loss = Callable[[Tensor], Tensor]


def ranking(
    function: Callable[..., Any], config: type, classes: int, rows: int, **settings: Any
) -> tuple[Loss, Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, max(2, classes), (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    state, cfg = init_queue(0, classes, dtype=torch.float64), config(num_classes=classes, **settings)
    return lambda z: function(z, targets, state, cfg)[0], logits


def focal(function: Callable[..., Tensor], cfg: Any, classes: int, rows: int) -> tuple[Loss, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    if function is softmax_focal:
        targets = torch.randint(0, classes, (rows,), generator=generator)
    else:
        targets = torch.randint(0, 2, (rows, classes), generator=generator).double()
    return lambda z: function(z, targets, cfg), logits


CASES: dict[str, tuple[Loss, Tensor]] = {
    "smooth_ap": ranking(smooth_ap, SmoothAPConfig, 1, 12, temperature=0.3),
    "smooth_ap of many rows": ranking(smooth_ap, SmoothAPConfig, 1, 1600, temperature=0.3),
    "smooth_ap of classes": ranking(smooth_ap, SmoothAPConfig, 3, 20, temperature=0.3),
    "recall": ranking(recall_at_quantile, RecallAtQuantileConfig, 1, 12, temperature=0.3, quantile=0.3),
    "trapezoid": ranking(pauc_at_budget, PAUCAtBudgetConfig, 1, 20, beta=0.5),
    "pairwise": ranking(pauc_at_budget, PAUCAtBudgetConfig, 3, 20, beta=0.5, surrogate="pairwise"),
    "sigmoid focal": focal(sigmoid_focal, SigmoidFocalConfig(), 3, 8),
    "sigmoid focal of many": focal(sigmoid_focal, SigmoidFocalConfig(), 3, 2000),
    "softmax focal": focal(softmax_focal, SoftmaxFocalConfig(), 3, 8),
    "softmax focal of many": focal(softmax_focal, SoftmaxFocalConfig(), 3, 2000),
}
every_case = pytest.mark.parametrize("case", CASES)


def gradient(loss: Loss, logits: Tensor, **options: Any) -> Tensor:
    z = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(z), z, **options)[0]


@every_case
def test_activation_checkpoint(case: str) -> None:
    loss, logits = CASES[case]
    checkpointed = gradient(lambda z: checkpoint(loss, z, use_reentrant=False), logits)
    assert_close(checkpointed, gradient(loss, logits))


@every_case
def test_every_saved_tensor_is_unpacked_once(case: str) -> None:
    loss, logits = CASES[case]
    unpacked: list[int] = []

    def unpack(item: tuple[int, Tensor]) -> Tensor:
        unpacked.append(item[0])
        return item[1]

    numbers = iter(range(1000))
    with saved_tensors_hooks(lambda tensor: (next(numbers), tensor), unpack):
        gradient(loss, logits)
    assert len(unpacked) == len(set(unpacked)) > 0


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, in its forward mode
@every_case
def test_forward_over_reverse(case: str) -> None:
    """The derivative of the gradient along a direction."""
    loss, logits = CASES[case]
    direction = torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)
    z = logits.clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(z), z, create_graph=True)
    expected = torch.autograd.grad((first * direction).sum(), z)[0] if first.requires_grad else torch.zeros_like(z)

    def tangent() -> Tensor | None:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(logits.clone().requires_grad_(), direction)
            (grad,) = torch.autograd.grad(loss(dual), dual)
            return forward_ad.unpack_dual(grad).tangent

    assert_close(tangent(), expected, rtol=1e-6, atol=1e-9)


@every_case
def test_traced_by_make_fx(case: str) -> None:
    """Also for other values than those it was traced with."""
    loss, logits = CASES[case]
    graph = make_fx(torch.func.grad(loss))(logits)
    for other in (logits, logits.flip(0), logits * 2):
        assert_close(graph(other), gradient(loss, other), rtol=1e-6, atol=1e-9)


@every_case
def test_the_default_device_is_not_asked(case: str) -> None:
    loss, logits = CASES[case]
    expected = gradient(loss, logits)
    with torch.device("meta"):
        found = gradient(loss, logits)
    assert_close(found, expected)

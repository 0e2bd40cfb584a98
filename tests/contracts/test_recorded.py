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

from imbalanced_losses import init_queue
from tests.contracts import elements
from tests.registry import ELEMENTWISE, MAIN

Loss = Callable[[Tensor], Tensor]


def ranking(name: str, classes: int, rows: int) -> tuple[Loss, Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(0, max(2, classes), (rows,), generator=generator)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    loss, variant = MAIN[name]
    cfg = loss.config(num_classes=classes, **{"temperature": 0.3, **variant.options})
    state = init_queue(0, classes, dtype=torch.float64)
    return lambda z: loss.function(z, targets, state, cfg)[0], logits


def elementwise(case: elements.Case, rows: int) -> tuple[Loss, Tensor]:
    logits, targets = case.inputs(n=rows)
    return lambda z: case.call(z, targets), logits


CASES: dict[str, tuple[Loss, Tensor]] = {
    **{name: ranking(name, 1, 20) for name in MAIN},
    **{f"{name} of classes": ranking(name, 3, 20) for name in MAIN},
    **{f"{name} of many rows": ranking(name, 1, 1600) for name in MAIN},
    **{case.name: elementwise(case, 8) for case in elements.CASES if case.name in ELEMENTWISE},
    **{f"{case.name} of many": elementwise(case, 2000) for case in elements.CASES if case.name in ELEMENTWISE},
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

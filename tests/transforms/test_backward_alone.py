"""A loss is recorded in plain eager mode, then its backward alone is traced, batched or run with tangents.

A Function's backward must take its method from what the forward saved. If it asked at backward time whether it is
traced, it could compute something other than the forward's derivative. Eager mode chooses methods by sizes and labels,
so the table has a row for every choice.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo import compiled_autograd
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.testing import assert_close

from imbalanced_losses import init_queue
from tests.contracts import elements
from tests.registry import ELEMENTWISE, TRACED, VARIANTS

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (  # torch's own, of its forward mode and of its compiled autograd
        "`torch.jit.script",
        "The .grad attribute of a Tensor that is not a leaf Tensor",
        "<class 'torch.autograd.function.Function'> should not be instantiated",
    )
]


@dataclass(frozen=True)
class Row:
    """A loss and its inputs. ``positives`` is the share of positives of each class, except the first of several."""

    name: str
    """Of a variant in the registry."""
    rows: int
    positives: float = 0.1
    classes: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def logits(self) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randn(self.rows, self.classes, generator=generator, dtype=torch.float64)

    @functools.cached_property
    def targets(self) -> Tensor:
        generator = torch.Generator().manual_seed(4)
        share = torch.rand(self.rows, generator=generator) / self.positives if self.positives else torch.ones(self.rows)
        own = share.long() + 1 if self.positives else share.long()
        return torch.where(own < max(2, self.classes), own, 0)

    def loss(self, logits: Tensor) -> Tensor:
        """Shape ``[C]``, ``[N]`` or ``[]``."""
        if self.name not in VARIANTS:
            case = elements.case_named(self.name)
            targets = torch.nn.functional.one_hot(self.targets, self.classes) if case.own.labels else self.targets
            targets = targets.view_as(logits) if case.own.labels else targets
            return case.call(logits, targets, **self.options)
        loss, variant = VARIANTS[self.name]
        options = {"temperature": 0.3, **variant.options, **self.options}
        config = loss.config(num_classes=self.classes, reduction="none", **options)
        return loss.function(logits, self.targets, init_queue(0, self.classes, dtype=torch.float64), config)[0]

    def record(self) -> tuple[Tensor, Tensor]:
        """The loss in plain eager mode, and its leaf."""
        leaf = self.logits.clone().requires_grad_()
        return self.loss(leaf), leaf


OF_MANY = {case.name: case.rest[0] for case in elements.CASES if case.name in ELEMENTWISE and case.rest}
ROWS: dict[str, Row] = {
    **{f"{name} of 20": Row(name, 20) for name in TRACED},
    **{f"{name} of 3 x 20": Row(name, 20, 0.3, 3) for name in TRACED},
    "smooth_ap of 3,000, 10 %": Row("smooth_ap", 3000),
    "smooth_ap of 3,000, 2 %": Row("smooth_ap", 3000, 0.02),
    "smooth_ap of 3 x 3,000, 30 %": Row("smooth_ap", 3000, 0.3, 3),
    "smooth_ap of 3 x 3,000, 2 %": Row("smooth_ap", 3000, 0.02, 3),
    "smooth_ap without positives": Row("smooth_ap", 20, 0.0),
    "pairwise of 3,000, 30 %": Row("pairwise", 3000, 0.3),
    "pairwise of 3,000, 5 %": Row("pairwise", 3000, 0.05),
    "pairwise without positives": Row("pairwise", 20, 0.0),
    "trapezoid of 3 x 3,000, implicit": Row("trapezoid_implicit", 3000, 0.1, 3),
    **{f"{name} of few": Row(name, 8, 0.3, classes) for name, classes in OF_MANY.items()},
    **{f"{name} of many": Row(name, 3000, 0.3, classes) for name, classes in OF_MANY.items()},
    **{
        f"{name} of many, one by one": Row(name, 3000, 0.3, classes, {"reduction": "none"})
        for name, classes in OF_MANY.items()
    },
    "sigmoid_focal of few": Row("sigmoid_focal_trained", 8, 0.3, 3),
    "sigmoid_focal of many": Row("sigmoid_focal_trained", 3000, 0.3, 3),
}
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=list(ROWS))

close = functools.partial(assert_close, rtol=1e-6, atol=1e-10)


def cotangents(loss: Tensor) -> list[Tensor]:
    """Three cotangents for the loss: ones, and two that differ from entry to entry."""
    other = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype).view_as(loss)
    return [torch.ones_like(loss), other, other.square() - 3]


def gradients(row: Row) -> list[Tensor]:
    """The gradients for the three cotangents in plain eager mode, each from a new graph."""
    found = []
    for number in range(3):
        loss, leaf = row.record()
        found.append(torch.autograd.grad(loss, leaf, cotangents(loss)[number])[0])
    return found


def run_compiled_autograd(row: Row, backend: str) -> list[Tensor]:
    found = []
    for number in range(3):
        loss, leaf = row.record()
        with compiled_autograd._enable(torch.compile(backend=backend)):
            loss.backward(cotangents(loss)[number])
        assert leaf.grad is not None
        found.append(leaf.grad)
    return found


def test_rows_have_a_gradient() -> None:
    trivial = [name for name, row in ROWS.items() if not gradients(row)[1].count_nonzero()]
    assert trivial == ["smooth_ap without positives", "pairwise without positives"]


# --- traced -----------------------------------------------------------------------------------------------------------


@every_row
def test_compiled_autograd(row: Row) -> None:
    close(run_compiled_autograd(row, "aot_eager"), gradients(row))


def test_compiled_autograd_of_the_default_backend() -> None:
    row = ROWS["smooth_ap of 3,000, 10 %"]
    close(run_compiled_autograd(row, "inductor"), gradients(row))


@every_row
def test_make_fx(row: Row) -> None:
    """Traced with one cotangent, called with others."""
    loss, leaf = row.record()

    def pull_back(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(loss, leaf, cotangent, retain_graph=True)[0]

    graph = make_fx(pull_back)(cotangents(loss)[0])
    close([graph(cotangent) for cotangent in cotangents(loss)], gradients(row))


# --- batched and with tangents: right or refused ----------------------------------------------------------------------


@every_row
def test_batch_of_cotangents(row: Row) -> None:
    """``is_grads_batched`` runs torch's legacy vmap."""
    loss, leaf = row.record()
    (found,) = torch.autograd.grad(loss, leaf, torch.stack(cotangents(loss)), is_grads_batched=True)
    close(list(found), gradients(row))


@every_row
def test_cotangent_with_a_tangent(row: Row) -> None:
    """The backward is linear: the tangent of the gradient is the gradient by the tangent."""
    loss, leaf = row.record()
    cotangent, tangent, _ = cotangents(loss)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(cotangent, tangent)
        (gradient,) = torch.autograd.grad(loss, leaf, dual)
        found = forward_ad.unpack_dual(gradient)
        close([found.primal, or_zero(found.tangent, leaf)], gradients(row)[:2])


@every_row
def test_forward_over_reverse(row: Row) -> None:
    """The derivative of the gradient along a direction, recorded and pulled back within a dual level."""
    direction = torch.linspace(-1, 1, row.logits.numel(), dtype=torch.float64).view_as(row.logits)
    loss, leaf = row.record()
    (first,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
    expected = (
        torch.autograd.grad((first * direction).sum(), leaf)[0] if first.requires_grad else torch.zeros_like(leaf)
    )
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(row.logits.clone().requires_grad_(), direction)
        (gradient,) = torch.autograd.grad(row.loss(dual).sum(), dual)
        close(or_zero(forward_ad.unpack_dual(gradient).tangent, leaf), expected)


def or_zero(tangent: Tensor | None, like: Tensor) -> Tensor:
    """Torch returns None for a tangent that is 0."""
    return torch.zeros_like(like) if tangent is None else tangent

"""The asymmetric loss: the paper's formula in NumPy, torch's own losses, and the contract of every loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.testing import assert_close

from imbalanced_losses import AsymmetricConfig, SigmoidFocalConfig, asymmetric, sigmoid_focal
from tests.losses import reference as written_down
from tests.registry import ASYMMETRIC_PATHS

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

IGNORE = -100


@dataclass(frozen=True)
class Case:
    """The loss in one configuration, for logits ``[N, *rest]``."""

    name: str
    rest: tuple[int, ...] = (4,)
    options: Mapping[str, Any] = field(default_factory=dict)
    soft: bool = False

    def __str__(self) -> str:
        return self.name

    def config(self, **changes: Any) -> AsymmetricConfig:
        return AsymmetricConfig(**{"ignore_index": IGNORE, **self.options, **changes})

    def call(self, logits: Tensor, targets: Tensor, *, weight: Tensor | None = None, **changes: Any) -> Tensor:
        return asymmetric(logits, targets, self.config(**changes), sample_weight=weight)

    def inputs(self, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Logits, and labels of which the first is ignored."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(n, *self.rest, generator=generator, dtype=torch.float64)
        targets = torch.rand(n, *self.rest, generator=generator, dtype=torch.float64)
        targets = targets if self.soft else targets.round()
        targets.view(-1)[:1] = IGNORE
        return logits.to(dtype), targets


CASES = [
    Case("defaults"),
    Case("binary", ()),
    Case("one-column", (1,), {"gamma_pos": 0.0}),
    Case("dense", (4, 2, 3), {"gamma_pos": 0, "gamma_neg": 1, "margin": 0.2}),
    Case("no-margin", (4,), {"margin": 0.0}),
    Case("no-margin-roots", (4,), {"margin": 0.0, "gamma_pos": 0.5, "gamma_neg": 0.3}),
    Case("roots", (4,), {"margin": 0.1, "gamma_pos": 0.5, "gamma_neg": 0.3}),
    Case("fractions", (4,), {"margin": 0.01, "gamma_pos": 1.5, "gamma_neg": 2.5}),
    Case("cross-entropy", (4,), {"margin": 0.0, "gamma_pos": 0, "gamma_neg": 0}),
    Case("margin-only", (4,), {"margin": 0.05, "gamma_pos": 0, "gamma_neg": 0}),
    Case("tiny-margin", (4,), {"margin": 1e-6}),
    Case("no-negatives", (4,), {"margin": 1.0}),
    Case("soft", (4,), soft=True),
    Case("soft-no-margin", (4,), {"margin": 0.0, "gamma_pos": 2.0}, soft=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(params=ASYMMETRIC_PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms that are kept; blocks, from which the backward recomputes; the path that reads nothing."""
    ASYMMETRIC_PATHS[request.param](monkeypatch)


def reference(case: Case, logits: Tensor, targets: Tensor, **changes: Any) -> Tensor:
    return torch.from_numpy(written_down.asymmetric(logits.double().numpy(), targets.numpy(), case.config(**changes)))


def value_and_grad(case: Case, logits: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = case.call(leaf, targets, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def central_difference(case: Case, logits: Tensor, targets: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of the sum of the reference; elements do not depend on each other."""
    above, below = (reference(case, logits.double() + d, targets) for d in (step, -step))
    return (above - below) / (2 * step)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@every_case
def test_it_is_the_papers_formula(case: Case) -> None:
    logits, targets = case.inputs(n=9)
    expected = reference(case, logits, targets)
    assert_close(case.call(logits, targets, reduction="none"), expected, rtol=1e-9, atol=1e-12)
    assert_close(case.call(logits, targets, reduction="sum"), expected.sum())
    assert_close(case.call(logits, targets), expected.sum() / (targets != IGNORE).sum())
    slope = value_and_grad(case, logits, targets, reduction="sum")[1]
    assert_close(slope, central_difference(case, logits, targets), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_case
def test_lower_precision_computes_in_float32(case: Case, dtype: torch.dtype) -> None:
    logits, targets = case.inputs(n=9, dtype=dtype)
    loss, gradient = value_and_grad(case, logits, targets, reduction="none")
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_close(loss.double(), reference(case, logits, targets), rtol=1e-6, atol=1e-6)
    slope, eps = central_difference(case, logits, targets), torch.finfo(dtype).eps
    assert_close(gradient.double(), slope, rtol=max(2 * eps, 1e-5), atol=1e-6)


def test_numbers_by_hand() -> None:
    """At p = 1/2 with the paper's settings: 0.5 log 2 of a positive, -0.45^4 log 0.55 of a negative."""
    loss = asymmetric(torch.zeros(2), torch.tensor([1, 0]), AsymmetricConfig(reduction="none"))
    assert_close(loss, torch.tensor([0.5 * math.log(2), -(0.45**4) * math.log(0.55)]))


def test_binary_cross_entropy() -> None:
    case = Case("", options={"gamma_pos": 0, "gamma_neg": 0, "margin": 0}, soft=True)
    logits, targets = case.inputs()
    targets[0, 0] = 0.3
    leaf = logits.clone().requires_grad_()
    expected = F.binary_cross_entropy_with_logits(leaf, targets)
    slope = torch.autograd.grad(expected, leaf)[0]
    assert_close(value_and_grad(case, logits, targets), (expected.detach(), slope))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_equal_exponents_are_the_focal_loss(gamma: float) -> None:
    case = Case("", options={"gamma_pos": gamma, "gamma_neg": gamma, "margin": 0})
    logits, targets = case.inputs()
    focal = SigmoidFocalConfig(alpha=-1, gamma=gamma, ignore_index=IGNORE)
    assert_close(case.call(logits, targets), sigmoid_focal(logits, targets, focal))


def test_negatives_below_the_margin_do_not_count() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3]).logit().requires_grad_()
    cfg = AsymmetricConfig(margin=0.25, reduction="none")
    loss = asymmetric(logits, torch.zeros(3), cfg)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert (loss > 0).tolist() == (gradient > 0).tolist() == [False, False, True]
    assert asymmetric(logits, torch.ones(3), cfg).gt(0).all()


@pytest.mark.parametrize("kind", [torch.float16, torch.int64, torch.uint8, torch.bool])
def test_labels_of_any_dtype(kind: torch.dtype) -> None:
    logits, targets = Case("").inputs()
    labels = targets.clamp_min(0)
    assert_close(
        asymmetric(logits, labels.to(kind), AsymmetricConfig()), asymmetric(logits, labels, AsymmetricConfig())
    )


# --- extremes ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@every_case
def test_large_logits(case: Case, dtype: torch.dtype) -> None:
    sizes = torch.tensor([17.0, 88.0, 104.0, 800.0, 1e4], dtype=dtype).reshape(-1, *[1] * len(case.rest))
    logits, targets = case.inputs(n=20)
    logits = (logits.sign().to(dtype).unflatten(0, (5, 4)) * sizes.unsqueeze(1)).flatten(0, 1)
    loss, gradient = value_and_grad(case, logits, targets, reduction="none")
    expected = reference(case, logits, targets)
    assert gradient.isfinite().all()
    assert_close(loss.to(torch.float64), expected, rtol=1e-6, atol=1e-6)
    slope = central_difference(case, logits, targets, 0.25) if not case.name.startswith("no-neg") else None
    if slope is not None:  # straight lines, on which a wide difference is exact
        assert_close(gradient.double(), slope, rtol=1e-2, atol=1e-3)


@every_case
def test_large_logits_have_second_derivatives(case: Case) -> None:
    logits = torch.tensor([-1e4, -104.0, -88.0, 88.0, 104.0, 1e4], requires_grad=True)
    for label in (0.0, 1.0):
        loss = case.call(logits, torch.full_like(logits, label), reduction="sum")
        slope = torch.autograd.grad(loss, logits, create_graph=True)[0]
        curvature = torch.autograd.grad(slope.sum(), logits)[0]
        assert slope.isfinite().all()
        assert_close(curvature, torch.zeros(6), rtol=0, atol=1e-6)
        traced = vmap(grad(grad(lambda z, y: case.call(z[None], y[None], reduction="sum"))))(
            logits.detach(), torch.full((6,), label)
        )
        assert_close(traced, torch.zeros(6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 1e-6, 0.05, 0.5])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.5, 4.0])
@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=8), st.floats(0, 1, width=32))
def test_float32_against_float64(gamma: float, margin: float, values: list[float], label: float) -> None:
    cfg = AsymmetricConfig(gamma_pos=gamma, gamma_neg=gamma, margin=margin, reduction="none")
    case = Case("", (), {"gamma_pos": gamma, "gamma_neg": gamma, "margin": margin})
    logits, targets = torch.tensor(values), torch.full((len(values),), label)
    loss = asymmetric(logits, targets, cfg)
    assert_close(loss.double(), reference(case, logits, targets.double()), rtol=3e-6, atol=2e-6)
    assert (loss >= 0).all()


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@every_case
def test_a_logit_that_is_not_finite_shows(case: Case, bad: float) -> None:
    """In the loss and, for a GradScaler, in the gradient; whatever the label is."""
    logits, targets = case.inputs()
    for label in (0.0, 1.0):
        logits.view(-1)[-1], targets.view(-1)[-1] = bad, label
        for reduction in ("mean", "sum", "none"):
            loss, gradient = value_and_grad(case, logits, targets, reduction=reduction)
            assert not loss.isfinite().all()
            assert not gradient.isfinite().all()
            assert gradient.view(-1)[:-1].isfinite().all()
        traced = grad(lambda z, y: case.call(z, y, reduction="sum"))(logits, targets)
        assert not traced.isfinite().all()


# --- derivatives and transforms ---------------------------------------------------------------------------------------


@every_case
def test_derivatives(case: Case) -> None:
    logits, targets = case.inputs(n=3)
    logits.requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return case.call(logits, targets, weight=torch.tensor([1.0, 2.0, 0.5]))

    assert gradcheck(loss, logits, check_forward_ad=True)
    assert gradgradcheck(loss, logits)

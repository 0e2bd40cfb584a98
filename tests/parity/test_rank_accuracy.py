"""Soft ranks in float32 by each evaluator, against all pairs in float64, through Smooth-AP and its gradient."""

from __future__ import annotations

import decimal
import functools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    RecallAtQuantileConfig,
    SmoothAPConfig,
    init_queue,
    pauc_at_budget,
    recall_at_quantile,
    smooth_ap,
)
from imbalanced_losses.kernels.ranks.exponential_sums import DOUBLE, SINGLE, sorted_sums
from imbalanced_losses.kernels.ranks.pair_sums import PairSums, soft_counts
from imbalanced_losses.kernels.ranks.sigmoid import sigmoid_derivative

SCORES: dict[str, Callable[[int], Tensor]] = {
    "normal": torch.randn,
    "ties": torch.zeros,
    "few values": lambda m: torch.randint(0, 5, (m,)).float(),
    "clusters": lambda m: torch.randn(m) * 1e-3 + 50.0 * (torch.rand(m) < 0.5),
    "outliers": lambda m: torch.where(torch.rand(m) < 0.01, torch.randn(m).sign() * 1e4, torch.randn(m)),
    "reversed": lambda m: torch.linspace(1, -1, m),
}
CONFIG = SmoothAPConfig(num_classes=1)


def smooth_ap_and_gradient(scores: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scores = scores.requires_grad_()
    loss, _ = smooth_ap(scores, targets, init_queue(0, 1), CONFIG, temperature=temperature)
    return loss.detach(), torch.autograd.grad(loss, scores)[0]


def reference(scores: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Smooth-AP from the [positives, pool] matrix in float64, by autograd, some positives at a time."""
    valid, positive = targets >= 0, (targets == 1).nonzero()[:, 0]
    scores = scores.double().requires_grad_()
    loss, gradient = torch.zeros((), dtype=torch.float64), torch.zeros_like(scores)
    for rows in positive.split(32):
        pairs = torch.sigmoid((scores[valid][None] - scores[rows, None]) / temperature)
        ranks = 0.5 + pairs.sum(1)
        negatives = (pairs * (targets[valid] == 0)).sum(1)
        part = (negatives / ranks).sum() / len(positive)
        loss += part.detach()
        gradient += torch.autograd.grad(part, scores)[0]
    return loss, gradient


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()


@pytest.fixture(params=["near_linear", "all_pairs", "pairs of positives", "auto"])
def evaluator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dispatch of this machine, or one evaluator for every pool."""
    name: str = request.param
    module = "imbalanced_losses.kernels.ranks"
    if name != "auto":
        few = math.inf if name == "pairs of positives" else -1
        monkeypatch.setattr(f"{module}.precision.FEW_POSITIVES", few)
        monkeypatch.setattr(f"{module}.pair_sums.NEAR_LINEAR_FROM", 0 if name == "near_linear" else math.inf)
    return name


def check_accuracy(scores: Tensor, targets: Tensor, temperature: float, floor: float) -> None:
    loss, gradient = smooth_ap_and_gradient(scores.clone(), targets, temperature)
    expected_loss, expected_gradient = reference(scores, targets, temperature)
    # a sigmoid of float32 ends at its smallest normal number
    assert abs(loss - expected_loss) <= 1e-5 * expected_loss + len(scores) * 2 * torch.finfo(torch.float32).tiny
    assert (gradient - expected_gradient).norm() <= 1e-4 * max(expected_gradient.norm().item(), floor)


@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.3, 10.0])
@pytest.mark.parametrize("m", [2, 33, 130, 1500, 5000])
@pytest.mark.parametrize("kind", SCORES)
def test_loss_and_gradient(kind: str, m: int, temperature: float, evaluator: str) -> None:
    scores, targets = SCORES[kind](m), (torch.rand(m) < 0.2).long()
    targets[torch.rand(m) < 0.1] = -100
    targets[0], targets[-1] = 1, 0
    # where the exact gradient all but vanishes, what is left is measured against 1e-6 of what a pair can contribute
    check_accuracy(scores, targets, temperature, floor=1e-6 / temperature / math.sqrt(m))


@pytest.mark.parametrize("n_positives", [1, 2999])
@pytest.mark.parametrize("spread", [1.0, 1e3, 1e5])
def test_one_positive_and_one_negative(n_positives: int, spread: float, evaluator: str) -> None:
    scores, targets = torch.randn(3000) * spread * 0.01, (torch.randperm(3000) < n_positives).long()
    check_accuracy(scores, targets, 0.01, floor=1e-7)


def test_a_hundred_thousand_rows() -> None:
    scores, targets = torch.randn(100_000), (torch.rand(100_000) < 0.005).long()
    check_accuracy(scores, targets, 0.01, floor=0)


@given(data=st.data(), m=st.integers(2, 60), seed=st.integers(0, 2**31))
def test_any_scores(data: st.DataObject, m: int, seed: int) -> None:
    """Against all pairs in float64, by the largest sum and the largest derivative."""
    random = torch.Generator().manual_seed(seed)
    scores = torch.tensor(data.draw(st.lists(st.floats(-1e4, 1e4, width=32), min_size=m, max_size=m)))[None]
    weights, queries = torch.rand(1, 2, m, generator=random), torch.rand(1, m, generator=random) < 0.5
    pull = torch.rand(1, 2, m, generator=random).double()
    temperature = torch.tensor(data.draw(st.floats(2**-10, 2**10, width=32)))

    def value_and_gradient(scores: Tensor, weights: Tensor, method: Any) -> tuple[Tensor, Tensor]:
        leaf = scores.clone().requires_grad_()
        sums = soft_counts(leaf, weights, temperature.to(leaf), queries, method)
        return sums.detach().double(), torch.autograd.grad((sums * pull.to(sums)).sum(), leaf)[0].double()

    actual = value_and_gradient(scores, weights, "near_linear")
    expected = value_and_gradient(scores.double(), weights.double(), "all_pairs")
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
    largest = 0.25 * m / temperature.item()  # that a derivative of m pairs can be
    torch.testing.assert_close(actual[1], expected[1], rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-13)])
def test_large_rows(order: int, dtype: torch.dtype, bound: float) -> None:
    """Three levels of the tree: 20,000 rows are 625 blocks."""
    scores = torch.randn(1, 20_000, dtype=dtype).sort(-1).values
    weights, temperature = (torch.rand(1, 2, 20_000) < 0.3).to(dtype), torch.tensor([0.05], dtype=dtype)
    actual = sorted_sums(scores, weights, temperature, order)
    some = slice(None, None, 37)
    pairs = sigmoid_derivative((scores[0].double() - scores[0, some, None].double()) / temperature.double(), order)
    pairs[torch.arange(len(pairs)), torch.arange(20_000)[some]] = 0
    assert relative_error(actual[0, :, some].double(), weights[0].double() @ pairs.mT) < bound


def test_all_problems_have_their_own_temperature() -> None:
    scores = torch.randn(3, 700, dtype=torch.float64).sort(-1).values
    weights, temperature = torch.rand(3, 1, 700, dtype=torch.float64), torch.tensor([1e-3, 0.1, 5.0]).double()
    everyone = torch.ones(3, 700, dtype=torch.bool)
    expected, _ = PairSums(scores, temperature, everyone, "all_pairs")(weights, weights[:, :0], 0)
    torch.testing.assert_close(sorted_sums(scores, weights, temperature, 0), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("table", "bounds"), [(SINGLE, (4.5e-8, 8.9e-8, 1.5e-7, 1e-6)), (DOUBLE, (5.8e-15, 3.7e-15, 1.6e-14, 4.2e-13))]
)
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_coefficients(table: dict[int, tuple[float, ...]], bounds: tuple[float, ...], order: int) -> None:
    """The error of each polynomial in exact arithmetic, relative to e^-x."""
    with decimal.localcontext() as context:
        context.prec = 50
        for i in range(600):
            u = (-Decimal(i * i) / 9000).exp()  # dense near 0, where the polynomial works hardest; up to e^-40
            bell = u / (1 + u) ** 2
            exact = (u / (1 + u), bell, bell * (1 - u) / (1 + u), bell * (1 - 6 * bell))[order]
            polynomial = sum(Decimal(coefficient) * u**k for k, coefficient in enumerate(table[order], start=1))
            assert abs(polynomial - exact) <= u * Decimal(bounds[order])


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "loss",
    [
        functools.partial(smooth_ap, cfg=CONFIG, temperature=1.0),
        functools.partial(recall_at_quantile, cfg=RecallAtQuantileConfig(num_classes=1, quantile=0.1), temperature=1.0),
        functools.partial(pauc_at_budget, cfg=PAUCAtBudgetConfig(num_classes=1, beta=0.1)),
        functools.partial(pauc_at_budget, cfg=PAUCAtBudgetConfig(num_classes=1, beta=0.1, surrogate="pairwise")),
    ],
    ids=["smooth_ap", "recall", "trapezoid", "pairwise"],
)
def test_a_positive_that_is_missed_by_far_keeps_its_gradient(loss: Callable[..., Any], compiled: bool) -> None:
    """Where the sigmoid of the miss rounds to 1 in float32, its derivative by autograd would be 0."""
    function = torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    negatives = torch.linspace(0, 1, 200)
    gradients = []
    for dtype in (torch.float32, torch.float64):
        for miss in (8.0, 12.0, 20.0):
            scale = 0.1 * 0.5 if loss.func is pauc_at_budget else 1.0  # the temperature times the interquartile range
            logits = torch.cat([torch.tensor([0.9 - miss * scale]), negatives]).to(dtype).requires_grad_()
            value, _ = function(logits, (torch.arange(201) == 0).long(), init_queue(0, 1))
            gradients.append(torch.autograd.grad(value, logits)[0][0].double())
    actual, expected = torch.stack(gradients).reshape(2, 3).unbind()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=0)
    assert (expected < 0).all()

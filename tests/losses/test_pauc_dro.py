"""``PAUCAtBudgetLoss(surrogate="dro")``: values against loops over pairs, limits, bounds, derivatives, edge cases."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    PAUCAtBudgetLoss,
    init_queue,
    metrics,
    pauc_at_budget,
    pauc_at_budget_per_class,
)
from imbalanced_losses.kernels import robust_hinge as module
from imbalanced_losses.kernels.robust_hinge import robust_hinge
from tests.losses.dro_cases import (
    KINDS,
    Rows,
    dro_reference,
    hinges,
    log_mean_exp,
    make_problem,
    rows_of,
    scale_of,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "one-way": {"temperature": 0.4},
    "small": {"temperature": 0.01, "margin": 0.5},
    "two-way": {"temperature": 0.4, "positive_temperature": 0.7},
    "large": {"temperature": 50.0, "positive_temperature": 200.0, "margin": 3.0},
    "floor": {"temperature": 0.4, "min_tpr": 0.45, "budget_basis": "population"},
}
over_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
over_kinds = pytest.mark.parametrize("kind", KINDS)


def binary(scores: Any, targets: Any, **options: Any) -> Tensor:
    """The loss of one batch without a queue."""
    scores, targets = torch.as_tensor(scores), torch.as_tensor(targets)
    cfg = PAUCAtBudgetConfig(**{"num_classes": 1, "surrogate": "dro", **options})
    return pauc_at_budget(scores, targets, init_queue(0, 1, dtype=scores.dtype), cfg)[0]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [1e-3, 1.0, 1e4])
def test_narrow_dtypes_and_extremes(dtype: torch.dtype, spread: float) -> None:
    generator = torch.Generator().manual_seed(1)
    scores = (torch.rand(60, generator=generator) * 2 - 1).mul(spread).to(dtype).requires_grad_()
    targets = (torch.arange(60) % 4 == 0).long()
    cfg = PAUCAtBudgetConfig(num_classes=1, surrogate="dro", temperature=0.05)
    rows = Rows(scores.detach().double().numpy(), targets.numpy() == 1, np.ones(60, dtype=bool), np.ones(60))
    loss = binary(scores, targets, temperature=0.05)
    assert loss.item() == pytest.approx(dro_reference(rows, cfg), rel=1e-5)
    loss.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert scores.grad.any()


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e30])
def test_separated_by_far(temperature: float) -> None:
    """The scale is 1. At 1e4 above and below: no loss if the positives are above, the distance if they are below."""
    scores, targets = torch.tensor([1e4, 1e4, -1e4, -1e4 + 1, -1e4 + 2]), torch.tensor([1, 1, 0, 0, 0])
    assert binary(scores, targets, temperature=temperature) == 0
    loss = binary(-scores, targets, temperature=temperature).item()
    assert 1.9e4 < loss < 2.1e4


def test_many_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20_000, generator=generator)
    targets = (torch.rand(20_000, generator=generator) < 0.01).long()
    wide = scores.double().numpy()
    positives, negatives = wide[targets == 1], wide[targets == 0]
    cfg = PAUCAtBudgetConfig(num_classes=1, surrogate="dro", temperature=0.3)
    scale = scale_of(Rows(wide, targets.numpy() == 1, np.ones(20_000, dtype=bool), np.ones(20_000)), cfg)
    pairs = np.maximum(0, 1 - (positives[:, None] - negatives) / scale)
    expected = (0.3 * np.log(np.exp(pairs / 0.3).mean(1))).mean()
    assert binary(scores, targets, temperature=0.3).item() == pytest.approx(expected, rel=1e-6)


# --- limits and bounds ------------------------------------------------------------------------------------------------


def test_limits() -> None:
    """The mean pair loss for large temperatures, the loss with the worst negative for small ones; so for positives."""
    problem = make_problem()
    rows = rows_of(problem, 0)
    scale = scale_of(rows, problem.config())
    pairs = np.array([hinges(i, rows, scale, 1.0) for i in np.flatnonzero(rows.positive)])
    weight = rows.weight[rows.positive]

    def loss(**options: float) -> float:
        return problem.loss(problem.logits, problem.config(**options)).item()

    for temperature in (1e6, 1e12, 1e30):
        assert loss(temperature=temperature) == pytest.approx(np.average(pairs.mean(1), weights=weight), rel=1e-5)
        both = loss(temperature=0.3, positive_temperature=temperature)
        assert both == pytest.approx(loss(temperature=0.3), rel=1e-5)
    for temperature in (1e-7, 1e-30):
        assert loss(temperature=temperature) == pytest.approx(np.average(pairs.max(1), weights=weight), rel=1e-5)
        both = loss(temperature=temperature, positive_temperature=temperature)
        assert both == pytest.approx(pairs.max(), rel=1e-5)


batches = st.lists(st.tuples(st.floats(-8, 8, width=32), st.integers(0, 1)), min_size=2, max_size=24).filter(
    lambda rows: {label for _, label in rows} == {0, 1}
)


@given(batches, st.sampled_from([0.01, 0.3, 5.0]), st.sampled_from([1.0, 3.0]))
def test_a_bound_of_the_partial_auc_at_every_budget(
    rows: list[tuple[float, int]], temperature: float, margin: float
) -> None:
    """``margin * (1 - pAUC(0, f)) <= loss + temperature * log(1 / f)``: misranked pairs lose the margin at least."""
    scores, targets = (torch.tensor(column) for column in zip(*rows, strict=True))
    loss = binary(scores.double(), targets, temperature=temperature, margin=margin).item()
    for budget in (0.05, 0.3, 1.0):
        missed = 1 - metrics.partial_auc(scores, targets, beta=budget).item()
        assert margin * missed <= loss + temperature * math.log(1 / budget) + 1e-5


@given(batches, st.sampled_from([0.1, 2.0]))
def test_it_is_the_worst_mean_within_a_divergence(rows: list[tuple[float, int]], temperature: float) -> None:
    """``max_q E_q[loss] - temperature * KL(q | uniform)`` for a positive: any q is below, the tilted one attains it."""
    scores, labels = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    scores = np.append(scores, scores.max() + 1)
    labels = np.append(labels == 1, False)
    first = np.flatnonzero(labels)[0]
    one = Rows(scores, labels & (np.arange(len(labels)) == first), ~labels, np.ones(len(labels)))
    keep = one.positive | ~labels
    one = Rows(scores[keep], one.positive[keep], one.iid[keep], one.weight[keep])
    cfg = PAUCAtBudgetConfig(num_classes=1, surrogate="dro", temperature=temperature)
    loss = binary(one.scores, one.positive.astype(int), temperature=temperature).item()
    scale = scale_of(one, cfg)
    reference = one.scores[~one.positive]
    scale = next((size for size in (scale, (reference - reference[0]).std()) if size > 1e-12), 1.0)
    losses = np.array(hinges(int(np.flatnonzero(one.positive)[0]), one, scale, 1.0))
    n = len(losses)
    tilted = np.exp((losses - losses.max()) / temperature)
    random = np.random.default_rng(0)
    for q in (tilted / tilted.sum(), *random.dirichlet(np.ones(n), 8)):
        divergence = sum(p * math.log(p * n) for p in q if p > 0)
        value = (q * losses).sum() - temperature * divergence
        assert value <= loss + 1e-9 * (1 + abs(loss))
    divergence = sum(p * math.log(p * n) for p in tilted / tilted.sum() if p > 0)
    assert (tilted / tilted.sum() * losses).sum() - temperature * divergence == pytest.approx(loss, rel=1e-9, abs=1e-9)


def test_effective_beta() -> None:
    """Near one over the negatives for a small temperature, 1 for a large one; in between the definition."""
    problem = make_problem()
    rows = rows_of(problem, 0)
    n = (~rows.positive).sum()

    def effective(temperature: float) -> float:
        cfg = problem.config(temperature=temperature)
        result = pauc_at_budget_per_class(problem.logits, problem.targets, problem.state, cfg, **problem.extras)[0]
        return result.diagnostics["effective_beta"].item()

    assert effective(1e-5) == pytest.approx(1 / n, rel=1e-4)
    assert effective(1e5) == pytest.approx(1, rel=1e-4)
    scale, own, budgets = scale_of(rows, problem.config()), [], []
    for i in np.flatnonzero(rows.positive):
        losses = np.array(hinges(i, rows, scale, 1.0))
        q = np.exp(losses / 0.4) / np.exp(losses / 0.4).sum()
        own.append(rows.weight[i] * log_mean_exp(list(losses), [1.0] * n, 0.4))
        budgets.append(np.exp(-(q * np.log(q * n)).sum()))
    assert effective(0.4) == pytest.approx(np.average(budgets, weights=own), rel=1e-6)


# --- symmetries -------------------------------------------------------------------------------------------------------


@over_options
def test_order_shift_and_scale_change_nothing(options: dict[str, Any]) -> None:
    """Integer scores, so that many pairs are exactly at the margin: their gradient may not depend on the order."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randint(-4, 5, (40,), generator=generator).double()
    targets = (torch.arange(40) % 3 == 0).long()
    options = {**options, "margin": 0.5}

    def with_gradient(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        leaf = scores.clone().requires_grad_()
        loss = binary(leaf, targets, **options)
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    loss, gradient = with_gradient(scores, targets)
    order = torch.randperm(40, generator=generator)
    moved, moved_gradient = with_gradient(scores[order], targets[order])
    torch.testing.assert_close((moved, moved_gradient), (loss, gradient[order]), rtol=1e-12, atol=1e-13)
    for tied in (scores[:, None] == scores) & (targets[:, None] == targets):
        torch.testing.assert_close(gradient[tied], gradient[tied][:1].expand(int(tied.sum())), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(with_gradient(8 * scores + 64, targets), (loss, gradient / 8), rtol=1e-12, atol=1e-13)
    assert gradient.sum().abs() < 1e-14


def test_a_pair_at_the_margin_has_no_gradient() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    one, positive = torch.ones(1, dtype=torch.float64), torch.tensor([[True, False, False]])
    loss = robust_hinge(scores[None], positive, ~positive, torch.ones(1, 3), one, one / 2, one)[0]
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert loss == 0
    assert not gradient.any()


def test_equal_scores_get_a_gradient() -> None:
    scores = torch.zeros(6, requires_grad=True)
    loss = binary(scores, [1, 1, 0, 0, 0, 0])
    loss.backward()
    assert loss.item() == pytest.approx(1)
    assert scores.grad is not None
    torch.testing.assert_close(scores.grad, torch.tensor([-0.5, -0.5, 0.25, 0.25, 0.25, 0.25]))


@pytest.mark.parametrize("chunk", [1, 1 << 17])
def test_counts_are_repeated_negatives(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(module, "ROBUST_CHUNK", chunk)
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    positive = torch.rand(3, 12, generator=generator) < 0.4
    positive[1] = False  # a class without positives, and one without negatives
    negative = ~positive
    positive[2], negative[2] = True, False
    counts = torch.randint(1, 4, (12,), generator=generator)
    weight = torch.rand(3, 12, generator=generator, dtype=torch.float64)
    settings = [torch.tensor([0.7, 1.0, 2.0], dtype=torch.float64) for _ in range(4)]

    def evaluate(index: Tensor, weight: Tensor, counts: Tensor | None) -> tuple[Any, Tensor]:
        leaf = scores.clone().requires_grad_()
        part = (t[:, index] for t in (leaf, positive, negative, weight))
        statistics = robust_hinge(*part, *settings, counts)
        return [t.detach() for t in statistics], torch.autograd.grad(statistics[0].sum(), leaf)[0]

    # positives are repeated with their weights
    repeated, by_repeated = evaluate(torch.arange(12).repeat_interleave(counts), weight, None)
    counted, by_counted = evaluate(torch.arange(12), weight * counts, negative * counts.double())
    torch.testing.assert_close(counted, repeated)
    torch.testing.assert_close(by_counted, by_repeated)
    assert counted[0][1:].tolist() == [0, 0]
    assert not by_counted[1:].any()


def test_a_sample_of_the_pool_estimates_it() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(400, generator=generator, dtype=torch.float64)
    targets = (torch.arange(400) % 8 == 0).long()
    options = {"temperature": 2.0}
    expected = binary(scores, targets, **options).item()
    cfg = PAUCAtBudgetConfig(num_classes=1, surrogate="dro", max_pool_size=200, **options)
    state = init_queue(0, 1, dtype=torch.float64)
    estimates = [pauc_at_budget(scores, targets, state, cfg, generator=generator)[0].item() for _ in range(60)]
    assert np.mean(estimates) == pytest.approx(expected, rel=0.05)
    assert np.std(estimates) > 0


def test_weights_of_a_positive_are_repetitions() -> None:
    scores = torch.tensor([2.0, 0.5, -1.0, 1.0, 0.3, -2.0], dtype=torch.float64)
    targets = torch.tensor([1, 1, 1, 0, 0, 0])
    cfg = PAUCAtBudgetConfig(num_classes=1, surrogate="dro", positive_temperature=0.5)
    weight = torch.tensor([1.0, 3.0, 0.0, 9.0, 9.0, 9.0])
    weighted = pauc_at_budget(scores, targets, init_queue(0, 1), cfg, sample_weight=weight)[0]
    index = torch.tensor([0, 1, 1, 1, 3, 4, 5])
    torch.testing.assert_close(weighted, pauc_at_budget(scores[index], targets[index], init_queue(0, 1), cfg)[0])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"surrogate": "dro", "alpha": 0.001}, ValueError, "expected alpha=0 with surrogate='dro', got alpha=0.001"),
        ({"positive_temperature": 1.0}, ValueError, "positive_temperature=None with surrogate='trapezoid', got 1.0"),
        (
            {"positive_temperature": 1.0, "surrogate": "pairwise"},
            ValueError,
            "positive_temperature=None with surrogate='pairwise', got 1.0: take min_tpr, or surrogate='dro'",
        ),
        ({"surrogate": "dro", "positive_temperature": 0.0}, ValueError, "positive_temperature to be a finite number"),
        ({"surrogate": "dro", "margin": 0.0}, ValueError, "expected margin to be a finite number above 0, got 0.0"),
        ({"surrogate": "dro", "margin": "1"}, TypeError, "expected margin to be a number, got '1'"),
        ({"min_tpr": 1.0}, ValueError, "expected min_tpr below 1, got 1.0"),
        ({"min_tpr": -0.1}, ValueError, r"expected min_tpr in \[0, 1\], got -0.1"),
        ({"surrogate": "kl"}, ValueError, "expected surrogate to be one of 'trapezoid', 'pairwise', 'dro', got 'kl'"),
    ],
)
def test_settings_are_checked(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        PAUCAtBudgetConfig(num_classes=1, **options)
    with pytest.raises(error, match=message):
        PAUCAtBudgetLoss(num_classes=1, **options)

"""The two-way partial AUC: the exact metric, and ``min_tpr`` of the surrogates."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit as sigmoid
from sklearn.metrics import roc_curve
from torch import Tensor

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    PAUCAtBudgetLoss,
    init_queue,
    metrics,
    pauc_at_budget,
    pauc_at_budget_per_class,
)
from imbalanced_losses.kernels.trimming import without_top_share
from tests.losses.dro_cases import IGNORE, KINDS, Rows, make_problem, quantile, rows_of, scale_of, trimmed

over_kinds = pytest.mark.parametrize("kind", KINDS)


@st.composite
def weighted_rows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, many of them tied, labels with both classes, and weights."""
    labels = [0, 1, *draw(st.lists(st.sampled_from((0, 0, 1)), max_size=25))]
    n = len(labels)
    scores = draw(st.sampled_from((st.integers(-3, 3).map(float), st.floats(-1e3, 1e3))))
    weights = draw(st.sampled_from((st.just(1.0), st.floats(0.125, 8))))
    lists = [draw(st.lists(values, min_size=n, max_size=n)) for values in (scores, weights)]
    return np.array(lists[0]), np.array(labels), np.array(lists[1])


# --- the exact metric -------------------------------------------------------------------------------------------------


def area_above(
    scores: np.ndarray, labels: np.ndarray, weight: np.ndarray, low: float, high: float, floor: float
) -> float:
    """Scikit-learn's curve, cut at the ends of the band and where it crosses the floor, integrated piece by piece."""
    weight = np.where(labels == 1, weight, 1.0)
    fpr, tpr, _ = roc_curve(labels, scores, sample_weight=weight, drop_intermediate=False)
    total = 0.0
    for x0, x1, y0, y1 in zip(fpr[:-1], fpr[1:], tpr[:-1], tpr[1:], strict=True):
        if x1 == x0:
            continue
        cuts = [max(x0, low), min(x1, high)]
        if y0 < floor < y1:
            cuts.append(x0 + (x1 - x0) * (floor - y0) / (y1 - y0))
        cuts = sorted(x for x in cuts if max(x0, low) <= x <= min(x1, high))
        for a, b in itertools.pairwise(cuts):
            heights = [max(0.0, y0 + (y1 - y0) * (x - x0) / (x1 - x0) - floor) for x in (a, b)]
            total += (b - a) * sum(heights) / 2
    return total / ((high - low) * (1 - floor))


@given(weighted_rows(), st.lists(st.integers(0, 20), min_size=2, max_size=2, unique=True), st.integers(0, 19))
def test_the_metric_is_the_area_of_scikit_learns_curve(
    rows: tuple[np.ndarray, np.ndarray, np.ndarray], twentieths: list[int], floor: int
) -> None:
    scores, labels, weight = rows
    low, high = sorted(k / 20 for k in twentieths)
    expected = area_above(scores, labels, weight, low, high, floor / 20)
    actual = metrics.partial_auc(
        torch.from_numpy(scores),
        torch.from_numpy(labels),
        low,
        high,
        sample_weight=torch.from_numpy(weight),
        min_tpr=floor / 20,
    )
    assert actual.item() == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 6), st.integers(1, 6), st.data())
def test_the_metric_is_the_share_of_pairs_in_order(n_positives: int, n_negatives: int, data: st.DataObject) -> None:
    """Without ties: the lowest positives against the highest negatives, for every whole number of both."""
    order = data.draw(st.permutations(range(n_positives + n_negatives)))
    positives, negatives = sorted(order[:n_positives]), sorted(order[n_positives:], reverse=True)
    scores, labels = torch.tensor(order), (torch.arange(len(order)) < n_positives).long()
    lowest = data.draw(st.integers(1, n_positives))
    highest = data.draw(st.integers(1, n_negatives))
    pairs = [p > n for p in positives[:lowest] for n in negatives[:highest]]
    floor = 1 - lowest / n_positives
    actual = metrics.partial_auc(scores.double(), labels, beta=highest / n_negatives, min_tpr=floor)
    assert actual.item() == pytest.approx(np.mean(pairs), abs=1e-9)


def test_no_floor_is_the_one_way_metric() -> None:
    problem = make_problem("multiclass", queue=0)
    one_way = metrics.partial_auc(problem.logits, problem.targets, beta=0.4)
    assert torch.equal(metrics.partial_auc(problem.logits, problem.targets, beta=0.4, min_tpr=0.0), one_way)
    two_way = metrics.partial_auc(problem.logits, problem.targets, beta=0.4, min_tpr=0.5)
    assert (two_way <= one_way).all()
    assert (two_way < one_way).any()


def test_the_metric_in_other_modes() -> None:
    problem = make_problem("multiclass", queue=0)
    logits = torch.stack([problem.logits, problem.logits.flip(0)])

    def metric(scores: Tensor) -> Tensor:
        return metrics.partial_auc(scores, problem.targets, beta=0.4, min_tpr=0.3)

    expected = torch.stack([metric(own) for own in logits])
    torch.testing.assert_close(torch.func.vmap(metric)(logits), expected)
    torch.testing.assert_close(torch.compile(metric, backend="aot_eager", fullgraph=True)(logits[0]), expected[0])


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (1.0, ValueError, "expected min_tpr below 1, got 1.0"),
        (-0.5, ValueError, r"expected min_tpr in \[0, 1\], got -0.5"),
        ("half", TypeError, "expected min_tpr to be a number, got 'half'"),
    ],
)
def test_a_floor_is_checked(value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        metrics.partial_auc(torch.randn(2), torch.tensor([0, 1]), min_tpr=value)


# --- weights below the floor ------------------------------------------------------------------------------------------


@given(weighted_rows(), st.integers(0, 19))
def test_the_top_share_is_removed(rows: tuple[np.ndarray, np.ndarray, np.ndarray], twentieths: int) -> None:
    scores, labels, weight = rows
    share, order = twentieths / 20, np.random.default_rng(0).permutation(len(scores))
    expected = trimmed(Rows(scores, labels == 1, labels == 0, weight), share)
    for index in (np.arange(len(scores)), order):
        tensors = (torch.from_numpy(own[index])[None] for own in (scores, labels == 1, weight))
        left = without_top_share(*tensors, share)[0].numpy()
        np.testing.assert_allclose(left, expected[index], atol=1e-12)
    assert expected.sum() == pytest.approx((1 - share) * weight[labels == 1].sum())


def test_nothing_to_remove() -> None:
    scores, mask = torch.randn(2, 5), torch.zeros(2, 5, dtype=torch.bool)
    assert not without_top_share(scores, mask, torch.ones(2, 5), 0.5).any()


# --- the surrogates ---------------------------------------------------------------------------------------------------


def reference(rows: Rows, cfg: PAUCAtBudgetConfig) -> float:
    """One minus the weighted mean, over the positives below the floor, of their own soft partial AUC."""
    ref = rows.scores[rows.iid & ~rows.positive]
    tau = cfg.temperature * scale_of(rows, cfg)
    budgets = np.linspace(cfg.alpha, cfg.beta, cfg.n_knots)
    knots = [quantile(ref, 1 - f, cfg) for f in budgets]
    band = rows.scores[~rows.positive & (rows.scores >= knots[-1]) & (rows.scores <= knots[0])]
    weight, total = trimmed(rows, cfg.min_tpr), 0.0
    for i in np.flatnonzero(weight):
        if cfg.surrogate == "pairwise":
            own = np.mean([sigmoid((rows.scores[i] - s) / tau) for s in band])
        else:
            rates = [sigmoid((rows.scores[i] - t) / tau) for t in knots]
            own = np.mean([(a + b) / 2 for a, b in itertools.pairwise(rates)])
        total += weight[i] * own
    return 1 - total / weight.sum()


@over_kinds
@pytest.mark.parametrize("min_tpr", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("options", [{"surrogate": "pairwise"}, {"surrogate": "trapezoid", "n_knots": 3}])
def test_the_surrogates_are_over_the_positives_below_the_floor(
    kind: str, min_tpr: float, options: dict[str, Any]
) -> None:
    problem = make_problem(kind, dtype=torch.float32)
    cfg = problem.config(beta=0.6, temperature=0.3, min_tpr=min_tpr, reduction="none", **options)
    expected = [reference(rows_of(problem, label), cfg) for label in range(problem.num_classes)]
    np.testing.assert_allclose(problem.loss(problem.logits, cfg).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("min_tpr", [0.25, 0.5, 0.7])
def test_the_limit_is_the_exact_metric(min_tpr: float) -> None:
    """The band of the pairwise surrogate holds whole negatives: 10 of 40 at a budget of 10/40."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(70, generator=generator, dtype=torch.float64)
    targets = (torch.arange(70) >= 40).long()
    scores[targets == 1] += 1
    weight = 0.5 + torch.rand(70, generator=generator, dtype=torch.float64)
    settings: dict[str, Any] = {"surrogate": "pairwise", "temperature": 1e-7, "beta": 9.5 / 40}
    cfg = PAUCAtBudgetConfig(num_classes=1, min_tpr=min_tpr, **settings)
    loss = pauc_at_budget(scores, targets, init_queue(0, 1), cfg, sample_weight=weight)[0].item()
    band = int(pauc_at_budget_per_class(scores, targets, init_queue(0, 1), cfg)[0].diagnostics["band_neg_count"])
    exact = metrics.partial_auc(scores, targets, beta=band / 40, sample_weight=weight, min_tpr=min_tpr).item()
    assert 1 - loss == pytest.approx(exact, abs=1e-6)
    assert 0 < exact < 1


def test_the_gap_of_the_module_is_to_the_two_way_metric() -> None:
    problem = make_problem(queue=0, dtype=torch.float32)
    loss_fn = PAUCAtBudgetLoss(1, beta=0.5, surrogate="pairwise", queue_size=0, min_tpr=0.5)
    loss = loss_fn(problem.logits, problem.targets)
    exact = metrics.partial_auc(problem.logits, problem.targets, beta=0.5, min_tpr=0.5)
    torch.testing.assert_close(loss_fn.diagnostics()["gap"], (loss - (1 - exact))[None])


@pytest.mark.parametrize("surrogate", ["trapezoid", "pairwise", "dro"])
def test_only_the_positives_below_the_floor_have_a_gradient(surrogate: str) -> None:
    scores = torch.tensor([3.0, 2.0, 1.0, 0.0, 2.5, 1.5, 0.5, -0.5], requires_grad=True)
    targets = torch.tensor([1, 1, 1, 1, 0, 0, 0, 0])
    cfg = PAUCAtBudgetConfig(num_classes=1, surrogate=surrogate, beta=1.0, temperature=1.0, min_tpr=0.5)
    loss = pauc_at_budget(scores, targets, init_queue(0, 1), cfg)[0]
    (gradient,) = torch.autograd.grad(loss, scores)
    assert not gradient[:2].any()
    assert (gradient[2:4] < 0).all()


@pytest.mark.parametrize("surrogate", ["trapezoid", "pairwise", "dro"])
def test_order_and_edge_cases(surrogate: str) -> None:
    cfg = PAUCAtBudgetConfig(num_classes=1, surrogate=surrogate, beta=0.7, min_tpr=0.4)
    scores = torch.tensor([1.0, 1.0, 1.0, 0.0, 2.0, 0.0, -1.0, 9.0], dtype=torch.float64)
    targets = torch.tensor([1, 1, 1, 1, 0, 0, 0, IGNORE])
    order = torch.tensor([5, 2, 7, 0, 4, 1, 6, 3])

    def step(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        leaf = scores.clone().requires_grad_()
        loss = pauc_at_budget(leaf, targets, init_queue(0, 1), cfg)[0]
        return loss.detach(), torch.autograd.grad(loss, leaf)[0]

    loss, gradient = step(scores, targets)
    torch.testing.assert_close(step(scores[order], targets[order]), (loss, gradient[order]))
    assert gradient[0] == gradient[1] == gradient[2]
    for empty in ([], [1, 1], [0, 0], [IGNORE]):
        loss, gradient = step(torch.zeros(len(empty)), torch.tensor(empty, dtype=torch.long))
        assert loss == 0
        assert not gradient.any()
    scores[7] = torch.nan
    assert step(scores, targets)[0].isfinite()
    scores[3] = torch.nan
    loss, gradient = step(scores, targets)
    assert loss.isnan()
    assert not gradient.isfinite().all()

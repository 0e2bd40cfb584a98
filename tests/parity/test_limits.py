"""The losses' limits at small temperature are scikit-learn's metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score, roc_curve
from torch import Tensor

from imbalanced_losses import init_queue
from imbalanced_losses.queue import push
from tests.registry import RANKING

COLD = 1e-4
N_NEGATIVES, N_POSITIVES = 101, 25

seeds = pytest.mark.parametrize("seed", range(4))
split = pytest.mark.parametrize("n_queued", [0, 60], ids=["no_queue", "queue"])


def pool(seed: int, gap: float = 0.05) -> tuple[Tensor, Tensor]:
    """Scores without ties, at least ``gap`` apart, on both sides of 0, positives somewhat above the negatives."""
    random = np.random.default_rng(seed)
    labels = np.r_[np.zeros(N_NEGATIVES), np.ones(N_POSITIVES)]
    order = (random.normal(size=len(labels)) + 1.5 * labels).argsort().argsort()
    shuffle = random.permutation(len(labels))
    return torch.from_numpy((order[shuffle] - 80.5) * gap), torch.from_numpy(labels[shuffle]).long()


def loss_of(name: str, scores: Tensor, labels: Tensor, n_queued: int = 0, **options: Any) -> float:
    state = init_queue(n_queued, 1, dtype=torch.float64)
    ones = torch.ones(n_queued)
    state = push(state, scores[:n_queued, None], labels[:n_queued], ones.bool(), ones)
    cfg = RANKING[name].config(num_classes=1, **{"temperature": COLD, **options})
    return RANKING[name].function(scores[n_queued:], labels[n_queued:], state, cfg)[0].item()


@seeds
@split
@pytest.mark.parametrize("name", RANKING)
def test_each_loss_tends_to_its_metric(name: str, seed: int, n_queued: int) -> None:
    scores, labels = pool(seed)
    entry = RANKING[name]
    metric = entry.metric(entry.config(num_classes=1, **entry.limit), scores, labels)
    assert 0.1 < metric < 1
    assert loss_of(name, scores, labels, n_queued, **entry.limit) == pytest.approx(1 - metric.item(), abs=1e-9)


@seeds
@split
def test_smooth_ap_tends_to_average_precision(seed: int, n_queued: int) -> None:
    scores, labels = pool(seed)
    loss = loss_of("smooth_ap", scores, labels, n_queued)
    assert loss == pytest.approx(1 - average_precision_score(labels, scores), abs=1e-12)


@seeds
@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_smooth_ap_tends_to_macro_average_precision(seed: int, kind: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, 4, (60,), generator=generator)
    hot = torch.nn.functional.one_hot(targets, 4)
    if kind == "multilabel":
        hot = targets = (torch.rand(60, 4, generator=generator) < 0.3).long()
    cfg = RANKING["smooth_ap"].config(num_classes=4, multilabel=kind == "multilabel", temperature=1e-7)
    loss, _ = RANKING["smooth_ap"].function(logits, targets, init_queue(0, 4, multilabel=kind == "multilabel"), cfg)
    assert loss.item() == pytest.approx(1 - average_precision_score(hot, logits, average="macro"), abs=1e-9)


@seeds
@split
@pytest.mark.parametrize("budget", [0.005, 0.05, 0.2, 0.5])
def test_recall_tends_to_recall_at_the_threshold(seed: int, n_queued: int, budget: float) -> None:
    """Between two rows ("midpoint"), and at a row ("higher"), where a positive counts by half."""
    scores, labels = pool(seed)
    for interpolation in ("midpoint", "higher"):
        theta = np.quantile(scores, 1 - budget, method=interpolation)
        above, at_least = (recall_score(labels, alerts) for alerts in (scores > theta, scores >= theta))
        loss = loss_of("recall", scores, labels, n_queued, quantile=budget, quantile_interpolation=interpolation)
        assert loss == pytest.approx(1 - (above + at_least) / 2, abs=1e-9)


def area(scores: Tensor, labels: Tensor, max_fpr: float) -> float:
    """Area under the ROC curve up to ``max_fpr``: scikit-learn's value before McClish's correction."""
    if max_fpr in (0, 1):
        return max_fpr * roc_auc_score(labels, scores)
    least, most = max_fpr**2 / 2, max_fpr
    return least + (2 * roc_auc_score(labels, scores, max_fpr=max_fpr) - 1) * (most - least)


def standardised_partial_area(scores: Tensor, labels: Tensor, skipped: int, counted: int) -> float:
    """Mean true-positive rate over the false-positive rates of ``counted`` negatives after the ``skipped`` highest."""
    low, high = skipped / N_NEGATIVES, (skipped + counted) / N_NEGATIVES
    return (area(scores, labels, high) - area(scores, labels, low)) / (high - low)


def test_uncorrected_area_is_the_area_of_the_curve() -> None:
    """Guards the oracle: undoing McClish's correction gives the trapezoid area of ``roc_curve``."""
    scores, labels = pool(0)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    limit = 10 / N_NEGATIVES
    inside = fpr <= limit + 1e-12
    assert area(scores, labels, limit) == pytest.approx(np.trapezoid(tpr[inside], fpr[inside]), abs=1e-12)


@seeds
@split
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.005), (0.0, 0.095), (0.035, 0.095), (0.0, 1.0), (0.125, 0.755)])
def test_pairwise_pauc_tends_to_the_partial_area(seed: int, n_queued: int, alpha: float, beta: float) -> None:
    """With "higher" on 101 negatives the band is the whole negatives ``floor(100 alpha)`` to ``floor(100 beta)``."""
    scores, labels = pool(seed)
    skipped = int(100 * alpha)
    counted = int(100 * beta) - skipped + 1
    loss = loss_of("pauc", scores, labels, n_queued, surrogate="pairwise", alpha=alpha, beta=beta)
    assert loss == pytest.approx(1 - standardised_partial_area(scores, labels, skipped, counted), abs=1e-9)


@seeds
@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.1), (0.04, 0.1), (0.12, 0.75)])
def test_trapezoid_with_many_knots_tends_to_the_partial_area(seed: int, alpha: float, beta: float) -> None:
    """Knots at uniform rates spend the same time at each of the 100 steps of "higher"; a knot may be one step off."""
    scores, labels = pool(seed)
    n_knots = 4001
    skipped, counted = round(100 * alpha), round(100 * (beta - alpha))
    # a positive may not sit at a knot's threshold, which is a negative here, so nothing counts by half
    loss = loss_of("pauc", scores, labels, alpha=alpha, beta=beta, n_knots=n_knots)
    expected = 1 - standardised_partial_area(scores, labels, skipped, counted)
    assert loss == pytest.approx(expected, abs=1 / (n_knots - 1))


@pytest.mark.parametrize("seed", range(2))
def test_population_budget_tends_to_the_mean_recall(seed: int) -> None:
    """Over all budgets of the population: recall at every row's score in turn, the row itself counting by half."""
    scores, labels = pool(seed)
    loss = loss_of("pauc", scores, labels, budget_basis="population", beta=1.0, n_knots=2001)
    thresholds = scores.sort(descending=True).values[:-1]
    recalls = [(recall_score(labels, scores > t) + recall_score(labels, scores >= t)) / 2 for t in thresholds]
    assert loss == pytest.approx(1 - np.mean(recalls), abs=1 / 2000)

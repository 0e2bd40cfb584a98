"""Precision and false-positive rate at a recall: against the formulas in NumPy, and in the corners."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import precision_recall_curve, roc_curve
from torch import Tensor
from torch.testing import assert_close

from imbalanced_losses import init_queue
from imbalanced_losses.queue import push
from tests.contracts.cases import example, over
from tests.losses.at_recall_cases import (
    FPR,
    PRECISION,
    AtRecall,
    both,
    gradients,
)
from tests.parity import reference
from tests.strategies import Problem


def binary(scores: list[float], labels: list[int], dtype: torch.dtype = torch.float64) -> Problem:
    logits = torch.tensor(scores, dtype=dtype)[:, None]
    return Problem(logits, torch.tensor(labels, dtype=torch.int64), init_queue(0, 1, dtype=dtype), None, None)


def without_queue(problem: Problem) -> Problem:
    return replace(problem, state=init_queue(0, problem.num_classes, multilabel=problem.multilabel))


def assert_is_reference(loss: AtRecall, problem: Problem, tolerance: float, **options: object) -> None:
    expected = reference.per_class(loss.names.reference, problem, loss.config(problem, **options))
    actual = loss.per_class(problem, **options)
    assert actual.valid.tolist() == expected.valid.tolist()
    for name, value in {"loss": actual.loss, **actual.diagnostics}.items():
        own = expected.loss if name == "loss" else expected.diagnostics[name]
        assert_close(value.double(), own, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)


# --- values -----------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(("classes", "multilabel"), [(1, False), (3, False), (10, False), (3, True), (10, True)])
@pytest.mark.parametrize("n", [200, 4000])
def test_values_of_larger_pools(loss: AtRecall, classes: int, multilabel: bool, n: int) -> None:
    """Large enough for each way through the kernels."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(n, classes, generator=generator)
    if multilabel:
        targets = (torch.rand(n, classes, generator=generator) < 0.05).long()
        targets[::7, 0] = -100
    else:
        targets = torch.where(
            torch.rand(n, generator=generator) < 0.2, torch.randint(0, max(2, classes), (n,), generator=generator), 0
        )
        targets[::7] = -100
    state = init_queue(n // 2, classes, multilabel=multilabel)
    flags, weight = torch.ones(n, dtype=torch.bool), 0.5 + torch.rand(n, generator=generator)
    half = n // 2
    state = push(state, logits[half:], targets[half:], flags[half:], weight[half:])
    problem = Problem(logits[:half], targets[:half], state, None, weight[:half])
    if n > 1000:  # the loop is slow: the same pool as rows of a matrix
        assert_is_vectorised(loss, problem)
    else:
        assert_is_reference(loss, problem, 1e-5)


def assert_is_vectorised(loss: AtRecall, problem: Problem) -> None:
    """The formula without the search for the threshold, which scikit-learn does."""
    cfg, expected = loss.config(problem), []
    logits = torch.cat([problem.logits, problem.state.logits])
    targets = torch.cat([problem.targets, problem.state.targets])
    weight = torch.cat([problem.sample_weight, problem.state.sample_weight]).double().numpy()
    for label in range(problem.num_classes):
        column = targets[:, label] if problem.multilabel else targets
        kept = (column != -100).numpy()
        one = 1 if problem.multilabel or problem.num_classes == 1 else label
        labels, scores = (column == one).numpy()[kept], logits[:, label].double().numpy()[kept]
        w = weight[kept]
        _, rates, at = roc_curve(labels, scores, sample_weight=w, drop_intermediate=False)
        place = np.flatnonzero(rates >= cfg.recall - 1e-12)[0]
        soft = 1 / (1 + np.exp(-(scores - at[place]) / cfg.temperature))
        false_alerts, found = (w * soft)[~labels].sum(), rates[place] * w[labels].sum()
        precision = found / (found + false_alerts)
        expected.append(1 - precision if loss is PRECISION else false_alerts / w[~labels].sum())
    assert_close(
        loss.per_class(problem).loss.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-6
    )


@both
@over["kinds"]
def test_directions(loss: AtRecall, kind: str) -> None:
    """Negatives go down. Positives go up by the implicit threshold, and a constant one leaves them where they are."""
    problem = without_queue(example(kind))
    positive = (
        problem.targets == 1
        if problem.multilabel
        else torch.nn.functional.one_hot(problem.targets.clamp_min(0), max(2, problem.num_classes))[
            :, -problem.num_classes :
        ].bool()
    )
    counts = problem.targets != -100
    counts = counts if problem.multilabel else counts[:, None].expand_as(positive)
    moved, fixed = (loss.run(problem, threshold_gradient=mode).gradient for mode in ("implicit", "stop"))
    assert (moved[positive & counts] < 0).all()
    assert (fixed[positive] == 0).all()
    assert_close(moved[~positive], fixed[~positive])
    assert (moved[~positive & counts] > 0).all()
    assert (moved[~counts] == 0).all()


# --- limits -----------------------------------------------------------------------------------------------------------


def distinct(seed: int, n_negatives: int = 101, n_positives: int = 25) -> tuple[Tensor, Tensor]:
    """Scores at least 0.05 apart, positives somewhat above the negatives, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.r_[np.zeros(n_negatives), np.ones(n_positives)]
    order = (random.normal(size=len(labels)) + 1.5 * labels).argsort().argsort()
    shuffle = random.permutation(len(labels))
    return torch.from_numpy(order[shuffle] * 0.05), torch.from_numpy(labels[shuffle]).long()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_queued", [0, 60], ids=["no_queue", "queue"])
@pytest.mark.parametrize("recall", [0.04, 0.5, 0.8, 0.81, 1.0])
def test_limits_are_scikit_learns_points(seed: int, n_queued: int, recall: float) -> None:
    """0.04 and 0.8 of 25 positives are 1 and 20 of them, though 0.8 is no binary fraction."""
    scores, labels = distinct(seed)
    weight = torch.from_numpy(np.random.default_rng(seed).integers(1, 4, len(labels)) / 2.0)
    weight[labels == 1] = 1.5
    state = init_queue(n_queued, 1, dtype=torch.float64)
    flags = torch.ones(n_queued, dtype=torch.bool)
    state = push(state, scores[:n_queued, None], labels[:n_queued], flags, weight[:n_queued])
    problem = Problem(scores[n_queued:, None], labels[n_queued:], state, None, weight[n_queued:])
    options = {"recall": recall, "temperature": 1e-5}
    precisions, recalls, _ = precision_recall_curve(labels, scores, sample_weight=weight)
    expected = precisions[recalls >= recall - 1e-12][-1]  # the curve goes from the lowest threshold to the highest
    assert PRECISION.run(problem, **options).loss.item() == pytest.approx(1 - expected, abs=1e-12)
    rates, recalls, _ = roc_curve(labels, scores, sample_weight=weight, drop_intermediate=False)
    assert FPR.run(problem, **options).loss.item() == pytest.approx(rates[recalls >= recall - 1e-12].min(), abs=1e-12)


@both
def test_a_negative_at_the_threshold_counts_by_half(loss: AtRecall) -> None:
    problem = binary([3, 2, 2, 2, 1], [1, 1, 0, 0, 0])
    cold = loss.run(problem, recall=1.0, temperature=1e-5).loss.item()
    assert cold == pytest.approx(1 / 3)  # one false alert, with two positives or among three negatives
    exact = loss.metric(problem.logits, problem.targets, 1.0).item()
    assert exact == pytest.approx(0.5 if loss is PRECISION else 2 / 3)


@both
def test_tied_positives_are_found_together(loss: AtRecall) -> None:
    """Half of four positives are two, but three share the score of the second."""
    problem = binary([4, 3, 3, 3, 3.5, 0], [1, 1, 1, 1, 0, 0])
    diagnostics = loss.per_class(problem, recall=0.5, temperature=1e-3).diagnostics
    assert (diagnostics["threshold"].item(), diagnostics["recall"].item()) == (3.0, 1.0)
    value = loss.run(problem, recall=0.5, temperature=1e-3).loss.item()
    assert value == pytest.approx(1 / 5 if loss is PRECISION else 1 / 2)


@both
@pytest.mark.parametrize("n", [1, 5, 10, 20, 40, 100])
@pytest.mark.parametrize("percent", [1, 7, 29, 55, 57, 58, 80, 99, 100])
def test_the_recall_is_the_least_that_is_enough(loss: AtRecall, n: int, percent: int) -> None:
    problem = binary([*map(float, range(n)), -1.0], [1] * n + [0])
    recall = loss.per_class(problem, recall=percent / 100).diagnostics["recall"].item()
    assert recall == pytest.approx(-(-n * percent // 100) / n)


@both
def test_one_positive_is_the_threshold(loss: AtRecall) -> None:
    problem = binary([1.0, 2.0, 0.0, -1.0], [1, 0, 0, 0])
    soft = [1 / (1 + np.exp(-(s - 1.0) / 0.5)) for s in (2.0, 0.0, -1.0)]
    expected = sum(soft) / (1 + sum(soft)) if loss is PRECISION else np.mean(soft)
    result = loss.run(problem)
    assert result.loss.item() == pytest.approx(expected)
    assert result.gradient.sum().abs() < 1e-12


# --- corners ----------------------------------------------------------------------------------------------------------


@both
@gradients
@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_weightless_classes_are_invalid(loss: AtRecall, mode: str, kind: str) -> None:
    problem = binary([2.0, 1.0, 0.0, 3.0], [1, 0, 1, 0])
    weight = torch.tensor([0.0, 1, 0, 1] if kind == "positive" else [1.0, 0, 1, 0], dtype=torch.float64)
    problem = replace(problem, sample_weight=weight)
    result = loss.run(problem, threshold_gradient=mode)
    assert result.loss == 0
    assert (result.gradient == 0).all()
    assert not loss.per_class(problem).valid.any()


@both
@gradients
@pytest.mark.parametrize("size", [1e4, 3e38])
def test_extreme_scores(loss: AtRecall, mode: str, size: float) -> None:
    problem = binary([size, -size, size, -size, 0.0], [1, 1, 0, 0, 1], torch.float32)
    for recall in (0.3, 0.6, 1.0):
        result = loss.run(problem, recall=recall, temperature=0.01, threshold_gradient=mode)
        assert 0 <= result.loss <= 1
        assert result.gradient.isfinite().all()


@both
@gradients
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("row", [0, 1], ids=["negative", "positive"])
def test_live_scores_that_are_not_finite(loss: AtRecall, mode: str, value: float, row: int) -> None:
    problem = example("binary")
    logits = problem.logits.clone()
    logits[row] = value
    result = loss.run(replace(problem, logits=logits), threshold_gradient=mode)
    assert not result.loss.isfinite()
    assert not result.gradient.isfinite().all()
    after = loss.run(replace(problem, state=result.state), threshold_gradient=mode)
    assert after.loss.isfinite()


@both
@gradients
@pytest.mark.parametrize("row", [0, 1, 5], ids=["negative", "positive", "ignored"])
def test_weights_that_are_not_finite(loss: AtRecall, mode: str, row: int) -> None:
    problem = example("binary")
    weight = problem.sample_weight.clone()
    weight[row] = torch.nan
    result = loss.run(replace(problem, sample_weight=weight), threshold_gradient=mode)
    assert not result.loss.isfinite()
    assert not result.gradient.isfinite().all()


# --- weights and order ------------------------------------------------------------------------------------------------


@both
def test_a_sampled_pool_estimates_the_whole(loss: AtRecall) -> None:
    """Means over many samples, whose rows stand for the others by their inclusion weights."""
    scores, labels = distinct(0, n_negatives=900, n_positives=300)
    problem = Problem(scores[:, None] / 10, labels, init_queue(0, 1), None, None)
    whole = loss.run(problem).loss
    sampled = [
        loss.run(problem, {"generator": torch.Generator().manual_seed(seed)}, max_pool_size=400).loss
        for seed in range(60)
    ]
    assert torch.stack(sampled).std() > 0
    assert_close(torch.stack(sampled).mean(), whole, rtol=0.05, atol=0)

"""Recall at a false-positive rate: ``budget_basis="fpr"`` of the recall loss and of its exact metric."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import recall_score, roc_curve
from torch import Tensor

from imbalanced_losses import (
    RecallAtQuantileConfig,
    RecallAtQuantileLoss,
    init_queue,
    metrics,
    recall_at_quantile,
    recall_at_quantile_per_class,
)
from imbalanced_losses.queue import push
from tests.contracts.cases import Case, example, over
from tests.parity.reference import soft_quantile_gradient
from tests.registry import RANKING
from tests.strategies import INTERPOLATIONS, few_examples, problems

FPR = Case("recall-fpr", "recall", {"temperature": 0.5, "quantile": 0.3, "budget_basis": "fpr"})


def distinct_scores(seed: int) -> tuple[Tensor, Tensor]:
    """Scores at least 0.05 apart of 101 negatives and 25 positives, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.r_[np.zeros(101), np.ones(25)]
    order = (random.normal(size=126) + 1.5 * labels).argsort().argsort()
    shuffle = random.permutation(126)
    return torch.from_numpy(order[shuffle] * 0.05), torch.from_numpy(labels[shuffle]).long()


def loss_of(scores: Tensor, labels: Tensor, n_queued: int = 0, **options: Any) -> float:
    state = init_queue(n_queued, 1, dtype=torch.float64)
    ones = torch.ones(n_queued)
    state = push(state, scores[:n_queued, None], labels[:n_queued], ones.bool(), ones)
    cfg = RecallAtQuantileConfig(num_classes=1, budget_basis="fpr", **options)
    return recall_at_quantile(scores[n_queued:], labels[n_queued:], state, cfg)[0].item()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n_queued", [0, 60], ids=["no_queue", "queue"])
@pytest.mark.parametrize("budget", [0.01, 0.05, 0.2, 0.5])
def test_tends_to_the_roc_curve(seed: int, n_queued: int, budget: float) -> None:
    """Of the 101 negatives a whole number is above the threshold, which is the next one."""
    scores, labels = distinct_scores(seed)
    rates, recalls, _ = roc_curve(labels, scores, drop_intermediate=False)
    expected = recalls[rates <= budget].max()
    loss = loss_of(scores, labels, n_queued, quantile=budget, temperature=1e-4)
    assert loss == pytest.approx(1 - expected, abs=1e-12)
    assert metrics.recall_at_quantile(scores, labels, budget, budget_basis="fpr").item() == pytest.approx(expected)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@given(data=st.data())
def test_the_metric_is_scikit_learns_recall(interpolation: str, data: st.DataObject) -> None:
    """With ties and weights; the threshold is a quantile of the negatives."""
    labels = np.array([0, 1, *data.draw(st.lists(st.integers(0, 1), max_size=20))])
    scores = np.array(data.draw(st.lists(st.integers(-4, 4), min_size=len(labels), max_size=len(labels))), dtype=float)
    weight = 0.5 + np.arange(len(labels)) % 3
    quantile = data.draw(st.integers(0, 20)) / 20
    threshold = torch.from_numpy(scores[labels == 0]).quantile(1 - quantile, interpolation=interpolation).item()
    expected = recall_score(labels, scores >= threshold, sample_weight=weight)
    actual = metrics.recall_at_quantile(
        torch.from_numpy(scores),
        torch.from_numpy(labels),
        quantile,
        interpolation,
        sample_weight=torch.from_numpy(weight),
        budget_basis="fpr",
    )
    assert actual.item() == pytest.approx(expected, abs=1e-12)


@few_examples
@given(data=st.data())
def test_the_threshold_follows_the_negatives(data: st.DataObject) -> None:
    """Against finite differences of the loss with the soft quantile of the negatives solved again."""
    problem = data.draw(problems(min_rows=1, extremes=False))
    case = FPR.with_options(threshold_gradient="implicit")
    expected = soft_quantile_gradient(RANKING["recall"].reference, problem, case.config(problem, reduction="sum"))
    gradient = case.run(problem, reduction="sum").gradient
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@over["kinds"]
def test_more_positives_do_not_move_the_threshold(kind: str) -> None:
    """Of all rows they would: that is the difference between the two."""
    problem = example(kind, with_queue=False)
    logits = torch.cat([problem.logits, problem.logits.amax() + torch.ones(40, problem.num_classes)]).double()
    column = torch.ones(40, problem.num_classes) if problem.multilabel else torch.ones(40)
    targets = torch.cat([problem.targets, column.long()])

    def thresholds(*rows: Tensor, **options: Any) -> Tensor:
        loss_fn = FPR.with_options(**options).shell(problem, queue_size=0)
        loss_fn(*rows)
        return loss_fn.diagnostics()["threshold"]

    label = 1 if kind == "multiclass" else 0
    before, after = (thresholds(*rows)[label] for rows in ((problem.logits, problem.targets), (logits, targets)))
    assert before == after
    assert thresholds(logits, targets, budget_basis="population")[label] > after


def test_a_class_without_negatives_is_invalid() -> None:
    logits = torch.randn(5, 3, requires_grad=True)
    targets = torch.tensor([[1, 1, 0], [1, -100, 0], [1, 1, 1], [1, 0, 1], [1, 0, 0]])
    state = init_queue(0, 3, multilabel=True)
    for gradient in ("stop", "implicit"):
        cfg = RecallAtQuantileConfig(num_classes=3, multilabel=True, budget_basis="fpr", threshold_gradient=gradient)
        result, _ = recall_at_quantile_per_class(logits, targets, state, cfg)
        assert result.valid.tolist() == [False, True, True]
        assert result.loss.isnan().tolist() == [True, False, False]
        loss, _ = recall_at_quantile(logits, targets, state, cfg, temperature=0.5)
        assert loss.item() == pytest.approx(
            recall_at_quantile_per_class(logits, targets, state, cfg, temperature=0.5)[0].loss[1:].mean().item()
        )
        (slope,) = torch.autograd.grad(loss, logits)
        assert (slope[:, 0] == 0).all()
        assert slope.isfinite().all()
    assert metrics.recall_at_quantile(logits, targets, multilabel=True, budget_basis="fpr").isnan().tolist() == [
        True,
        False,
        False,
    ]


@over["kinds"]
def test_the_default_is_the_population(kind: str) -> None:
    problem = example(kind)
    case = FPR.with_options(budget_basis="population")
    default = Case("recall", "recall", {"temperature": 0.5, "quantile": 0.3})
    ours, expected = case.run(problem), default.run(problem)
    assert torch.equal(ours.loss, expected.loss)
    assert torch.equal(ours.gradient, expected.gradient)


def test_the_module_takes_and_changes_it() -> None:
    problem = example()
    loss_fn = RecallAtQuantileLoss(1, 0.3, queue_size=0, temperature=0.5, budget_basis="fpr").double()
    expected, _ = recall_at_quantile(
        problem.logits, problem.targets, init_queue(0, 1), FPR.config(problem, budget_basis="fpr")
    )
    assert torch.equal(loss_fn(problem.logits, problem.targets), expected)
    loss_fn.budget_basis = "population"
    assert loss_fn(problem.logits, problem.targets) != expected
    with pytest.raises(ValueError, match="expected budget_basis to be one of 'population', 'fpr', got 'rows'"):
        loss_fn.budget_basis = "rows"
    with pytest.raises(ValueError, match="expected budget_basis"):
        metrics.recall_at_quantile(problem.logits, problem.targets, budget_basis="rows")  # type: ignore[arg-type]

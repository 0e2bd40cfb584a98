"""Batches with nothing to rank: a finite loss of 0, nan at invalid classes, zero gradients, connected to the graph."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from imbalanced_losses import init_queue
from tests.contracts.cases import Case, assert_close, assert_same_state, case_named, example, over
from tests.parity import reference
from tests.strategies import IGNORE, KINDS, Problem


def empty_queue(kind: str, size: int = 0) -> Problem:
    problem = example(kind, with_queue=False)
    num_classes, multilabel = KINDS[kind]
    return replace(problem, state=init_queue(size, num_classes, multilabel=multilabel, dtype=torch.float64))


def assert_nothing(case: Case, problem: Problem) -> None:
    for reduction in ("mean", "sum"):
        result = case.run(problem, reduction=reduction)
        assert result.loss == 0
        assert result.gradient.shape == problem.logits.shape
        assert (result.gradient == 0).all()
    none = case.run(problem, reduction="none")
    assert none.loss.isnan().all()
    assert (none.gradient == 0).all()
    per_class = case.per_class(problem)
    assert not per_class.valid.any()


@over["cases"]
@over["kinds"]
@pytest.mark.parametrize("capacity", [0, 5])
def test_empty_batch(case: Case, kind: str, capacity: int) -> None:
    problem = empty_queue(kind, capacity).rows(torch.arange(0))
    assert_nothing(case, problem)
    assert_same_state(case.run(problem).state, problem.state)


@over["cases"]
@over["kinds"]
def test_empty_batch_with_a_queue(case: Case, kind: str) -> None:
    """The queue alone may make classes valid: the loss is theirs, and backward has no row to reach."""
    problem = example(kind).rows(torch.arange(0))
    result = case.run(problem)
    assert 0 <= result.loss <= case.most
    assert (result.loss > 0) == (not case.live_numerator)
    assert result.gradient.shape == problem.logits.shape


@over["cases"]
@over["kinds"]
@over["queue"]
def test_all_ignored(case: Case, kind: str, with_queue: bool) -> None:
    problem = example(kind, with_queue)
    problem = replace(problem, targets=torch.full_like(problem.targets, IGNORE))
    result = case.run(problem)
    assert (result.gradient == 0).all()
    if with_queue and not case.live_numerator:
        assert 0 < result.loss < case.most
    else:
        assert_nothing(case, problem)


@over["cases"]
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_all_negative(case: Case, kind: str) -> None:
    problem = empty_queue(kind)
    assert_nothing(case, replace(problem, targets=torch.zeros_like(problem.targets)))


@over["cases"]
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_all_positive(case: Case, kind: str) -> None:
    """No negative leaves nothing to rank against; recall is about the threshold over all scores and stays valid."""
    problem = empty_queue(kind)
    problem = replace(problem, targets=torch.ones_like(problem.targets))
    if not case.needs_negatives:
        assert case.per_class(problem).valid.all()
        assert 0 < case.run(problem).loss < 1
    else:
        assert_nothing(case, problem)


@over["cases"]
def test_one_observed_class(case: Case) -> None:
    """Multi-class with every row of class 1: all positive for it, all negative for the others."""
    problem = empty_queue("multiclass")
    problem = replace(problem, targets=torch.ones_like(problem.targets))
    if not case.needs_negatives:
        assert case.per_class(problem).valid.tolist() == [False, True, False]
        assert (case.run(problem).gradient[:, [0, 2]] == 0).all()
    else:
        assert_nothing(case, problem)


@over["cases"]
def test_mean_is_over_valid_classes(case: Case) -> None:
    """A class that no row has does not dilute the others."""
    problem = example("multiclass", with_queue=False)
    problem = replace(problem, targets=torch.where(problem.targets == 2, 1, problem.targets))
    per_class = case.per_class(problem)
    assert per_class.valid.tolist() == [True, True, False]
    result = case.run(problem)
    torch.testing.assert_close(result.loss, per_class.loss[:2].mean())
    assert (result.gradient[:, 2] == 0).all()


@over["cases"]
def test_one_row(case: Case) -> None:
    problem = empty_queue("binary").rows(torch.tensor([1]))
    assert problem.targets.tolist() == [1]
    if not case.needs_negatives:
        assert case.per_class(problem).valid.all()
        expected = reference.per_class(case.loss.reference, problem, case.config(problem)).loss
        assert_close(case.run(problem).loss, expected[0])  # recall: a half, since the threshold is the row itself
    else:
        assert_nothing(case, problem)


@over["pauc"]
def test_pauc_without_iid_negatives_is_invalid(case: Case) -> None:
    problem = example("binary")
    iid = problem.targets == 1
    assert_nothing(case, replace(problem, iid_mask=iid).with_queue(iid=problem.state.targets == 1))


@over["pauc"]
@over["kinds"]
def test_pauc_of_tied_scores_is_a_half(case: Case, kind: str) -> None:
    """No spread: the unit is 1, and each comparison is even; with "dro" each hinge loss is the margin."""
    problem = example(kind)
    tied = replace(problem, logits=torch.full_like(problem.logits, 0.1))
    tied = tied.with_queue(logits=torch.full_like(problem.state.logits, 0.1))
    per_class = case.per_class(tied)
    assert per_class.valid.any()
    found, expected = per_class.loss[per_class.valid], case.options.get("margin", 0.5 if case.variant.bounded else 1.0)
    torch.testing.assert_close(found, torch.full_like(found, expected))
    assert (case.run(tied).gradient != 0).any()


@over["pauc"]
def test_pauc_with_a_live_numerator_needs_live_positives(case: Case) -> None:
    problem = example("binary")
    problem = replace(problem, targets=torch.where(problem.targets == 1, 0, problem.targets))
    assert case.per_class(problem).valid.item() is (not case.live_numerator)
    if case.live_numerator:
        assert_nothing(case, problem)


@pytest.mark.parametrize(
    ("basis", "labels", "beta"),
    [("fpr", [0, 0, 0, 0, 1], 0.3), ("population", [0, 0, 0, 1, 1], 0.2)],
    ids=["between two negatives", "positives only"],
)
def test_pairwise_pauc_of_an_empty_band_is_0(basis: str, labels: list[int], beta: float) -> None:
    """Scores 0, 1, 2, 3, 4: the thresholds lie between two of them, or below the positives alone."""
    scores = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]], dtype=torch.float64)
    problem = Problem(scores, torch.tensor(labels), init_queue(0, 1), None, None)
    case = case_named("pairwise").with_options(budget_basis=basis, quantile_interpolation="linear", beta=beta)
    per_class = case.per_class(problem, surrogate="trapezoid")
    assert per_class.valid.all()
    band = per_class.diagnostics["t_beta"].item(), per_class.diagnostics["t_alpha"].item()
    assert not any(band[0] <= score <= band[1] for score, label in zip(range(5), labels, strict=True) if label == 0)
    assert case.per_class(problem).valid.all()
    assert case.run(problem).loss == 0
    assert (case.run(problem).gradient == 0).all()


@over["defaults"]
def test_defaults_survive_a_tiny_batch(case: Case) -> None:
    """At a budget of 0.5 percent the whole band of a small pool is one negative."""
    problem = example("binary", with_queue=False)
    result = case.run(problem)
    assert 0 < result.loss <= 1
    assert result.gradient.isfinite().all()

"""``threshold_gradient="implicit"``: the value of "stop", with a threshold that follows the scores."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imbalanced_losses import init_queue
from tests.contracts.cases import Case, assert_close, case_named, example, over
from tests.parity.reference import soft_quantile_gradient
from tests.strategies import Problem, few_examples, problems


def without_queue(problem: Problem) -> Problem:
    empty = init_queue(0, problem.num_classes, multilabel=problem.multilabel, dtype=problem.logits.dtype)
    return replace(problem, state=empty)


@over["implicit"]
@few_examples
@given(problem=problems())
def test_value_is_bit_identical(case: Case, problem: Problem) -> None:
    implicit, stop = case.run(problem), case.run(problem, threshold_gradient="stop")
    assert torch.equal(implicit.loss, stop.loss)
    left, right = case.per_class(problem), case.per_class(problem, threshold_gradient="stop")
    torch.testing.assert_close(left.loss, right.loss, rtol=0, atol=0, equal_nan=True)
    for name, value in left.diagnostics.items():
        torch.testing.assert_close(value, right.diagnostics[name], rtol=0, atol=0, equal_nan=True)


@over["implicit"]
@few_examples
@given(problem=problems(min_rows=2))
def test_gradient_sums_to_zero_without_a_queue(case: Case, problem: Problem) -> None:
    """Raising all scores improves nothing, and the gradient knows."""
    gradient = case.run(without_queue(problem), reduction="sum").gradient
    size = gradient.abs().sum(0).clamp(min=1e-3)
    assert (gradient.sum(0).abs() <= 1e-10 * size).all()


@over["implicit"]
@over["kinds"]
def test_gradient_sums_to_zero_in_float32(case: Case, kind: str) -> None:
    gradient = case.run(without_queue(example(kind, dtype=torch.float32)), reduction="sum").gradient
    assert (gradient.abs().sum(0) > 1e-3).all()
    assert (gradient.sum(0).abs() <= 1e-5 * gradient.abs().sum(0)).all()


@over["kinds"]
@pytest.mark.parametrize("loss", ["recall", "trapezoid"])
def test_stop_has_a_component_along_raising_all_scores(loss: str, kind: str) -> None:
    case = case_named(loss)
    assert (case.run(without_queue(example(kind))).gradient.sum(0) < -1e-3).all()


@over["implicit"]
@over["kinds"]
def test_queue_rows_hold_part_of_the_threshold(case: Case, kind: str) -> None:
    """Queue rows count in the denominator and carry no gradient, so part of the shift component stays."""
    problem = example(kind)
    implicit, stop = (
        case.run(problem, threshold_gradient=mode, reduction="sum").gradient.sum(0) for mode in ("implicit", "stop")
    )
    if case.options.get("surrogate") == "pairwise":  # its thresholds only say who is in the band
        assert_close(implicit, stop)
    else:
        assert ((implicit - stop) * stop < 0).all()
        assert (implicit.abs() > 1e-3).all()


@over["implicit"]
@few_examples
@given(data=st.data())
def test_gradient_of_the_soft_quantile(case: Case, data: st.DataObject) -> None:
    """Against finite differences of the loss at thresholds found by bisection of the soft quantile equation."""
    problem = data.draw(problems(min_rows=1, extremes=False))
    expected = soft_quantile_gradient(case.loss.reference, problem, case.config(problem, reduction="sum"))
    gradient = case.run(problem, reduction="sum").gradient
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


def test_far_rows_still_share_the_threshold() -> None:
    """Normalised in log space: with every row many temperatures away, the nearest ones still carry the threshold."""
    case = case_named("recall_implicit")
    scores = torch.tensor([[8.0], [4.0], [-4.0], [-8.0]], dtype=torch.float64)
    problem = Problem(scores, torch.tensor([1, 0, 1, 0]), init_queue(0, 1), None, None)
    gradient = case.run(problem, temperature=0.005, quantile=0.5, quantile_interpolation="midpoint").gradient
    assert gradient.isfinite().all()
    assert gradient.sum().abs() <= 1e-12

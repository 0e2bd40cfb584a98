"""Sample weights: each positive's term in the numerator mean, and nothing else; or each row, in losses of counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.contracts.cases import CASES, Case, assert_close, assert_same_state, case_named, example, over
from tests.parity import reference
from tests.strategies import Problem, few_examples, problems

POSITIVES_ALONE = [case for case in CASES if not case.loss.weighs_negatives]
EVERY_ROW = [case for case in CASES if case.loss.weighs_negatives]


def with_weights(problem: Problem, weight: Tensor | None, queue_weight: Tensor | None = None) -> Problem:
    problem = replace(problem, sample_weight=weight)
    return problem if queue_weight is None else problem.with_queue(sample_weight=queue_weight)


def has_positive(targets: Tensor) -> Tensor:
    """Bool ``[N]`` for binary ``[N]`` or multi-label ``[N, C]`` targets."""
    return (targets == 1).any(1) if targets.dim() == 2 else targets == 1


@over["cases"]
@few_examples
@given(problem=problems())
def test_none_is_all_ones(case: Case, problem: Problem) -> None:
    n = len(problem.logits)
    result = case.run(with_weights(problem, None))
    for ones in (torch.ones(n), torch.ones(n, dtype=torch.float64), torch.ones(n, dtype=torch.int64)):
        expected = case.run(with_weights(problem, ones))
        assert torch.equal(result.loss, expected.loss)
        assert torch.equal(result.gradient, expected.gradient)
        assert_same_state(result.state, expected.state)


@pytest.mark.parametrize("case", [case for case in CASES if case.variant.weighs_terms], ids=lambda case: case.name)
@over["kinds"]
def test_weight_two_on_a_positive_is_the_closed_form(case: Case, kind: str) -> None:
    """``sum(w x) / sum(w)`` of the positives' own terms ``x``, which the loss at one positive's weight alone gives."""
    problem = example(kind)
    column = problem.targets[:, 0] if problem.multilabel else problem.targets
    label = 1 if problem.multilabel or kind == "binary" else 0
    positives = (column == label).nonzero()[:, 0]
    queue_zero = torch.zeros_like(problem.state.sample_weight)

    def first_class(weight: Tensor) -> Tensor:
        return case.per_class(with_weights(problem, weight, queue_zero)).loss[0]

    zero = torch.zeros(len(problem.logits), dtype=torch.float64)
    terms = torch.stack([first_class(zero.index_fill(0, i, 1.0)) for i in positives])
    weight = torch.ones(len(positives), dtype=torch.float64)
    weight[1] = 2.0
    actual = first_class(zero.index_copy(0, positives, weight))
    assert_close(actual, (weight * terms).sum() / weight.sum())
    assert not torch.allclose(actual, terms.mean(), atol=1e-6)


@over["cases"]
@over["kinds"]
@over["queue"]
def test_weight_two_on_a_positive_is_the_dense_formula(case: Case, kind: str, with_queue: bool) -> None:
    problem = example(kind, with_queue)
    weight = torch.ones(len(problem.logits), dtype=torch.float64)
    for i in range(3):
        weight[i] = 2.0
    problem = with_weights(problem, weight)
    expected = reference.per_class(case.loss.reference, problem, case.config(problem))
    assert_close(case.per_class(problem).loss, expected.loss)


@over["cases"]
@few_examples
@given(problem=problems(), factor=st.sampled_from([0.25, 2.0, 512.0]))
def test_only_proportions_matter(case: Case, problem: Problem, factor: float) -> None:
    weight = torch.linspace(0, 2, len(problem.logits), dtype=torch.float64)
    result = case.run(with_weights(problem, weight))
    scaled = case.run(with_weights(problem, weight * factor, problem.state.sample_weight * factor))
    assert_close(scaled.loss, result.loss)
    assert_close(scaled.gradient, result.gradient)


@pytest.mark.parametrize("case", POSITIVES_ALONE, ids=lambda case: case.name)
@few_examples
@given(data=st.data(), kind=st.sampled_from(["binary", "multilabel"]))
def test_weights_of_rows_without_a_positive_do_nothing(case: Case, data: st.DataObject, kind: str) -> None:
    """Ranks, thresholds and bands stay counts."""
    problem = data.draw(problems(kind))
    before = torch.ones(len(problem.logits), dtype=torch.float64)
    after = torch.where(has_positive(problem.targets), before, 7.0)
    queue = torch.where(has_positive(problem.state.targets), problem.state.sample_weight, 7.0)
    expected, result = case.run(with_weights(problem, before)), case.run(with_weights(problem, after, queue))
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.gradient, expected.gradient)


@over["cases"]
@over["kinds"]
def test_zero_mass_is_invalid(case: Case, kind: str) -> None:
    problem = example(kind)
    zero = torch.zeros(len(problem.logits), dtype=torch.float64)
    problem = with_weights(problem, zero, torch.zeros_like(problem.state.sample_weight))
    per_class, result = case.per_class(problem), case.run(problem)
    assert not per_class.valid.any()
    assert per_class.loss.isnan().all()
    assert result.loss == 0
    assert (result.gradient == 0).all()


@pytest.mark.parametrize("case", EVERY_ROW, ids=lambda case: case.name)
@few_examples
@given(problem=problems(min_rows=2, extremes=False))
def test_a_weight_counts_rows(case: Case, problem: Problem) -> None:
    """A row of weight 2 is a row given twice, one of weight 0 is none; in units of the scores both are rows."""
    case = case.with_options(tau_scale="none")
    n = len(problem.logits)
    counts = torch.arange(n) % 3
    weighted = case.run(with_weights(problem, counts.double()))
    index = torch.arange(n).repeat_interleave(counts)
    repeated = case.run(with_weights(problem.rows(index), None))
    assert_close(weighted.loss, repeated.loss)
    expected = torch.zeros_like(problem.logits).index_add(0, index, repeated.gradient)
    assert_close(weighted.gradient, expected)


@pytest.mark.parametrize("case", POSITIVES_ALONE, ids=lambda case: case.name)
def test_a_positive_without_weight_still_ranks(case: Case) -> None:
    """Zero weight is not an ignored row: the row counts in ranks, thresholds and populations."""
    problem = example("binary")
    weight = torch.ones(len(problem.logits), dtype=torch.float64)
    weight[1] = 0.0
    problem = with_weights(problem, weight)
    expected = reference.per_class(case.loss.reference, problem, case.config(problem))
    assert_close(case.per_class(problem).loss, expected.loss)


@over["cases"]
def test_the_queue_keeps_weights(case: Case) -> None:
    """A pushed row weighs in the next step what it weighed in its own."""
    problem = example("binary", capacity=32)
    if case.live_numerator:
        case = case.with_options(pos_numerator="pool")
    pushed = case.run(problem).state
    assert torch.equal(pushed.sample_weight[24:32], problem.sample_weight[:8])
    later = Problem(problem.logits[:2] + 0.25, problem.targets[:2], pushed, problem.iid_mask[:2], None)
    expected = reference.per_class(case.loss.reference, later, case.config(later))
    assert_close(case.per_class(later).loss, expected.loss)


@over["cases"]
def test_weights_carry_no_gradient(case: Case) -> None:
    problem = example("binary")
    weight = problem.sample_weight.clone().requires_grad_()
    logits = problem.logits.clone().requires_grad_()
    loss, state = case.loss.function(logits, problem.targets, problem.state, case.config(problem), sample_weight=weight)
    loss.backward()
    assert weight.grad is None
    assert logits.grad is not None
    assert not state.sample_weight.requires_grad


@over["cases"]
@over["queue"]
def test_a_column_of_weights_and_flags(case: Case, with_queue: bool) -> None:
    """``[N, 1]``, as data often comes beside logits ``[N, 1]``, is ``[N]``, for the function and the module."""
    problem = example("binary", with_queue)
    assert problem.sample_weight is not None
    column = replace(problem, sample_weight=problem.sample_weight[:, None], iid_mask=problem.iid_mask[:, None])
    expected, result = case.run(problem), case.run(column)
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.gradient, expected.gradient)
    assert_same_state(result.state, expected.state)
    shells = [case.shell(problem) for _ in range(2)]
    losses = [
        shell(own.logits, own.targets, **own.extras) for shell, own in zip(shells, (problem, column), strict=True)
    ]
    assert torch.equal(*losses)
    assert_same_state(shells[0].queue_state, shells[1].queue_state)


def test_a_compiled_column_of_weights_and_flags() -> None:
    """All losses parse their rows by one function."""
    case, problem = case_named("recall"), example("binary")
    assert problem.sample_weight is not None
    column = {"iid_mask": problem.iid_mask[:, None], "sample_weight": problem.sample_weight[:, None]}
    compiled = torch.compile(case.loss.function, fullgraph=True, backend="eager")
    expected = case.run(problem)
    loss, state = compiled(problem.logits, problem.targets, problem.state, case.config(problem), **column)
    assert_close(loss, expected.loss)
    assert_same_state(state, expected.state)


@over["cases"]
def test_a_row_of_logits_with_a_column_of_weights(case: Case) -> None:
    problem = example("binary")
    assert problem.sample_weight is not None
    cfg = case.config(problem)
    shapes = {"iid_mask": problem.iid_mask[:, None], "sample_weight": problem.sample_weight[:, None]}
    loss, _ = case.loss.function(problem.logits[:, 0], problem.targets[:, None], problem.state, cfg, **shapes)
    assert torch.equal(loss, case.run(problem).loss)
    weights = shapes.pop("sample_weight")

    def mapped(logits: Tensor, weight: Tensor) -> Tensor:
        return case.loss.function(logits, problem.targets, problem.state, cfg, sample_weight=weight, **shapes)[0]

    assert_close(torch.func.vmap(mapped)(problem.logits[None], weights[None])[0], loss)

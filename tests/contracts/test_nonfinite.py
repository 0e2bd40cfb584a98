"""A non-finite logit is not swallowed, and does not outlive its step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.contracts.cases import Case, assert_same_state, example, over
from tests.strategies import IGNORE, Problem

BAD = [float("nan"), float("inf"), -float("inf")]
EXTENTS = {"batch": (slice(None), slice(None)), "row": (3, slice(None)), "element": (4, 0)}


def spoil(problem: Problem, bad: float, extent: str) -> Problem:
    logits = problem.logits.clone()
    logits[EXTENTS[extent]] = bad
    return replace(problem, logits=logits)


def run_steps(case: Case, kind: str, steps: list[Problem]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Losses and gradients of consecutive steps that hand on the queue."""
    state, results = example(kind).state, []
    for step in steps:
        result = case.run(replace(step, state=state))
        state = result.state
        results.append((result.loss, result.gradient))
    return results


@over["cases"]
@over["kinds"]
@pytest.mark.parametrize("bad", BAD, ids=str)
@pytest.mark.parametrize("extent", EXTENTS)
def test_one_bad_batch_affects_one_step(case: Case, kind: str, bad: float, extent: str) -> None:
    """Later steps are those of a run in which the rows with non-finite logits were ignored."""
    clean = [example(kind, n=6, seed=seed) for seed in range(4)]
    bad_step = spoil(clean[1], bad, extent)
    bad_rows = ~bad_step.logits.isfinite().all(1)
    ignored = bad_step.targets.clone()
    ignored[bad_rows] = IGNORE
    ignored_step = replace(bad_step, targets=ignored)

    spoiled = run_steps(case, kind, [clean[0], bad_step, *clean[2:]])
    expected = run_steps(case, kind, [clean[0], ignored_step, *clean[2:]])

    assert not spoiled[1][0].isfinite()
    assert not spoiled[1][1].isfinite().all()
    assert expected[1][0].isfinite()
    for (loss, gradient), (expected_loss, expected_gradient) in zip(spoiled[2:], expected[2:], strict=True):
        assert torch.equal(loss, expected_loss)
        assert torch.equal(gradient, expected_gradient)
        assert loss.isfinite()


@over["cases"]
@over["kinds"]
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_every_reduction_shows_it(case: Case, kind: str, bad: float) -> None:
    problem = spoil(example(kind), bad, "batch")
    for reduction in ("mean", "sum"):
        assert not case.run(problem, reduction=reduction).loss.isfinite()
    assert not case.run(problem, reduction="none").loss.isfinite().any()


@over["cases"]
def test_other_classes_keep_their_loss(case: Case) -> None:
    """Reduction ``none``: one spoiled column is nan, and valid, so that the others can still be looked at."""
    problem = example("multilabel")
    spoiled = spoil(problem, float("nan"), "element")
    per_class, expected = case.per_class(spoiled), case.per_class(problem)
    assert per_class.loss.isnan().tolist() == [True, False, False]
    assert per_class.valid.all()
    assert torch.equal(per_class.loss[1:], expected.loss[1:])


@over["cases"]
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_a_batch_without_positives_is_no_excuse(case: Case, kind: str) -> None:
    problem = spoil(example(kind, with_queue=False), float("inf"), "row")
    problem = replace(problem, targets=torch.zeros_like(problem.targets))
    assert not case.run(problem).loss.isfinite()


@over["cases"]
@over["kinds"]
def test_stored_rows_are_finite_and_ignored(case: Case, kind: str) -> None:
    problem = spoil(example(kind, n=6, capacity=6), float("nan"), "row")
    state = case.run(problem).state
    assert state.logits.isfinite().all()
    stored = state.targets.reshape(6, -1)
    assert (stored == IGNORE).all(1).sum() == 2  # the spoiled row and the one that was ignored anyway


@over["cases"]
@over["kinds"]
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_ignored_rows_may_hold_anything(case: Case, kind: str, bad: float) -> None:
    """Padding is often garbage: it takes part in nothing, now or later."""
    problem = example(kind)
    row = int((problem.targets.reshape(len(problem.logits), -1) == IGNORE).all(1).nonzero()[0])
    logits = problem.logits.clone()
    logits[row] = bad
    result, expected = case.run(replace(problem, logits=logits)), case.run(problem)
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.gradient, expected.gradient)
    later = replace(problem, logits=problem.logits.roll(1, 0))
    after = case.run(replace(later, state=result.state))
    assert torch.equal(after.loss, case.run(replace(later, state=expected.state)).loss)
    assert after.loss.isfinite()


@over["cases"]
@pytest.mark.parametrize("bad", BAD, ids=str)
def test_a_row_that_is_left_out_of_the_sample_shows(case: Case, bad: float) -> None:
    """Whichever 8 of the 25 rows ``max_pool_size`` keeps."""
    problem = spoil(example("binary"), bad, "row")
    for seed in range(6):
        result = case.run(problem, {"generator": torch.Generator().manual_seed(seed)}, max_pool_size=8)
        assert not result.loss.isfinite()
        assert not result.gradient.isfinite().all()


@over["losses"]
def test_half_precision_overflow(case: Case) -> None:
    """The usual way to get there: a float16 logit that overflowed, for GradScaler to see."""
    problem = example("binary", dtype=torch.float32)
    logits = (problem.logits.half() * 1e6).requires_grad_()
    assert logits.isinf().any()
    loss, state = case.loss.function(logits, problem.targets, problem.state, case.config(problem))
    assert not loss.isfinite()
    assert state.logits.isfinite().all()
    again = case.run(replace(problem, state=state))
    assert again.loss.isfinite()


def test_frozen_queue_keeps_the_old_state() -> None:
    problem = spoil(example("binary"), float("nan"), "batch")
    for case in over["losses"].args[1]:
        assert_same_state(case.run(problem, {"update_queue": False}).state, problem.state)


@over["cases"]
def test_a_class_without_positives_is_valid_with_a_logit_that_is_not_finite(case: Case) -> None:
    """Its loss is then nan, which an invalid class would hide from whoever reads ``valid``."""
    problem = example("multiclass", with_queue=False)
    logits = problem.logits.clone()
    logits[0, 1] = torch.nan
    result = case.per_class(replace(problem, logits=logits, targets=torch.zeros_like(problem.targets)))
    assert result.valid[1:].tolist() == [True, False]
    assert result.loss[1].isnan()

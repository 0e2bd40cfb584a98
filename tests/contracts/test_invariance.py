"""What must change nothing: order, ignored rows, unfilled slots, shifts and scales, where a row came from."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses import init_queue
from tests.contracts.cases import Case, assert_close, example, leaves, over
from tests.parity.reference import pool_of
from tests.registry import RANKING
from tests.strategies import IGNORE, Problem, few_examples, flags, problems, weights

BAD = [0.0, 1.0, -1e4, float("nan"), float("inf"), -float("inf")]


@over["cases"]
@few_examples
@given(data=st.data(), problem=problems(min_rows=2))
def test_permuting_live_rows(case: Case, data: st.DataObject, problem: Problem) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(problem.logits)))))
    result, permuted = case.run(problem), case.run(problem.rows(order))
    assert_close(permuted.loss, result.loss)
    assert_close(permuted.gradient, result.gradient[order])


@over["cases"]
@few_examples
@given(data=st.data(), problem=problems(min_rows=1))
def test_permuting_queue_slots(case: Case, data: st.DataObject, problem: Problem) -> None:
    capacity = len(problem.state.logits)
    order = torch.tensor(data.draw(st.permutations(range(capacity))), dtype=torch.int64)
    rows = {name: leaf[order] for name, leaf in leaves(problem.state).items() if leaf.dim() > 0}
    result, permuted = case.run(problem), case.run(problem.with_queue(**rows))
    assert_close(permuted.loss, result.loss)
    assert_close(permuted.gradient, result.gradient)


@over["cases"]
@few_examples
@given(problem=problems(min_rows=1))
def test_queue_rows_count_like_live_rows(case: Case, problem: Problem) -> None:
    """The same pool as live rows only: the value, and the live rows' gradient, do not know where a row came from."""
    if case.live_numerator:
        case = case.with_options(pos_numerator="pool")
    state, n = problem.state, len(problem.logits)
    joined = Problem(
        torch.cat([problem.logits, state.logits]),
        torch.cat([problem.targets, state.targets]),
        init_queue(0, problem.num_classes, multilabel=problem.multilabel),
        torch.cat([torch.ones(n).bool() if problem.iid_mask is None else problem.iid_mask, state.iid]),
        torch.cat([torch.ones(n) if problem.sample_weight is None else problem.sample_weight, state.sample_weight]),
    )
    result, expected = case.run(problem), case.run(joined)
    assert_close(result.loss, expected.loss)
    assert_close(result.gradient, expected.gradient[:n])


def interleave(data: st.DataObject, problem: Problem) -> tuple[Problem, Tensor]:
    """``problem`` with ignored rows of arbitrary content put in, and where its own rows went."""
    n, extra, num_classes = len(problem.logits), data.draw(st.integers(1, 4)), problem.num_classes
    values = data.draw(st.lists(st.sampled_from(BAD), min_size=extra * num_classes, max_size=extra * num_classes))
    shape = (extra, num_classes) if problem.multilabel else (extra,)
    order = torch.tensor(data.draw(st.permutations(range(n + extra))))
    iid, weight = data.draw(flags(extra)), data.draw(weights(extra))
    padded = Problem(
        torch.cat([problem.logits, torch.tensor(values).reshape(extra, num_classes).to(problem.logits)]),
        torch.cat([problem.targets, torch.full(shape, IGNORE)]),
        problem.state,
        None if problem.iid_mask is None else torch.cat([problem.iid_mask, iid]),
        None if problem.sample_weight is None else torch.cat([problem.sample_weight, weight]),
    )
    return padded.rows(order), order.argsort()[:n]


@over["cases"]
@few_examples
@given(data=st.data(), problem=problems())
def test_ignored_rows(case: Case, data: st.DataObject, problem: Problem) -> None:
    padded, kept = interleave(data, problem)
    result, expected = case.run(padded), case.run(problem)
    assert_close(result.loss, expected.loss)
    assert_close(result.gradient[kept], expected.gradient)
    ignored = torch.ones(len(padded.logits), dtype=torch.bool)
    ignored[kept] = False
    assert (result.gradient[ignored] == 0).all()


@over["cases"]
@few_examples
@given(data=st.data(), problem=problems("multilabel", min_rows=1))
def test_ignored_elements(case: Case, data: st.DataObject, problem: Problem) -> None:
    """Multi-label targets mask single elements: what their logits hold reaches neither value nor gradient."""
    masked = problem.targets == IGNORE
    garbage = torch.tensor(data.draw(st.sampled_from(BAD)), dtype=problem.logits.dtype)
    result = case.run(replace(problem, logits=torch.where(masked, garbage, problem.logits)))
    expected = case.run(problem)
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.gradient, expected.gradient)
    assert (result.gradient[masked] == 0).all()


@over["cases"]
@few_examples
@given(data=st.data(), problem=problems())
def test_unfilled_slots(case: Case, data: st.DataObject, problem: Problem) -> None:
    """A longer queue with the same rows changes nothing, whatever lies in its unfilled slots."""
    extra, state = data.draw(st.integers(1, 4)), problem.state
    empty = init_queue(extra, problem.num_classes, multilabel=problem.multilabel, dtype=state.logits.dtype)
    garbage = data.draw(st.sampled_from(BAD))
    longer = problem.with_queue(
        logits=torch.cat([torch.full_like(empty.logits, garbage), state.logits]),
        targets=torch.cat([empty.targets, state.targets]),
        iid=torch.cat([empty.iid, state.iid]),
        sample_weight=torch.cat([empty.sample_weight, state.sample_weight]),
    )
    result, expected = case.run(longer), case.run(problem)
    assert_close(result.loss, expected.loss)
    assert_close(result.gradient, expected.gradient)


@over["cases"]
@few_examples
@given(problem=problems(min_rows=1), shift=st.sampled_from([-64.0, 0.5, 3.0, 4096.0]))
def test_shift(case: Case, problem: Problem, shift: float) -> None:
    if not case.loss.shift_invariant:
        return
    shifted = replace(problem, logits=problem.logits + shift).with_queue(logits=problem.state.logits + shift)
    result, expected = case.run(shifted), case.run(problem)
    assert_close(result.loss, expected.loss)
    assert_close(result.gradient, expected.gradient)


@over["cases"]
@few_examples
@given(problem=problems(min_rows=1), factor=st.sampled_from([0.125, 2.0, 1024.0]))
def test_positive_scale(case: Case, problem: Problem, factor: float) -> None:
    """Scores in units of their own spread (``tau_scale``), if they have one, or of the temperature."""
    scaled = replace(problem, logits=problem.logits * factor).with_queue(logits=problem.state.logits * factor)
    cfg = case.config(problem)
    own_units = cfg.tau_scale != "none"
    held = [case.loss.reference.held(pool_of(problem, label), cfg) for label in range(problem.num_classes)]
    if own_units and any(at is not None and at.tau == cfg.temperature for at in held):
        return
    names = [name for name in case.loss.in_score_units if name != "temperature" or not own_units]
    result = case.run(scaled, **{name: getattr(cfg, name) * factor for name in names})
    expected = case.run(problem)
    assert_close(result.loss, expected.loss)
    assert_close(result.gradient * factor, expected.gradient)


# --- one class at a time ----------------------------------------------------------------------------------------------


def binary_problem(problem: Problem, label: int, multilabel: bool) -> Problem:
    """Class ``label`` of a multi-label problem, or of a multi-class problem as one against the rest."""

    def relabel(targets: Tensor) -> Tensor:
        if multilabel:
            return targets[:, label]
        return torch.where(targets == IGNORE, IGNORE, (targets == label).long())

    state = replace(
        problem.state, logits=problem.state.logits[:, [label]], targets=relabel(problem.state.targets).contiguous()
    )
    return replace(problem, logits=problem.logits[:, [label]], targets=relabel(problem.targets), state=state)


@over["cases"]
@few_examples
@given(data=st.data(), kind=st.sampled_from(["multiclass", "multilabel"]))
def test_classes_are_binary_problems(case: Case, data: st.DataObject, kind: str) -> None:
    problem = data.draw(problems(kind, min_rows=1))
    per_class, gradient = case.per_class(problem), case.run(problem, reduction="sum").gradient
    for label in range(problem.num_classes):
        single = binary_problem(problem, label, problem.multilabel)
        expected, result = case.per_class(single), case.run(single, reduction="sum")
        assert_close(per_class.loss[[label]], expected.loss)
        assert_close(gradient[:, [label]], result.gradient)
        assert torch.equal(per_class.valid[[label]], expected.valid)
        assert per_class.diagnostics.keys() == expected.diagnostics.keys()
        for name, value in expected.diagnostics.items():
            assert_close(per_class.diagnostics[name][[label]], value)


# --- rows outside the iid sample --------------------------------------------------------------------------------------

PAUC = RANKING["pauc"]
SHAPED_BY_THE_REFERENCE = ("t_alpha", "t_beta", "tau_eff")


@over["pauc"]
@few_examples
@given(data=st.data(), problem=problems(min_rows=1))
def test_rows_outside_the_iid_sample_shape_no_threshold(case: Case, data: st.DataObject, problem: Problem) -> None:
    """Neither a row with ``iid_mask=False`` in the batch nor one that the queue remembers as such."""
    iid = data.draw(flags(len(problem.logits)))
    problem = replace(problem, iid_mask=iid)
    noise = data.draw(st.sampled_from([-3.0, 2.5, 1e4]))
    elsewhere = replace(problem, logits=torch.where(iid[:, None], problem.logits, problem.logits + noise))
    state = problem.state
    elsewhere = elsewhere.with_queue(logits=torch.where(state.iid[:, None], state.logits, state.logits - noise))
    before, after = case.per_class(problem), case.per_class(elsewhere)
    both = before.valid & after.valid
    for name in SHAPED_BY_THE_REFERENCE:
        assert torch.equal(before.diagnostics[name][both], after.diagnostics[name][both])


def test_the_queue_remembers_the_iid_flag() -> None:
    """Step 1 pushes rows outside the iid sample; in step 2 they take no part in the thresholds."""
    state = init_queue(8, 1, dtype=torch.float64)
    config = PAUC.config(num_classes=1, beta=0.5)
    outside = torch.tensor([[9.0], [8.0]], dtype=torch.float64)
    _, state = PAUC.function(outside, torch.tensor([0, 0]), state, config, iid_mask=torch.tensor([False, False]))
    live = torch.tensor([[0.5], [0.1], [0.2], [0.3], [0.4]], dtype=torch.float64)
    per_class, _ = PAUC.per_class(live, torch.tensor([1, 0, 0, 0, 0]), state, config)
    assert per_class.valid.all()
    assert per_class.diagnostics["t_alpha"].item() == 0.4
    assert per_class.diagnostics["t_beta"].item() == 0.3


@over["cases"]
def test_iid_mask_reaches_those_that_use_it(case: Case) -> None:
    """Ranks, and recall's threshold over all pool scores, count every row."""
    problem = example("multiclass")
    without, everyone = (replace(problem, iid_mask=mask) for mask in (None, torch.ones_like(problem.iid_mask)))
    assert torch.equal(case.run(without).loss, case.run(everyone).loss)
    flipped = replace(problem, iid_mask=~problem.iid_mask).with_queue(iid=~problem.state.iid)
    assert torch.equal(case.run(flipped).loss, case.run(problem).loss) == (not case.loss.uses_iid_mask)

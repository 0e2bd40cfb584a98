"""Purity: arguments stay as they are, the new state is the old one's twin, and nothing else carries over."""

from __future__ import annotations

import itertools

import pytest
import torch

from imbalanced_losses import init_queue
from imbalanced_losses.queue import push
from tests.contracts.cases import Case, assert_same_state, example, leaves, over
from tests.strategies import KINDS, Problem


@over["cases"]
@over["kinds"]
def test_arguments_are_unchanged(case: Case, kind: str) -> None:
    problem = example(kind)
    fields = ("logits", "targets", "iid_mask", "sample_weight")
    tensors = [*(getattr(problem, name) for name in fields), *leaves(problem.state).values()]
    copies, versions = [tensor.clone() for tensor in tensors], [tensor._version for tensor in tensors]
    problem.logits.requires_grad_()
    config = case.config(problem)
    loss, state = case.loss.function(problem.logits, problem.targets, problem.state, config, **problem.extras)
    state.logits.zero_()  # as a shell's buffers are overwritten between forward and backward
    loss.backward()
    assert [tensor._version for tensor in tensors] == versions
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, copies, strict=True))


@over["cases"]
def test_no_hidden_randomness(case: Case) -> None:
    problem, before = example("multiclass"), torch.get_rng_state()
    first, second = case.run(problem), case.run(problem)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.gradient, second.gradient)


@over["losses"]
@over["kinds"]
@pytest.mark.parametrize("queue_dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_new_state_conforms(case: Case, kind: str, queue_dtype: torch.dtype) -> None:
    """Whatever the logits' dtype and however many rows: none, fewer than slots, more than slots."""
    num_classes, multilabel = KINDS[kind]
    # each number of rows and each capacity meets three dtypes or more
    dtypes = itertools.cycle((torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float16))
    for (n, capacity), dtype in zip(itertools.product((0, 1, 14), (0, 1, 5, 40)), dtypes, strict=False):
        problem = example(kind, with_queue=False).rows(torch.arange(n))
        state = init_queue(capacity, num_classes, multilabel=multilabel, dtype=queue_dtype)
        for _ in range(2):
            batch = Problem(problem.logits.to(dtype), problem.targets, state, problem.iid_mask, problem.sample_weight)
            new_state = case.run(batch).state
            assert type(new_state) is type(state)
            for name, leaf in leaves(new_state).items():
                old = leaves(state)[name]
                assert (leaf.shape, leaf.dtype, leaf.device) == (old.shape, old.dtype, old.device)
                assert not leaf.requires_grad
            state = new_state


@over["cases"]
@over["kinds"]
def test_update_queue_false_returns_the_same_state(case: Case, kind: str) -> None:
    problem = example(kind)
    frozen, pushed = case.run(problem, {"update_queue": False}), case.run(problem)
    assert_same_state(frozen.state, problem.state)
    assert torch.equal(frozen.loss, pushed.loss)
    assert torch.equal(frozen.gradient, pushed.gradient)
    assert not torch.equal(pushed.state.logits, problem.state.logits)


@over["cases"]
@over["kinds"]
def test_live_rows_are_pushed(case: Case, kind: str) -> None:
    """In order, oldest first from the cursor on; a batch longer than the queue leaves its last rows."""
    for capacity in (10, 16):
        problem = example(kind, capacity=capacity)
        state, n = case.run(problem).state, min(14, capacity)
        pushed = {"logits": problem.logits, "targets": problem.targets, "iid": problem.iid_mask}
        for name, rows in {**pushed, "sample_weight": problem.sample_weight}.items():
            in_order = leaves(state)[name].roll(-int(state.cursor), 0)
            assert torch.equal(in_order[-n:], rows[-n:]), name


@over["cases"]
def test_left_out_arguments_are_iid_rows_of_weight_one(case: Case) -> None:
    problem = example("binary", capacity=32)
    plain = Problem(problem.logits, problem.targets, problem.state, None, None)
    state = case.run(plain).state
    assert state.iid[24:32].all()
    assert (state.sample_weight[24:32] == 1).all()


@over["cases"]
@over["kinds"]
def test_loss_is_of_live_rows_and_the_old_queue(case: Case, kind: str) -> None:
    """Two steps equal one step on a hand-made queue: nothing but the state carries over."""
    problem = example(kind, capacity=32)
    first = case.run(problem)
    second = Problem(
        problem.logits.roll(1, 0) + 0.1, problem.targets, first.state, problem.iid_mask, problem.sample_weight
    )
    by_hand = push(problem.state, problem.logits, problem.targets, problem.iid_mask, problem.sample_weight)
    expected = Problem(second.logits, second.targets, by_hand, second.iid_mask, second.sample_weight)
    assert torch.equal(case.run(second).loss, case.run(expected).loss)
    assert not torch.equal(case.run(second).loss, first.loss)


@over["cases"]
def test_per_class_returns_the_same_state(case: Case) -> None:
    problem = example("multilabel")
    config = case.config(problem)
    _, state = case.loss.per_class(problem.logits, problem.targets, problem.state, config, **problem.extras)
    assert_same_state(state, case.run(problem).state)


@over["cases"]
def test_names_of_the_diagnostics(case: Case) -> None:
    per_class = case.per_class(example("multiclass"))
    assert set(per_class.diagnostics) == case.loss.diagnostics | case.variant.diagnostics
    for value in per_class.diagnostics.values():
        assert value.shape == (3,)
        assert not value.requires_grad

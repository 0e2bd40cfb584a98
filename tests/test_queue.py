"""The ring buffer against ``collections.deque(maxlen=Q)``, and as a pure function."""

from __future__ import annotations

from collections import deque
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree

from imbalanced_losses import QueueState, init_queue, reset_queue, stack_states, unstack_states
from imbalanced_losses.queue import push
from tests.transforms.cases import assert_conforms, assert_same_state

NUM_CLASSES = 3

Rows = tuple[Tensor, Tensor, Tensor, Tensor]


def make_rows(n: int, seed: int = 0, *, multilabel: bool = False, dtype: torch.dtype = torch.float32) -> Rows:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, NUM_CLASSES) if multilabel else (n,)
    return (
        torch.randn(n, NUM_CLASSES, generator=generator, dtype=dtype),
        torch.randint(0, 2 if multilabel else NUM_CLASSES, shape, generator=generator),
        torch.rand(n, generator=generator) < 0.7,
        torch.rand(n, generator=generator),
    )


def oldest_first(state: QueueState) -> list[Tensor]:
    """Logits, targets, iid flags and weights with the slot that goes next in front."""
    fields = (state.logits, state.targets, state.iid, state.sample_weight)
    return [rows.roll(-int(state.cursor), 0) for rows in fields]


# --- against a deque ------------------------------------------------------------------------------------------------

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
LOGIT = st.one_of(FINITE, FINITE, FINITE, st.sampled_from([torch.inf, -torch.inf, torch.nan]))


class QueueMachine(RuleBasedStateMachine):
    """Whatever is pushed, the queue holds what ``deque(maxlen=Q)`` holds, oldest to newest."""

    @initialize(capacity=st.integers(0, 4), multilabel=st.booleans(), ignore_index=st.sampled_from([-100, -1, 255]))
    def start(self, capacity: int, multilabel: bool, ignore_index: int) -> None:
        self.multilabel, self.ignore_index = multilabel, ignore_index
        self.state = init_queue(capacity, NUM_CLASSES, multilabel=multilabel, ignore_index=ignore_index)
        self.model: deque[dict[str, Any]] = deque(maxlen=capacity)

    @rule(data=st.data(), n=st.integers(0, 9))
    def push(self, data: st.DataObject, n: int) -> None:
        label = (
            st.sampled_from([0, 1, self.ignore_index])
            if self.multilabel
            else st.sampled_from([0, 1, 2, self.ignore_index])
        )
        target = st.lists(label, min_size=NUM_CLASSES, max_size=NUM_CLASSES) if self.multilabel else label
        row = st.fixed_dictionaries(
            {
                "logits": st.lists(LOGIT, min_size=NUM_CLASSES, max_size=NUM_CLASSES),
                "target": target,
                "iid": st.booleans(),
                "weight": st.floats(0, 100, width=32),
            }
        )
        rows = data.draw(st.lists(row, min_size=n, max_size=n))
        self.model.extend(rows)
        shape = (n, NUM_CLASSES) if self.multilabel else (n,)
        before = _pytree.tree_map(torch.clone, self.state)
        old = self.state
        self.state = push(
            old,
            torch.tensor([row["logits"] for row in rows], dtype=torch.float32).reshape(n, NUM_CLASSES),
            torch.tensor([row["target"] for row in rows], dtype=torch.int64).reshape(shape),
            torch.tensor([row["iid"] for row in rows], dtype=torch.bool),
            torch.tensor([row["weight"] for row in rows], dtype=torch.float32),
        )
        assert_same_state(old, before)
        assert_conforms(self.state, old)

    @rule()
    def reset(self) -> None:
        old, self.state = self.state, reset_queue(self.state)
        assert_conforms(self.state, old)
        self.model.clear()

    def expected_targets(self, row: dict[str, Any]) -> list[int]:
        """One target, or one a class; a row that overflowed is ignored as a whole."""
        targets = row["target"] if self.multilabel else [row["target"]]
        overflowed = not torch.tensor(row["logits"]).isfinite().all()
        return [self.ignore_index if overflowed else target for target in targets]

    @invariant()
    def holds_what_the_deque_holds(self) -> None:
        logits, targets, iid, weight = oldest_first(self.state)
        assert logits.isfinite().all()
        free = len(targets) - len(self.model)
        assert (targets[:free] == self.ignore_index).all()
        for slot, row in enumerate(self.model, start=free):
            assert targets[slot].reshape(-1).tolist() == self.expected_targets(row)
            if (
                targets[slot] != self.ignore_index
            ).any():  # nothing is promised of what an ignored row's other fields say
                torch.testing.assert_close(logits[slot], torch.tensor(row["logits"]), rtol=0, atol=0)
                assert iid[slot].item() == row["iid"]
                assert weight[slot].item() == row["weight"]


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=40, stateful_step_count=10, deadline=None)


# --- init and reset -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("queue_size", [0, 1, 5])
def test_init_queue(queue_size: int, dtype: torch.dtype, multilabel: bool) -> None:
    state = init_queue(queue_size, NUM_CLASSES, multilabel=multilabel, ignore_index=-1, dtype=dtype)
    assert state.logits.shape == (queue_size, NUM_CLASSES)
    assert state.logits.dtype == dtype
    assert state.targets.shape == ((queue_size, NUM_CLASSES) if multilabel else (queue_size,))
    assert (state.targets == -1).all()
    assert state.targets.dtype == state.cursor.dtype == state.ignore_index.dtype == torch.int64
    assert state.iid.shape == state.sample_weight.shape == (queue_size,)
    assert state.iid.dtype == torch.bool
    assert state.cursor.shape == state.ignore_index.shape == ()
    assert state.ignore_index == -1


def test_init_queue_defaults_and_device() -> None:
    assert_same_state(
        init_queue(4, 2), init_queue(4, 2, multilabel=False, ignore_index=-100, dtype=torch.float32, device=None)
    )
    assert all(leaf.is_meta for leaf in _pytree.tree_leaves(init_queue(4, 2, device="meta")))
    with pytest.raises(TypeError):
        init_queue(4, 2, True)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"queue_size": -1}, ValueError, "queue_size.*-1"),
        ({"dtype": "float32"}, TypeError, "expected a floating-point queue dtype, got 'float32'"),
        ({"ignore_index": 2**63}, ValueError, "expected ignore_index to be at most"),
        ({"num_classes": 0}, ValueError, "num_classes.*0"),
        ({"queue_size": 2.0}, TypeError, r"queue_size.*2\.0"),
        ({"num_classes": True}, TypeError, "num_classes.*True"),
        ({"dtype": torch.int64}, (TypeError, ValueError), "int64"),
    ],
)
def test_init_queue_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    settings = {"queue_size": 4, "num_classes": 2, **arguments}
    dtype = settings.pop("dtype", torch.float32)
    with pytest.raises(error, match=message):
        init_queue(**settings, dtype=dtype)


@pytest.mark.parametrize("multilabel", [False, True])
def test_reset_gives_the_state_of_init(multilabel: bool) -> None:
    empty = init_queue(4, NUM_CLASSES, multilabel=multilabel, ignore_index=7, dtype=torch.float64)
    full = push(empty, *make_rows(6, multilabel=multilabel))
    assert (full.targets != empty.targets).any()
    assert_same_state(reset_queue(full), empty)
    assert_same_state(reset_queue(full), reset_queue(reset_queue(full)))


def test_reset_shares_no_memory_with_the_old_state() -> None:
    """A shell copies one into the buffers of the other."""
    full = push(init_queue(4, NUM_CLASSES), *make_rows(6))
    empty = reset_queue(full)
    pointers = {leaf.data_ptr() for leaf in _pytree.tree_leaves(full)}
    assert not pointers & {leaf.data_ptr() for leaf in _pytree.tree_leaves(empty)}


# --- push -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("n", [0, 1, 4, 5, 6, 17])
def test_two_pushes_are_one_push_of_both(n: int, multilabel: bool) -> None:
    empty = init_queue(5, NUM_CLASSES, multilabel=multilabel)
    first, second = make_rows(3, seed=1, multilabel=multilabel), make_rows(n, seed=2, multilabel=multilabel)
    both = [torch.cat(pair) for pair in zip(first, second, strict=True)]
    twice, once = push(push(empty, *first), *second), push(empty, *both)
    torch.testing.assert_close(oldest_first(twice), oldest_first(once), rtol=0, atol=0)


def test_long_batch_leaves_its_last_rows() -> None:
    rows = make_rows(13)
    stored = oldest_first(push(push(init_queue(4, NUM_CLASSES), *make_rows(3, seed=1)), *rows))
    torch.testing.assert_close(stored, [part[-4:] for part in rows], rtol=0, atol=0)


@pytest.mark.parametrize("queue_dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_stored_in_the_queues_dtype(dtype: torch.dtype, queue_dtype: torch.dtype) -> None:
    state = init_queue(4, NUM_CLASSES, dtype=queue_dtype)
    rows = make_rows(4, dtype=dtype)
    new = push(state, *rows)
    assert_conforms(new, state)
    assert torch.equal(oldest_first(new)[0], rows[0].to(queue_dtype))


def test_row_that_overflows_in_the_queues_dtype_is_ignored() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0], [1.0, 1e6, 3.0]])
    new = push(init_queue(2, 3, dtype=torch.float16), logits, torch.tensor([0, 1]), *make_rows(2)[2:])
    assert new.targets.tolist() == [0, -100]
    assert new.logits.isfinite().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_with_a_non_finite_logit_are_ignored_as_a_whole(bad: float) -> None:
    logits, labels, iid, weight = make_rows(3, multilabel=True)
    logits[1, 2] = bad
    new = push(init_queue(3, NUM_CLASSES, multilabel=True), logits, labels, iid, weight)
    assert (new.targets[1] == -100).all()
    assert new.logits.isfinite().all()
    assert torch.equal(new.targets[[0, 2]], labels[[0, 2]])


def test_stored_rows_are_detached_and_copied() -> None:
    logits, targets, iid, weight = make_rows(4)
    logits.requires_grad_()
    new = push(init_queue(4, NUM_CLASSES), logits, targets, iid, weight.requires_grad_())
    assert not any(leaf.requires_grad for leaf in _pytree.tree_leaves(new))
    kept = _pytree.tree_map(torch.clone, new)
    with torch.no_grad():
        for rows in (logits, targets, iid, weight):
            rows.zero_()
    assert_same_state(new, kept)


def test_queue_of_size_zero_keeps_nothing() -> None:
    state = init_queue(0, NUM_CLASSES)
    new = push(state, *make_rows(5))
    assert_conforms(new, state)
    assert new.cursor == 0


def test_fields_own_their_memory() -> None:
    """A field that is a view would keep a larger tensor alive, and change with it."""
    state = push(init_queue(5, NUM_CLASSES), *make_rows(3, seed=0))
    fields = (state.logits, state.targets, state.iid, state.sample_weight, state.cursor)
    assert all(field.untyped_storage().nbytes() == field.nbytes for field in fields)


def test_cursor_stays_inside_the_ring() -> None:
    """It grows with neither the steps nor the rows, so that it never overflows."""
    state = init_queue(5, NUM_CLASSES)
    for step in range(20):
        state = push(state, *make_rows(step % 7, seed=step))
        assert 0 <= int(state.cursor) < 5


# --- transforms -----------------------------------------------------------------------------------------------------

in_dims_of_push = pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)], ids=str)


@pytest.mark.parametrize("multilabel", [False, True])
@in_dims_of_push
def test_vmap_equals_loop(in_dims: tuple[int | None, int | None], multilabel: bool) -> None:
    states = [
        push(init_queue(5, NUM_CLASSES, multilabel=multilabel), *make_rows(3 + i, seed=i, multilabel=multilabel))
        for i in range(3)
    ]
    batches = [make_rows(4, seed=10 + i, multilabel=multilabel) for i in range(3)]
    if in_dims[0] is None:
        states = states[:1] * 3
    if in_dims[1] is None:
        batches = batches[:1] * 3
    state = states[0] if in_dims[0] is None else stack_states(states)
    rows = batches[0] if in_dims[1] is None else tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
    mapped = torch.func.vmap(lambda state, rows: push(state, *rows), in_dims=in_dims)(state, rows)
    loop = [push(state, *batch) for state, batch in zip(states, batches, strict=True)]
    for actual, expected in zip(unstack_states(mapped), loop, strict=True):
        assert_same_state(actual, expected)


def test_vmap_reset_equals_loop() -> None:
    states = [push(init_queue(5, NUM_CLASSES, ignore_index=-1 - i), *make_rows(7, seed=i)) for i in range(3)]
    mapped = torch.func.vmap(reset_queue)(stack_states(states))
    for actual, expected in zip(unstack_states(mapped), map(reset_queue, states), strict=True):
        assert_same_state(actual, expected)


@pytest.mark.parametrize("n", [0, 3, 9])
def test_one_compilation_serves_a_ring_that_wraps(n: int) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(push, fullgraph=True, backend=counter)
    eager_state = compiled_state = init_queue(7, NUM_CLASSES)
    for step in range(8):
        rows = make_rows(n, seed=step)
        eager_state, compiled_state = push(eager_state, *rows), compiled(compiled_state, *rows)
        assert_same_state(compiled_state, eager_state)
    assert counter.frame_count <= 1

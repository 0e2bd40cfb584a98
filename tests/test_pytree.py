"""States are frozen dataclasses that torch's and optree's tree functions look through."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.utils import _cxx_pytree, _pytree

from imbalanced_losses import PerClass, QueueState, init_queue, stack_states, unstack_states
from imbalanced_losses.pytree import state_dataclass
from imbalanced_losses.queue import push
from imbalanced_losses.schedule import ScheduleConfig, ScheduleState, init_schedule


@state_dataclass
class Pair:
    """A state of the tests' own."""

    left: Tensor
    right: Tensor


@state_dataclass
class Nested:
    """A state that holds a state and a dict."""

    inner: Pair
    extras: dict[str, Tensor]


def a_pair(seed: int) -> Pair:
    return Pair(left=torch.full((2,), float(seed)), right=torch.tensor(seed))


def a_nested(seed: int) -> Nested:
    return Nested(inner=a_pair(seed), extras={"b": torch.full((3,), seed + 0.5), "a": torch.tensor(-1.0 * seed)})


def a_queue(seed: int) -> QueueState:
    rows = 3 + seed
    logits = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    ids = torch.arange(rows) % 2
    return push(init_queue(4, 2), logits, ids, ids == 0, torch.linspace(0.5, 1.5, rows))


def a_per_class(seed: int) -> PerClass:
    return PerClass(
        loss=torch.tensor([0.5 + seed, torch.nan]),
        valid=torch.tensor([True, False]),
        diagnostics={"t_beta": torch.tensor([1.0, 2.0 + seed]), "t_alpha": torch.tensor([0.0, 1.0 * seed])},
    )


def a_schedule(seed: int) -> ScheduleState:
    state = init_schedule(ScheduleConfig(warmup_epochs=2))
    leaves, structure = _pytree.tree_flatten(state)
    return _pytree.tree_unflatten([leaf + seed for leaf in leaves], structure)


STATES: list[Callable[[int], Any]] = [a_pair, a_nested, a_queue, a_per_class, a_schedule]

all_states = pytest.mark.parametrize("make", STATES, ids=lambda make: make.__name__)


def leaves_of(state: Any) -> list[Tensor]:
    """The tensors of a state in the order of its fields, found without any pytree library."""
    if isinstance(state, Tensor):
        return [state]
    if isinstance(state, dict):
        return [state[key] for key in sorted(state)]
    return [leaf for field in dataclasses.fields(state) for leaf in leaves_of(getattr(state, field.name))]


def assert_same(actual: Any, expected: Any) -> None:
    """Equal bit for bit in class, dtype and values, nan included."""
    assert type(actual) is type(expected)
    torch.testing.assert_close(leaves_of(actual), leaves_of(expected), rtol=0, atol=0, equal_nan=True)


# --- registration ---------------------------------------------------------------------------------------------------

TREE_MAPS: dict[str, Callable[..., Any]] = {
    "optree": optree.tree_map,
    "optree, torch namespace": lambda f, *trees: optree.tree_map(f, *trees, namespace="torch"),
    "optree, own namespace": lambda f, *trees: optree.tree_map(f, *trees, namespace="imbalanced_losses"),
    "torch": _pytree.tree_map,
    "torch C++": _cxx_pytree.tree_map,
}

every_tree_map = pytest.mark.parametrize("tree_map", TREE_MAPS.values(), ids=TREE_MAPS.keys())


@all_states
@every_tree_map
def test_tree_map_reaches_every_tensor(make: Callable[[int], Any], tree_map: Callable[..., Any]) -> None:
    state = make(1)
    mapped = tree_map(lambda leaf: leaf.double() + 1, state)
    assert type(mapped) is type(state)
    expected = [leaf.double() + 1 for leaf in leaves_of(state)]
    torch.testing.assert_close(leaves_of(mapped), expected, rtol=0, atol=0, equal_nan=True)


@all_states
@every_tree_map
def test_tree_map_over_two_states(make: Callable[[int], Any], tree_map: Callable[..., Any]) -> None:
    first, second = make(1), make(2)
    mapped = tree_map(lambda a, b: a.double() - b.double(), first, second)
    expected = [a.double() - b.double() for a, b in zip(leaves_of(first), leaves_of(second), strict=True)]
    torch.testing.assert_close(leaves_of(mapped), expected, rtol=0, atol=0, equal_nan=True)


@all_states
def test_flatten_unflatten_round_trip(make: Callable[[int], Any]) -> None:
    state = make(1)
    leaves, structure = _pytree.tree_flatten(state)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    assert_same(_pytree.tree_unflatten(leaves, structure), state)
    leaves, structure = optree.tree_flatten(state)
    assert all(isinstance(leaf, Tensor) for leaf in leaves)
    assert_same(optree.tree_unflatten(structure, leaves), state)


@all_states
def test_structure_is_the_same_for_equal_states_and_differs_between_classes(make: Callable[[int], Any]) -> None:
    assert _pytree.tree_structure(make(0)) == _pytree.tree_structure(make(1))
    assert optree.tree_structure(make(0)) == optree.tree_structure(make(1))
    other = a_pair(0) if make is not a_pair else a_nested(0)
    assert _pytree.tree_structure(make(0)) != _pytree.tree_structure(other)
    assert optree.tree_structure(make(0)) != optree.tree_structure(other)


def test_key_paths_name_the_fields() -> None:
    paths = [_pytree.keystr(path) for path, _ in _pytree.tree_leaves_with_path(a_queue(0))]
    names = [path.strip(".[']") for path in paths]  # torch 2.8 shows a field as an item
    assert names == [field.name for field in dataclasses.fields(QueueState)]
    assert [str(path[0]) for path in optree.tree_paths(a_queue(0))] == [f.name for f in dataclasses.fields(QueueState)]


def test_fields_of_the_public_states() -> None:
    assert {field.name for field in dataclasses.fields(PerClass)} == {"loss", "valid", "diagnostics"}
    assert {field.name for field in dataclasses.fields(ScheduleState)} == {"epoch", "step", "switch_step"}
    queue = {"logits", "targets", "iid", "sample_weight", "cursor", "ignore_index"}
    assert {field.name for field in dataclasses.fields(QueueState)} == queue


# --- a frozen dataclass ---------------------------------------------------------------------------------------------


@all_states
def test_states_are_frozen_and_have_no_other_attributes(make: Callable[[int], Any]) -> None:
    state = make(1)
    name = dataclasses.fields(state)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(state, name, torch.zeros(()))
    with pytest.raises((AttributeError, TypeError)):  # a new name: slots and frozen both refuse it
        state.something_else = 1
    assert not hasattr(state, "__dict__")


@all_states
def test_states_are_keyword_only_and_compare_by_identity(make: Callable[[int], Any]) -> None:
    state = make(1)
    values = [getattr(state, field.name) for field in dataclasses.fields(state)]
    with pytest.raises(TypeError):
        type(state)(*values)
    assert state == state  # comparing the fields would be ambiguous, and raise
    assert state != make(1)
    assert len({state, make(1)}) == 2


@all_states
def test_replace_copy_and_pickle(make: Callable[[int], Any]) -> None:
    state = make(1)
    assert_same(dataclasses.replace(state), state)
    assert_same(copy.deepcopy(state), state)
    if make in (a_queue, a_per_class, a_schedule):
        assert_same(pickle.loads(pickle.dumps(state)), state)


@all_states
def test_state_passes_through_vmap_and_compile(make: Callable[[int], Any]) -> None:
    def shifted(state: Any) -> Any:
        return _pytree.tree_map(lambda leaf: leaf.double() + 1, state)

    stacked = stack_states([make(1), make(2)])
    assert_same(torch.func.vmap(shifted)(stacked), shifted(stacked))
    assert_same(torch.compile(shifted, fullgraph=True, backend="eager")(stacked), shifted(stacked))


# --- ensembles ------------------------------------------------------------------------------------------------------


@all_states
@pytest.mark.parametrize("size", [1, 3])
def test_stack_unstack_round_trip(make: Callable[[int], Any], size: int) -> None:
    states = [make(seed) for seed in range(size)]
    stacked = stack_states(states)
    assert type(stacked) is type(states[0])
    for leaf, parts in zip(leaves_of(stacked), zip(*map(leaves_of, states), strict=True), strict=True):
        assert leaf.shape == (size, *parts[0].shape)
        assert leaf.dtype == parts[0].dtype
    single = unstack_states(stacked)
    assert len(single) == size
    for actual, expected in zip(single, states, strict=True):
        assert_same(actual, expected)


def test_stack_takes_any_sequence() -> None:
    assert_same(stack_states((a_pair(1), a_pair(2))), stack_states([a_pair(1), a_pair(2)]))


def test_stack_copies() -> None:
    states = [a_pair(0), a_pair(1)]
    stack_states(states).left.fill_(9)
    assert_same(states[0], a_pair(0))


def test_stack_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at least one state.*empty"):
        stack_states([])


def test_stack_of_different_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="expected states of one structure, got 2"):
        stack_states([a_pair(0), a_queue(0)])


def test_stack_of_different_diagnostics_is_refused() -> None:
    bare = dataclasses.replace(a_per_class(0), diagnostics={})
    with pytest.raises(ValueError, match="expected states of one structure, got 2"):
        stack_states([a_per_class(0), bare])


@pytest.mark.parametrize(
    "other",
    [init_queue(5, 2), init_queue(4, 3), init_queue(4, 2, multilabel=True), init_queue(4, 2, dtype=torch.float64)],
    ids=["queue size", "classes", "multilabel", "dtype"],
)
def test_stack_of_different_shapes_or_dtypes_is_refused(other: QueueState) -> None:
    """Promoting the dtype silently would give an ensemble whose members are no longer the states put in."""
    with pytest.raises((ValueError, RuntimeError)):
        stack_states([init_queue(4, 2), other])

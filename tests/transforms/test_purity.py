"""No data is read, no argument is changed, no random number is drawn: meta tensors, dispatch counts, versions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from imbalanced_losses import QueueState, init_queue, reset_queue, stack_states
from imbalanced_losses.queue import push
from tests.reads_data import ReadsData
from tests.transforms.cases import CASES, N_ROWS, ONE_PER_LOSS, QUEUE_SIZE, Case, Inputs

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def forward(case: Case, inputs: Inputs, *, per_class: bool = False, **changes: Any) -> tuple[Any, Any]:
    function = case.loss.per_class if per_class else case.loss.function
    return function(
        inputs.logits,
        inputs.targets,
        inputs.state,
        case.config(**changes),
        temperature=inputs.temperature,
        iid_mask=inputs.iid_mask,
        sample_weight=inputs.sample_weight,
    )


def map_inputs(inputs: Inputs, change: Any) -> Inputs:
    return Inputs(**{name: _pytree.tree_map(change, getattr(inputs, name)) for name in Inputs.__dataclass_fields__})


def leaves_of(inputs: Inputs) -> list[Tensor]:
    return [leaf for name in Inputs.__dataclass_fields__ for leaf in _pytree.tree_leaves(getattr(inputs, name))]


# --- meta tensors ---------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_forward_and_backward_on_meta_tensors(case: Case, reduction: str, dtype: torch.dtype) -> None:
    """Meta tensors have no data to read; what runs on them depends on shapes alone."""
    inputs = map_inputs(case.inputs(dtype=torch.float32), lambda leaf: leaf.to("meta"))
    logits = inputs.logits.to(dtype).requires_grad_()
    inputs = Inputs(**{**vars(inputs), "logits": logits})
    loss, new_state = forward(case, inputs, reduction=reduction)
    assert loss.is_meta
    assert loss.dtype == torch.float32
    assert loss.shape == ((case.num_classes,) if reduction == "none" else ())
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.is_meta
    assert (logits.grad.shape, logits.grad.dtype) == (logits.shape, dtype)
    for new, old in zip(_pytree.tree_leaves(new_state), _pytree.tree_leaves(inputs.state), strict=True):
        assert (new.device, new.shape, new.dtype) == (old.device, old.shape, old.dtype)


@every_case
@pytest.mark.parametrize("n_rows", [0, N_ROWS, QUEUE_SIZE + 3])
def test_meta_with_defaults(case: Case, n_rows: int) -> None:
    """A Python temperature and no masks make constants, which must be made on the inputs' device."""
    shape = (n_rows, case.num_classes)
    logits = torch.empty(shape, device="meta", requires_grad=True)
    targets = torch.empty(shape if case.multilabel else (n_rows,), dtype=torch.int64, device="meta")
    for queue_size in (0, QUEUE_SIZE):
        state = init_queue(queue_size, case.num_classes, multilabel=case.multilabel, device="meta")
        result, new_state = case.loss.per_class(logits, targets, state, case.config())
        assert all(leaf.is_meta for leaf in _pytree.tree_leaves((result, new_state, reset_queue(new_state))))
        torch.autograd.grad(result.loss.sum(), logits)


@pytest.mark.parametrize("case", ONE_PER_LOSS, ids=str)
def test_meta_with_max_pool_size(case: Case) -> None:
    inputs = map_inputs(case.inputs(dtype=torch.float32), lambda leaf: leaf.to("meta"))
    logits = inputs.logits.requires_grad_()
    loss, _ = forward(case, inputs, max_pool_size=9)
    loss.backward()
    assert logits.grad is not None


def test_push_on_meta_tensors() -> None:
    state = init_queue(4, 2, device="meta")
    rows = (torch.empty(6, 2), torch.empty(6, dtype=torch.int64), torch.empty(6, dtype=torch.bool), torch.empty(6))
    new = push(state, *(part.to("meta") for part in rows))
    assert all(leaf.is_meta for leaf in _pytree.tree_leaves(new))


# --- dispatch -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read",
    [
        lambda t: t.sum().item(),
        lambda t: bool(t.any()),
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: torch.equal(t, t),
        lambda t: t.masked_select(t > 0),
        lambda t: t.unique(),
        lambda t: torch.zeros(3).index_put((t > 0,), torch.ones(())),
    ],
)
def test_the_counter_sees_reads(read: Any) -> None:
    with ReadsData() as counter:
        read(torch.tensor([1.0, 0.0, 2.0]))
    assert counter.calls


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Switch off the dispatch that reads data: on the CPU, where it is free, some operators are spared by a look."""
    monkeypatch.setattr("imbalanced_losses.dispatch._is_host_tensor", lambda _: False)


@every_case
def test_the_cpu_reads_counts_only(case: Case) -> None:
    """Whether all logits are finite and all classes valid; which rows are positives or in the band, and how many."""
    inputs = case.inputs()
    inputs.logits.requires_grad_()
    with ReadsData() as counter:
        forward(case, inputs)[0].backward()
    names = [name.removeprefix("aten.").partition(".")[0] for name in counter.calls]
    assert set(names) <= {"_local_scalar_dense", "masked_select", "nonzero"}
    assert names.count("nonzero") + names.count("masked_select") <= 3
    assert len(counter.calls) <= 15


@pytest.mark.usefixtures("as_on_an_accelerator")
@every_case
def test_no_transform_reads_data(case: Case) -> None:
    """On the CPU the kernels do, which get what no transform wraps."""
    inputs = case.inputs()
    logits, states = torch.stack([inputs.logits] * 2), stack_states([inputs.state] * 2)

    def loss(logits: Tensor, state: QueueState) -> Tensor:
        return case.call(logits, inputs.targets, state, inputs.temperature)[0].sum()

    with ReadsData() as counter:
        torch.func.vmap(torch.func.grad(loss))(logits, states)
        torch.func.grad(loss)(inputs.logits, inputs.state)
    assert counter.calls == []
    assert counter.total > 10


@pytest.mark.usefixtures("as_on_an_accelerator")
@every_case
def test_no_operator_reads_data_in_eager_mode(case: Case) -> None:
    inputs = case.inputs()
    logits = inputs.logits.requires_grad_()
    with ReadsData() as counter:
        result, _ = forward(case, inputs, per_class=True)
        forward(case, inputs)[0].backward(retain_graph=False)
        reset_queue(inputs.state)
    assert counter.calls == []
    assert counter.total > 10
    assert logits.grad is not None
    assert result.valid.all()


@pytest.mark.usefixtures("as_on_an_accelerator")
@pytest.mark.parametrize("case", ONE_PER_LOSS, ids=str)
def test_no_operator_reads_data_when_subsampling(case: Case) -> None:
    inputs = case.inputs()
    inputs.logits.requires_grad_()
    with ReadsData() as counter:
        forward(case, inputs, max_pool_size=9)[0].backward()
    assert counter.calls == []


@pytest.mark.usefixtures("as_on_an_accelerator")
@every_case
def test_the_operators_do_not_depend_on_the_data(case: Case) -> None:
    """The same list of operators for a batch with everything, with nothing valid, and with overflowed logits."""

    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.names.append(str(func))
            return func(*args, **(kwargs or {}))

    inputs = case.inputs()
    variants = [
        {},
        {"targets": torch.full_like(inputs.targets, -100)},
        {"targets": torch.zeros_like(inputs.targets)},
        {"targets": torch.ones_like(inputs.targets)},
        {"logits": torch.full_like(inputs.logits, torch.inf)},
        {"logits": torch.zeros_like(inputs.logits)},
    ]
    traces = []
    for variant in variants:
        changed = Inputs(**{**vars(inputs), **variant})
        changed = Inputs(**{**vars(changed), "logits": changed.logits.detach().clone().requires_grad_()})
        with Names() as trace:
            forward(case, changed)[0].backward()
        traces.append(trace.names)
    assert all(trace == traces[0] for trace in traces)


# --- purity ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unchanged(inputs: Inputs) -> Iterator[None]:
    """The arguments have the values and the version counters that they came with."""
    leaves = leaves_of(inputs)
    before = [(leaf.detach().clone(), leaf._version) for leaf in leaves]
    yield
    for leaf, (value, version) in zip(leaves, before, strict=True):
        assert leaf._version == version
        torch.testing.assert_close(leaf.detach(), value, rtol=0, atol=0, equal_nan=True)


@every_case
def test_arguments_are_not_changed(case: Case) -> None:
    inputs = case.inputs()
    inputs.logits.requires_grad_()
    with unchanged(inputs):
        loss, state = forward(case, inputs)
        loss.backward()
        reset_queue(state)


@every_case
def test_changing_arguments_after_the_call_changes_nothing(case: Case) -> None:
    """The pool is a copy: a queue that is overwritten before the backward does no harm, and a stored row stays."""
    inputs, same = case.inputs(dtype=torch.float32), case.inputs(dtype=torch.float32)
    inputs.logits.requires_grad_()
    same.logits.requires_grad_()
    loss, state = forward(case, inputs)
    expected_loss, expected_state = forward(case, same)
    with torch.no_grad():
        for leaf in leaves_of(inputs):
            leaf.zero_()
    loss.backward()
    expected_loss.backward()
    torch.testing.assert_close(inputs.logits.grad, same.logits.grad, rtol=0, atol=0)
    torch.testing.assert_close(_pytree.tree_leaves(state)[:4], _pytree.tree_leaves(expected_state)[:4], rtol=0, atol=0)


@every_case
def test_same_arguments_same_result_and_no_randomness(case: Case) -> None:
    inputs = case.inputs()
    before = torch.get_rng_state()
    first, second = forward(case, inputs), forward(case, inputs)
    torch.testing.assert_close(_pytree.tree_leaves(first), _pytree.tree_leaves(second), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", ONE_PER_LOSS, ids=str)
def test_subsampling_draws_from_the_generator_alone(case: Case) -> None:
    inputs = case.inputs()
    config = case.config(max_pool_size=9)

    def subsampled(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        loss: Tensor = case.loss.function(
            inputs.logits, inputs.targets, inputs.state, config, temperature=0.5, generator=generator
        )[0]
        return loss

    before = torch.get_rng_state()
    losses = [subsampled(seed) for seed in range(8)]
    assert torch.equal(torch.stack(losses), torch.stack([subsampled(seed) for seed in range(8)]))
    assert len(set(map(float, losses))) > 1
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("case", ONE_PER_LOSS, ids=str)
@pytest.mark.parametrize("randomness", ["same", "different"])
def test_vmap_of_subsampling(case: Case, randomness: str) -> None:
    """``vmap`` asks how its members shall draw; both answers must work."""
    inputs = case.inputs()

    def subsampled(temperature: Tensor) -> Tensor:
        return case.call(inputs.logits, inputs.targets, inputs.state, temperature, max_pool_size=9)[0]

    torch.manual_seed(0)
    losses = torch.func.vmap(subsampled, randomness=randomness)(torch.full((16,), 0.5, dtype=torch.float64))
    assert ((losses >= 0) & (losses <= case.most)).all()
    assert (len(set(losses.tolist())) == 1) == (randomness == "same")


@every_case
def test_config_temperature_and_argument_agree(case: Case) -> None:
    """A temperature in the config, as a float and as a 0-dim tensor of any float dtype."""
    inputs = case.inputs()
    arguments = (inputs.logits, inputs.targets, inputs.state)
    expected = case.loss.function(*arguments, case.config(temperature=0.25))[0]
    for temperature in (0.25, torch.tensor(0.25), torch.tensor(0.25, dtype=torch.float64), torch.tensor(0.25).half()):
        assert torch.equal(case.loss.function(*arguments, case.config(), temperature=temperature)[0], expected)

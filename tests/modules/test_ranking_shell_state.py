"""The state of the ranking shells: queue, temperature, copies, dtypes, ensembles."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from tests.modules.ranking_shells import (
    assert_bits,
    called,
    every_case,
    every_class,
    every_loss,
    every_variant,
    float_inputs,
    snapshot,
    stepped,
)
from tests.transforms.cases import QUEUE_SIZE, Case

# --- the queue of a module --------------------------------------------------------------------------------------------


@every_variant
def test_queue_is_frozen_in_eval(case: Case) -> None:
    shell = stepped(case).eval()
    before = snapshot(shell)
    loss = called(shell, float_inputs(case, 7))
    assert_bits(snapshot(shell), before)
    assert_bits(called(shell.train(), float_inputs(case, 7)), loss)
    assert not torch.equal(shell.queue_state.logits, before["queue_logits"])


@every_loss
def test_update_queue_in_eval(case: Case) -> None:
    evaluated, trained = stepped(case, update_queue_in_eval=True).eval(), stepped(case)
    inputs = float_inputs(case, 7)
    with torch.inference_mode():
        called(evaluated, inputs)
    called(trained, inputs)
    assert_bits(snapshot(evaluated), snapshot(trained))
    logits = inputs.logits.requires_grad_()  # and training goes on with the buffers that inference wrote to
    evaluated.train()(logits, inputs.targets).backward()
    assert logits.grad is not None


@every_loss
def test_reset_queue(case: Case) -> None:
    shell = stepped(case)
    shell.temperature = 0.25
    shell.reset_queue()
    fresh = case.shell()
    assert_bits(shell.queue_state, fresh.queue_state)
    assert float(shell.temperature) == 0.25
    fresh.temperature = 0.25
    assert_bits(called(shell, float_inputs(case, 3)), called(fresh, float_inputs(case, 3)))


@every_class
def test_queue_size_zero(shell_class: type) -> None:
    """No queue: each step knows its own rows only."""
    shell = shell_class(1, queue_size=0)
    logits, targets = torch.randn(32), (torch.arange(32) % 3 == 0).long()
    first, second = shell(logits, targets), shell(logits, targets)
    assert_bits(first, second)
    assert shell.queue_state.logits.shape == (0, 1)
    shell.reset_queue()


@every_variant
def test_two_forwards_before_one_backward(case: Case) -> None:
    """Accumulated gradients: neither the write-back nor a new temperature disturbs what autograd has saved."""
    shell = case.shell()
    first, second = float_inputs(case, 0), float_inputs(case, 1)
    first.logits.requires_grad_()
    shell.temperature = 0.5
    loss = called(shell, first)
    shell.temperature = 0.2
    total = loss + called(shell, second)
    shell.reset_queue()
    total.backward()
    alone = float_inputs(case, 0)
    alone.logits.requires_grad_()
    fresh = case.shell()
    fresh.temperature = 0.5
    called(fresh, alone).backward()
    assert_bits(first.logits.grad, alone.logits.grad)


@every_loss
def test_empty_batch_moves_nothing(case: Case) -> None:
    shell = stepped(case)
    before = snapshot(shell)
    inputs = float_inputs(case)
    logits = inputs.logits[:0].requires_grad_()
    loss = shell(logits, inputs.targets[:0])
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert_bits(snapshot(shell), before)


# --- temperature ------------------------------------------------------------------------------------------------------


@every_loss
def test_temperature_is_a_buffer_that_can_be_assigned(case: Case) -> None:
    shell = case.shell(temperature=0.5)
    assert float(shell.temperature) == 0.5
    assert isinstance(shell.temperature, Tensor)
    assert shell.temperature.shape == ()
    assert dict(shell.named_buffers())["temperature"] is shell.temperature
    inputs = float_inputs(case)
    for value in (0.25, 2, torch.tensor(0.125), torch.tensor(0.75, dtype=torch.float64)):
        shell.reset_queue()
        shell.temperature = value
        assert float(shell.temperature) == float(value)
        assert_bits(called(shell, inputs), called(case.shell(temperature=float(value)), inputs))
        assert dict(shell.named_buffers())["temperature"] is shell.temperature


@every_class
def test_temperature_does_not_alias_what_was_assigned(shell_class: type) -> None:
    shell, schedule = shell_class(1), torch.tensor(0.5)
    shell.temperature = schedule
    schedule.fill_(0.1)
    assert float(shell.temperature) == 0.5
    assert not shell.temperature.requires_grad


@every_class
@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), torch.ones(2), torch.ones(1, 1), "hot"])
def test_bad_temperatures_are_refused(shell_class: type, value: Any) -> None:
    shell = shell_class(1, temperature=0.5)
    with pytest.raises((ValueError, TypeError), match="temperature"):
        shell.temperature = value
    assert float(shell.temperature) == 0.5


@every_class
def test_temperature_survives_state_dict(shell_class: type) -> None:
    shell, other = shell_class(1), shell_class(1, temperature=0.9)
    shell.temperature = 0.25
    other.load_state_dict(shell.state_dict())
    assert float(other.temperature) == 0.25
    other.temperature = 0.75
    assert float(shell.temperature) == 0.25


# --- copies, devices, dtypes ------------------------------------------------------------------------------------------


def through_pickle(shell: Any) -> Any:
    return pickle.loads(pickle.dumps(shell))


def through_state_dict(shell: Any) -> Any:
    """Default ``torch.load``, which accepts plain tensors only."""
    file = io.BytesIO()
    torch.save(shell.state_dict(), file)
    file.seek(0)
    twin = copy.deepcopy(shell)
    twin.reset_queue()
    twin.temperature = 9.0
    result = twin.load_state_dict(torch.load(file))
    assert (result.missing_keys, result.unexpected_keys) == ([], [])
    return twin


@every_variant
@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy, through_pickle, through_state_dict])
def test_copies_go_on_like_the_original(case: Case, duplicate: Any) -> None:
    shell = stepped(case)
    shell.temperature = 0.3
    twin = duplicate(shell)
    assert_bits(snapshot(twin), snapshot(shell))
    before = snapshot(shell)
    inputs = float_inputs(case, 5)
    loss = called(twin, inputs)
    if duplicate is not copy.copy:  # a shallow copy of a module shares its buffers
        assert_bits(snapshot(shell), before)
        assert_bits(called(shell, inputs), loss)
        assert_bits(snapshot(twin), snapshot(shell))


@every_loss
def test_state_dict_is_plain_tensors(case: Case) -> None:
    state = stepped(case).state_dict()
    assert all(type(value) is Tensor for value in state.values())
    assert set(state) == set(dict(case.shell().named_buffers()))


@every_loss
def test_state_of_another_queue_is_refused(case: Case) -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        case.shell(queue_size=QUEUE_SIZE + 1).load_state_dict(case.shell().state_dict())


@every_loss
def test_shell_follows_its_parent(case: Case) -> None:
    """``model.to(...)`` and ``model.state_dict()`` reach a loss that is part of the model."""
    model = nn.ModuleDict({"head": nn.Linear(2, case.num_classes), "loss": stepped(case)})
    model.to(torch.float64)
    state = model["loss"].queue_state
    assert state.logits.dtype == model["loss"].temperature.dtype == torch.float64
    assert state.targets.dtype == state.cursor.dtype == torch.int64
    assert state.iid.dtype == torch.bool
    assert any(name.startswith("loss.") for name in model.state_dict())


@every_case
def test_double_shell_equals_double_function(case: Case) -> None:
    shell = case.shell().to(torch.float64)
    inputs = case.inputs()
    shell.temperature = inputs.temperature
    loss = shell(inputs.logits, inputs.targets)
    expected, state = case.call(inputs.logits, inputs.targets, case.empty_queue(), inputs.temperature)
    assert loss.dtype == torch.float64
    assert_bits(loss, expected)
    torch.testing.assert_close(shell.queue_state.logits, state.logits, rtol=0, atol=0)


# --- ensembles of shells ----------------------------------------------------------------------------------------------


def shells_with_temperatures(case: Case) -> list[Any]:
    shells = []
    for seed in range(3):
        shell = stepped(case, seed)
        shell.temperature = 0.2 * (seed + 1)
        shells.append(shell)
    return shells


@every_variant
@pytest.mark.parametrize("training", [False, True])
def test_vmap_of_functional_call_equals_loop(case: Case, training: bool) -> None:
    """Stacked buffers are mapped over and, in training, written to: ``copy_`` reaches what was passed in."""
    shells = [shell.train(training) for shell in shells_with_temperatures(case)]
    params, buffers = stack_module_state(shells)
    inputs = [float_inputs(case, seed) for seed in range(3)]
    logits, targets = torch.stack([own.logits for own in inputs]), torch.stack([own.targets for own in inputs])
    template = copy.deepcopy(shells[0])
    untouched = snapshot(template)

    def call(params: Any, buffers: Any, logits: Tensor, targets: Tensor) -> Tensor:
        loss: Tensor = functional_call(template, (params, buffers), (logits, targets))
        return loss

    losses = vmap(call)(params, buffers, logits, targets)
    expected = torch.stack([shell(own.logits, own.targets) for shell, own in zip(shells, inputs, strict=True)])
    torch.testing.assert_close(losses, expected)
    assert_bits(snapshot(template), untouched)
    for i, shell in enumerate(shells):
        assert_bits({name: value[i] for name, value in buffers.items()}, snapshot(shell))


@every_variant
def test_grad_of_functional_call_equals_autograd(case: Case) -> None:
    shell = stepped(case)
    buffers = snapshot(shell)
    inputs = float_inputs(case, 3)

    def call(logits: Tensor) -> Tensor:
        loss: Tensor = functional_call(shell.eval(), buffers, (logits, inputs.targets))
        return loss

    leaf = inputs.logits.clone().requires_grad_()
    shell(leaf, inputs.targets).backward()
    torch.testing.assert_close(grad(call)(inputs.logits), leaf.grad)

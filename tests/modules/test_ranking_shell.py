"""The ranking losses as modules: the function's results bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from imbalanced_losses import SmoothAPLoss, init_queue
from imbalanced_losses.queue import push
from tests.modules.ranking_shells import (
    assert_bits,
    called,
    every_case,
    every_class,
    every_loss,
    every_variant,
    float_inputs,
)
from tests.registry import TRACED, most_of
from tests.transforms.cases import CASES, N_ROWS, QUEUE_SIZE, Case


@every_class
def test_one_line_of_use(shell_class: type) -> None:
    """In the place of ``BCEWithLogitsLoss``: float targets, ``[N]`` logits, nothing but ``num_classes=1`` to say."""
    loss_fn = shell_class(num_classes=1)
    model = nn.Linear(3, 1)
    for _ in range(3):
        loss = loss_fn(model(torch.randn(64, 3)).squeeze(-1), (torch.arange(64) % 4 == 0).float())
        loss.backward()
    assert loss.shape == ()
    assert 0 <= loss <= most_of(shell_class)
    assert list(loss_fn.parameters()) == []
    assert (loss_fn.queue_state.targets >= 0).sum() == 3 * 64


# --- the function, bit for bit ----------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_shell_equals_function(case: Case, reduction: str) -> None:
    """Losses, gradients and states over a ring that wraps, with a temperature that changes."""
    shell, state = case.shell(reduction=reduction), case.empty_queue(torch.float32)
    config = case.config(reduction=reduction)
    for seed in range(4):
        inputs = float_inputs(case, seed)
        temperature = 0.1 * (seed + 1)
        shell.temperature = temperature
        own, other = (inputs.logits.clone().requires_grad_() for _ in range(2))
        loss = shell(own, inputs.targets, inputs.iid_mask, sample_weight=inputs.sample_weight)
        expected, state = case.loss.function(
            other,
            inputs.targets,
            state,
            config,
            temperature=temperature,
            iid_mask=inputs.iid_mask,
            sample_weight=inputs.sample_weight,
        )
        loss.sum().backward()
        expected.sum().backward()
        assert_bits((loss, own.grad, shell.queue_state), (expected, other.grad, state))


@every_case
def test_config_is_what_the_constructor_was_told(case: Case) -> None:
    assert case.shell().config == case.config()


@every_case
def test_return_per_class(case: Case) -> None:
    inputs = float_inputs(case)
    loss = called(case.shell(), inputs)
    outputs = called(case.shell(), inputs, return_per_class=True)
    result, _ = case.loss.per_class(
        inputs.logits,
        inputs.targets,
        case.empty_queue(torch.float32),
        case.config(),
        iid_mask=inputs.iid_mask,
        sample_weight=inputs.sample_weight,
    )
    assert isinstance(outputs, tuple)
    assert_bits(outputs, (loss, result.loss, result.valid))
    assert outputs[1].shape == outputs[2].shape == (case.num_classes,)
    assert outputs[2].dtype == torch.bool


@pytest.mark.parametrize("case", [case for case in CASES if case.loss.returns_diagnostics], ids=str)
@pytest.mark.parametrize("per_class", [False, True])
def test_return_diagnostics(case: Case, per_class: bool) -> None:
    """Last in the tuple: ``(loss, stats)`` or ``(loss, per_class, valid, stats)``."""
    inputs = float_inputs(case)
    *outputs, stats = called(case.shell(), inputs, return_per_class=per_class, return_diagnostics=True)
    assert set(stats) == case.loss.diagnostics | TRACED[case.name.rpartition("-")[0]][1].diagnostics
    assert all(value.shape == (case.num_classes,) and not value.requires_grad for value in stats.values())
    expected = called(case.shell(), inputs, return_per_class=per_class)
    assert_bits(outputs, expected if per_class else [expected])


@every_variant
def test_invalid_classes_are_nan_per_class(case: Case) -> None:
    inputs = float_inputs(case)
    shell = case.shell(reduction="none")
    loss, per_class, valid = shell(inputs.logits, torch.full_like(inputs.targets, -100), None, True)
    assert per_class.isnan().all()
    assert loss.isnan().all()
    assert not valid.any()
    assert shell(inputs.logits, inputs.targets).isfinite().all()


@every_loss
def test_sequences_are_flattened_before_the_call(case: Case) -> None:
    """``[B, T, C] -> [B*T, C]``; a forgotten ``flatten`` is refused."""
    inputs = float_inputs(case)
    logits = inputs.logits.reshape(2, N_ROWS // 2, case.num_classes)
    targets = inputs.targets.reshape(2, N_ROWS // 2, *inputs.targets.shape[1:])
    flat = case.shell()(logits.flatten(0, 1), targets.flatten(0, 1))
    assert_bits(flat, case.shell()(inputs.logits, inputs.targets))
    with pytest.raises(ValueError, match=rf"expected logits of shape \[N, {case.num_classes}\], got \[2, 3, "):
        case.shell()(logits, targets)


def test_state_property_is_the_pure_functions_state() -> None:
    """What the shell holds can be given to the function, and goes on there."""
    shell = SmoothAPLoss(3, queue_size=QUEUE_SIZE)
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, -100, 1])
    shell(logits, targets)
    expected = push(init_queue(QUEUE_SIZE, 3), logits, targets, torch.ones(5).bool(), torch.ones(5))
    assert_bits(shell.queue_state, expected)

"""Elementwise losses as modules: equal to their functions, with streams and without, through their whole life."""

from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from tests.contracts.elements import MODULES, Case, each_module, every_module, made, value_and_grad

every_stream = pytest.mark.parametrize("case", [case for case in MODULES if case.streams], ids=str)


# --- equal to the function --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@every_module
def test_it_is_the_function(case: Case, dtype: torch.dtype) -> None:
    weight = torch.rand(8)
    for reduction in case.loss.reductions:
        loss_fn, (logits, targets) = made(case, reduction=reduction)
        logits = logits.to(dtype)

        def function(logits: Tensor, targets: Tensor, loss_fn: nn.Module = loss_fn, **rows: Tensor) -> Tensor:
            return case.loss.function(logits, targets, loss_fn.config, **case.loss.arguments_of(loss_fn), **rows)

        expected = value_and_grad(function, logits, targets, sample_weight=weight)
        assert_close(value_and_grad(loss_fn, logits, targets, sample_weight=weight), expected, rtol=0, atol=0)


@every_module
def test_compiled_without_a_break(case: Case) -> None:
    """Counts included."""
    eager, (logits, targets) = made(case)
    shell, _ = made(case)
    compiled = torch.compile(shell, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        assert_close(value_and_grad(compiled, logits, targets), value_and_grad(eager, logits, targets))
    assert_close(shell.state_dict(), eager.state_dict())


@every_module
def test_vmap(case: Case) -> None:
    """Values cannot be read there, so they are not checked; counts are written back."""
    loss_fn, batch = made(case)
    pairs = [batch, case.inputs(n=8, seed=1, dtype=torch.float32)]
    logits, targets = (torch.stack([pair[i] for pair in pairs]) for i in range(2))
    buffers = {name: torch.stack([value, value]) for name, value in loss_fn.named_buffers()}
    gradients = vmap(grad(lambda z, y, b: functional_call(loss_fn, b, (z, y))))(logits, targets, buffers)
    for i, pair in enumerate(pairs):
        alone = copy.deepcopy(loss_fn)
        assert_close(gradients[i], value_and_grad(alone, *pair)[1])
        assert_close({name: value[i] for name, value in buffers.items()}, dict(alone.named_buffers()), rtol=0, atol=0)


@every_module
def test_on_meta_tensors(case: Case) -> None:
    logits, targets = (tensor.to("meta") for tensor in case.inputs())
    loss = case.shell().to("meta")(logits, targets, sample_weight=torch.ones(6, device="meta"))
    assert loss.is_meta


# --- processes --------------------------------------------------------------------------------------------------------


@each_module
def test_gather_without_a_process_group(case: Case) -> None:
    """``True`` is an error, ``None`` and ``False`` compute locally."""
    with pytest.raises(RuntimeError, match="expected an initialised process group, got none"):
        case.shell(gather_distributed=True)(*case.inputs())
    expected = case.shell()(*case.inputs())
    for setting in (None, False):
        assert_close(case.shell(gather_distributed=setting)(*case.inputs()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("gather", [None, False, True])
@every_module
def test_one_rank_computes_locally(case: Case, gather: bool | None, group_of_one: None) -> None:
    loss_fn, batch = made(case, gather_distributed=False)
    assert_close(value_and_grad(made(case, gather_distributed=gather)[0], *batch), value_and_grad(loss_fn, *batch))
    assert torch.equal(made(case, gather_distributed=gather)[0](*batch), made(case)[0](*batch))


@each_module
def test_what_happens_to_gradients_is_checked_and_copied(case: Case, group_of_one: None) -> None:
    with pytest.raises(ValueError, match="expected grad_reduction to be one of"):
        case.shell(grad_reduction="max")
    group = torch.distributed.group.WORLD
    shell = case.shell(grad_reduction="sum", group=group)
    for same in (shell, copy.deepcopy(shell)):
        assert same.group is group
        assert same.grad_reduction == "sum"


# --- its life ---------------------------------------------------------------------------------------------------------


def settings_of(config: Any) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def assert_same_settings(config: Any, expected: Any) -> None:
    """Up to the float32 of the buffers."""
    assert type(config) is type(expected)
    for name, value in settings_of(expected).items():
        is_numbers = isinstance(value, tuple)
        assert getattr(config, name) == (pytest.approx(value, rel=1e-6) if is_numbers else value), name


@every_module
def test_configuration_and_repr(case: Case) -> None:
    shell = case.shell()
    assert not list(shell.parameters())
    for name, value in settings_of(shell.config).items():
        assert f"{name}={value!r}" in repr(shell)
    if not case.streams:
        assert_same_settings(shell.config, case.config())


@every_module
def test_copied_pickled_and_loaded(case: Case) -> None:
    loss_fn, batch = made(case)
    file = io.BytesIO()
    torch.save(loss_fn.state_dict(), file)
    file.seek(0)
    loaded = case.shell()
    loaded.load_state_dict(torch.load(file))
    others = [copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn)), loaded]
    expected = loss_fn(*batch), loss_fn.state_dict()
    for other in others:
        assert_close((other(*batch), other.state_dict()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_module
def test_a_cast_keeps_the_buffers(case: Case, dtype: torch.dtype) -> None:
    loss_fn, (logits, targets) = made(case)
    cast = nn.Sequential(copy.deepcopy(loss_fn)).to(dtype)[0]
    assert_close(cast.state_dict(), loss_fn.state_dict(), rtol=0, atol=0)
    assert_close(cast(logits.to(dtype), targets), loss_fn(logits.to(dtype), targets), rtol=0, atol=0)


@every_module
def test_made_without_memory(case: Case) -> None:
    fresh, batch = case.shell(), case.inputs()
    with torch.device("meta"):
        loss_fn = case.shell()
    if not case.streams:
        assert_same_settings(loss_fn.config, fresh.config)
    loss_fn.to_empty(device="cpu")
    for buffer in loss_fn.buffers():
        buffer.fill_(77)
    loss_fn.reset_parameters()
    assert_close(loss_fn.state_dict(), fresh.state_dict(), rtol=0, atol=0)
    with torch.device("meta"):
        loss_fn = case.shell()
    loss_fn.load_state_dict(copy.deepcopy(fresh.state_dict()), assign=True)
    assert_close(loss_fn(*batch), fresh(*batch), rtol=0, atol=0)


# --- streams ----------------------------------------------------------------------------------------------------------


@every_stream
def test_a_call_uses_what_was_counted_so_far(case: Case) -> None:
    """And then adds its own labels."""
    loss_fn, batch = case.shell(), case.inputs(n=8)
    expected = case.loss.function(*batch, loss_fn.config, **case.loss.arguments_of(loss_fn))
    first = loss_fn(*batch)
    assert_close(first, expected)
    assert not torch.equal(loss_fn(*batch), first)


@every_stream
def test_evaluation_counts_nothing(case: Case) -> None:
    loss_fn, batch = made(case)
    before = copy.deepcopy(loss_fn.state_dict())
    loss_fn.eval()
    assert torch.equal(loss_fn(*batch), loss_fn(*batch))
    assert_close(loss_fn.state_dict(), before, rtol=0, atol=0)


@every_stream
def test_a_second_pass_in_the_backward_is_refused(case: Case) -> None:
    loss_fn, (logits, targets) = made(case)
    loss = checkpoint(loss_fn, logits.clone().requires_grad_(), targets, use_reentrant=False)
    with pytest.raises(RuntimeError, match="outside activation checkpointing"):
        loss.backward()

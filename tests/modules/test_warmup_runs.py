"""The warm-up wrapper over whole runs: through checkpoints, as a copy, compiled, batched, on a device."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, stack_module_state, vmap

from imbalanced_losses import SmoothAPLoss, schedule
from tests.modules.recorders import bits, make, save_and_load, train

# --- checkpoints and copies -------------------------------------------------------------------------------------------

SETTINGS = {"epochs": {"warmup_epochs": 2, "blend_epochs": 2}, "steps": {"warmup_steps": 5, "blend_steps": 4}}
DECAY = {"temp_start": 0.5, "temp_end": 0.05, "temp_decay_steps": 9}
TOTAL_STEPS = 18  # warm-up, blend, main phase; the temperature falls from step 6 (5) to step 15 (14)


def make_real(settings: dict[str, Any]) -> Any:
    return make(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1, queue_size=8), **settings, **DECAY)


@pytest.mark.parametrize("mode", SETTINGS)
@pytest.mark.parametrize("cut", [0, 4, 5, 6, 7, 8, 11, 12, 14, 16])
@pytest.mark.parametrize("replay", [False, True], ids=["", "hooks-again"])
def test_a_resumed_run_is_the_uninterrupted_one(mode: str, cut: int, replay: bool) -> None:
    """``replay``: trainers that resume inside an epoch announce epoch and step a second time."""
    whole = make_real(SETTINGS[mode])
    expected = train(whole, range(TOTAL_STEPS))
    first, second = make_real(SETTINGS[mode]), make_real(SETTINGS[mode])
    losses = train(first, range(cut))
    second.load_state_dict(save_and_load(first))
    assert (second.in_warmup, second.in_blend) == (first.in_warmup, first.in_blend)
    assert (second.main_weight, second.current_temperature) == (first.main_weight, first.current_temperature)
    if replay and cut:
        second.on_train_epoch_start((cut - 1) // 3)
        second.on_train_batch_start(cut - 1)
    losses += train(second, range(cut, TOTAL_STEPS))
    assert bits(losses) == bits(expected)
    assert bits(second.state_dict()) == bits(whole.state_dict())


def test_the_schedule_is_in_the_state_dict_as_plain_tensors() -> None:
    wrapper = make(warmup_epochs=1)
    train(wrapper, range(5))
    assert {name: int(value) for name, value in save_and_load(wrapper).items()} == {
        "epoch": 1,
        "step": 4,
        "switch_step": 3,
    }
    assert {value.dtype for value in wrapper.state_dict().values()} == {torch.int64}


def test_a_temperature_outside_the_state_dict_is_restored_too() -> None:
    first, second = make(**DECAY), make(**DECAY)
    train(first, range(5))
    second.load_state_dict(save_and_load(first))
    assert second.main_loss.temperature == first.main_loss.temperature != first.config.temp_start


def test_loading_through_an_outer_module_restores_the_phase() -> None:
    first, second = make(warmup_epochs=1), make(warmup_epochs=1)
    train(first, range(4))
    nn.ModuleDict({"loss": second}).load_state_dict(nn.ModuleDict({"loss": first}).state_dict(), assign=True)
    assert not second.in_warmup


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda wrapper: pickle.loads(pickle.dumps(wrapper))])
def test_a_copy_leads_its_own_life(duplicate: Any) -> None:
    original = make_real(SETTINGS["epochs"])
    train(original, range(7))
    twin = duplicate(original)
    before = bits(original.state_dict())
    losses = train(twin, range(7, TOTAL_STEPS))
    assert bits(original.state_dict()) == before
    assert original.in_blend
    assert bits(train(original, range(7, TOTAL_STEPS))) == bits(losses)
    # the copy's load hook refreshes the copy
    twin.load_state_dict(make_real(SETTINGS["epochs"]).state_dict())
    assert twin.in_warmup
    assert not original.in_warmup


# --- compiled, batched, on a device -----------------------------------------------------------------------------------


@pytest.mark.parametrize("final", [1.0, 0.5])
def test_one_compilation_a_phase(final: float) -> None:
    settings = {"warmup_steps": 3, "blend_steps": 6, "final_main_weight": final}
    wrapper, eager = make_real(settings), make_real(settings)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(wrapper, backend=counter, fullgraph=True)
    compilations = []
    for step in range(14):
        wrapper.on_train_batch_start(step)
        eager.on_train_batch_start(step)
        logits = torch.randn(4, generator=torch.Generator().manual_seed(step)).requires_grad_()
        targets = torch.tensor([1.0, 0.0, 1.0, 0.0])
        losses = compiled(logits, targets), eager(logits, targets)
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*gradients)
        compilations.append(counter.frame_count)
    assert compilations == [1] * 3 + [2] * 6 + [3] * 5
    torch.testing.assert_close(wrapper.state_dict(), eager.state_dict())


def test_a_compiled_graph_does_not_warn_of_a_missing_hook() -> None:
    wrapper = make_real({})
    torch.compile(wrapper, backend="eager", fullgraph=True)(torch.zeros(2), torch.tensor([0.0, 1.0]))


def test_an_ensemble_blends_each_member_by_its_own_schedule() -> None:
    members = [make(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1, queue_size=4), blend_steps=9) for _ in range(3)]
    for member, step in zip(members, [0, 3, 7], strict=True):
        member.on_train_batch_start(step)
    parameters, buffers = stack_module_state(members)
    logits, targets = torch.randn(3, 4), torch.tensor([1.0, 0.0, 1.0, 0.0])
    member = copy.deepcopy(members[0])
    batched = vmap(lambda p, b, x: functional_call(member, (p, b), (x, targets)), in_dims=(0, 0, 0))
    losses = batched(parameters, buffers, logits)
    torch.testing.assert_close(losses, torch.stack([m(x, targets) for m, x in zip(members, logits, strict=True)]))


@pytest.mark.parametrize("mode", SETTINGS)
def test_neither_hooks_nor_forward_read_from_the_device(mode: str) -> None:
    """On ``meta`` there is nothing to read: whatever synchronised with a device would raise."""
    with torch.device("meta"):
        built_there = make_real(SETTINGS[mode])
    for wrapper in (built_there, make_real(SETTINGS[mode]).to("meta")):
        phases = []
        for step in range(TOTAL_STEPS):
            if step % 3 == 0:
                wrapper.on_train_epoch_start(step // 3)
            wrapper.on_train_batch_start(step)
            loss = wrapper(torch.zeros(4, device="meta"), torch.zeros(4, device="meta"))
            assert loss.is_meta
            assert loss.shape == ()
            phases.append((wrapper.in_warmup, wrapper.in_blend))
        assert (phases.index((False, True)), phases.index((False, False))) == {"epochs": (6, 12), "steps": (5, 9)}[mode]


def told_on_the_host(wrapper: Any) -> tuple[float, float]:
    state = wrapper._host_state
    return float(schedule.temperature(state, wrapper.config)), float(schedule.main_weight(state, wrapper.config))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_synchronisation_on_a_gpu() -> None:
    main_loss = SmoothAPLoss(num_classes=1, queue_size=8, validate_targets=False)
    wrapper = make(nn.BCEWithLogitsLoss(), main_loss, **SETTINGS["epochs"], **DECAY).cuda()
    logits, targets = torch.randn(4, device="cuda"), torch.tensor([1.0, 0.0, 1.0, 0.0], device="cuda")
    for step in range(TOTAL_STEPS):
        wrapper.on_train_epoch_start(step // 3)  # asks, once an epoch, whether any class was valid
        torch.cuda.set_sync_debug_mode("error")
        try:
            wrapper.on_train_epoch_start(step // 3)
            wrapper.on_train_batch_start(step)
            assert (wrapper.current_temperature, wrapper.main_weight) == told_on_the_host(wrapper)
            wrapper(logits, targets)
        finally:
            torch.cuda.set_sync_debug_mode("default")

"""Another run with the same loss, and epochs in which nothing could be ranked."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from imbalanced_losses import LogitAdjustedLoss, LossWarmupWrapper
from imbalanced_losses.integrations._wrappers import start_new_run
from tests.modules.recorders import Recorder, bits, make, save_and_load, train
from tests.registry import MAIN, make_main

RANKING: dict[str, Any] = {name: partial(make_main, name, queue_size=8) for name in MAIN}
every_loss = pytest.mark.parametrize("name", RANKING)
SETTINGS = {
    "none": {},
    "epochs": {"warmup_epochs": 1, "blend_epochs": 1},
    "steps": {"warmup_steps": 4, "blend_steps": 3},
    "each-epoch": {"reset_queue_each_epoch": True},
    "auto": {"warmup_steps": 2, "auto_step": True},
}
DECAY = {"temp_start": 0.5, "temp_end": 0.05, "temp_decay_steps": 9}

# --- another run ------------------------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("steps", [3, 2, 9], ids=["one-epoch", "within-an-epoch", "three-epochs"])
def test_a_second_run_is_the_first_one(name: str, settings: dict[str, Any], steps: int) -> None:
    wrapper = make(nn.BCEWithLogitsLoss(), RANKING[name](), **settings, **DECAY)
    first = train(wrapper, range(steps))
    end = bits(wrapper.state_dict())
    for _ in range(2):
        assert bits(train(wrapper, range(steps))) == bits(first)
        assert bits(wrapper.state_dict()) == end


@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_either_hook_starts_a_new_run(hook: str, settings: dict[str, Any]) -> None:
    wrapper = make(nn.BCEWithLogitsLoss(), RANKING["smooth_ap"](), **settings, **DECAY)
    fresh = copy.deepcopy(wrapper)
    train(wrapper, range(8))
    getattr(wrapper, hook)(0)
    getattr(fresh, hook)(0)
    assert bits(wrapper.state_dict()) == bits(fresh.state_dict())
    assert (wrapper.in_warmup, wrapper.main_weight) == (fresh.in_warmup, fresh.main_weight)


def test_a_step_0_keeps_the_epoch_that_was_told_before_it() -> None:
    """Of loops that count epochs from 1."""
    wrapper = make(warmup_epochs=1)
    for _ in range(2):
        wrapper.on_train_epoch_start(1)
        wrapper.on_train_batch_start(0)
        assert (int(wrapper.epoch), wrapper.in_warmup) == (1, False)
        wrapper.on_train_batch_start(7)


def test_the_queue_of_a_warmup_loss_starts_empty_too() -> None:
    wrapper = make(RANKING["recall"](), RANKING["smooth_ap"](), warmup_epochs=1)
    train(wrapper, range(2))
    fresh = RANKING["recall"]()
    assert bits(wrapper.warmup_loss.queue_state) != bits(fresh.queue_state)
    wrapper.on_train_batch_start(0)
    assert bits(wrapper.warmup_loss.queue_state) == bits(fresh.queue_state)


@pytest.mark.parametrize("as_main", [False, True])
def test_the_counts_of_a_stream_start_at_0(as_main: bool) -> None:
    """Those of another fold are not of this one; but an epoch that empties the queue goes on counting."""
    stream = LogitAdjustedLoss("stream", num_classes=1)
    losses = (nn.BCEWithLogitsLoss(), stream) if as_main else (stream, RANKING["smooth_ap"]())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no temperature, no queue
        wrapper = make(*losses, warmup_epochs=0 if as_main else 3, reset_queue_each_epoch=True)
    train(wrapper, range(4))
    counted = int(stream.class_labels)
    wrapper.on_train_epoch_start(2)
    assert int(stream.class_labels) == counted > 0
    wrapper.on_train_batch_start(0)
    assert int(stream.class_labels) == 0
    train(wrapper, range(1))
    assert int(stream.class_labels) > 0
    start_new_run(nn.ModuleDict({"loss": wrapper}))
    assert int(stream.class_labels) == 0
    train(wrapper, range(1))
    start_new_run(nn.ModuleDict({"loss": stream}))
    assert int(stream.class_labels) == 0


def test_hooks_that_repeat_themselves_empty_nothing() -> None:
    wrapper = make(reset_queue_each_epoch=True)
    train(wrapper, range(8))
    resets = wrapper.main_loss.resets
    for _ in range(3):
        wrapper.on_train_epoch_start(2)
        wrapper.on_train_batch_start(7)
    assert wrapper.main_loss.resets == resets
    new_run = make()
    train(new_run, range(8))
    for _ in range(3):
        new_run.on_train_epoch_start(0)
        new_run.on_train_batch_start(0)
        new_run.on_train_batch_start(0)
    assert new_run.main_loss.resets == 1


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_what_resumes_in_the_first_epoch_is_no_new_run(cut: int) -> None:
    whole, first, second = (make(nn.BCEWithLogitsLoss(), RANKING["smooth_ap"](), **DECAY) for _ in range(3))
    expected = train(whole, range(6))
    losses = train(first, range(cut))
    second.load_state_dict(save_and_load(first))
    second.on_train_epoch_start(0)
    second.on_train_batch_start(cut - 1)
    assert bits(losses + train(second, range(cut, 6))) == bits(expected)


# --- epochs in which nothing could be ranked --------------------------------------------------------------------------

NEVER_VALID = torch.zeros(4)  # no positives


def epoch(wrapper: LossWarmupWrapper, index: int, targets: Tensor, call: Any) -> None:
    wrapper.on_train_epoch_start(index)
    for step in range(3):
        wrapper.on_train_batch_start(3 * index + step)
        call(torch.randn(4), targets)


def wrapped(name: str) -> LossWarmupWrapper:
    return LossWarmupWrapper(nn.BCEWithLogitsLoss(), RANKING[name]())


@every_loss
@pytest.mark.parametrize("compiled", [False, True])
def test_an_epoch_without_a_valid_class_warns_once(name: str, compiled: bool) -> None:
    wrapper = wrapped(name)
    call = torch.compile(wrapper, backend="eager", fullgraph=True) if compiled else wrapper
    epoch(wrapper, 0, NEVER_VALID, call)
    message = f"expected a class that {type(wrapper.main_loss).__name__} can rank"
    with pytest.warns(UserWarning, match=message) as caught:
        epoch(wrapper, 1, NEVER_VALID, call)
    assert [warning.filename for warning in caught] == [__file__]
    epoch(wrapper, 2, NEVER_VALID, call)  # warnings are errors: it would raise if it warned again


@every_loss
@pytest.mark.parametrize("compiled", [False, True])
def test_one_valid_step_is_enough(name: str, compiled: bool) -> None:
    wrapper = wrapped(name)
    call = torch.compile(wrapper, backend="eager", fullgraph=True) if compiled else wrapper
    epoch(wrapper, 0, NEVER_VALID, call)
    call(torch.randn(4), torch.tensor([1.0, 0, 0, 0]))
    call(torch.randn(4), NEVER_VALID)
    wrapper.on_train_epoch_start(1)


@every_loss
def test_epochs_without_a_call_and_evaluation_do_not_count(name: str) -> None:
    wrapper = wrapped(name)
    wrapper.on_train_epoch_start(0)
    wrapper.eval()(torch.randn(4), NEVER_VALID)
    wrapper.on_train_epoch_start(1)
    warming_up = LossWarmupWrapper(nn.BCEWithLogitsLoss(), RANKING[name](), warmup_epochs=9)
    for index in range(3):
        epoch(warming_up, index, NEVER_VALID, warming_up)


@every_loss
def test_what_counts_is_no_state_to_save(name: str) -> None:
    loss_fn = RANKING[name]()
    loss_fn(torch.randn(4), NEVER_VALID)
    assert loss_fn.state_dict().keys() == dict(loss_fn.named_buffers()).keys()
    for twin in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        with pytest.warns(UserWarning, match="can rank"):
            twin.warn_of_invalid_epoch()
    loss_fn.reset_parameters()
    loss_fn.warn_of_invalid_epoch()
    loss_fn.to("meta").warn_of_invalid_epoch()
    loss_fn(torch.randn(4, device="meta"), NEVER_VALID.to("meta"))
    back = loss_fn.to_empty(device="cpu")
    back.reset_parameters()
    back(torch.randn(4), NEVER_VALID)
    with pytest.warns(UserWarning, match="can rank"):
        back.warn_of_invalid_epoch()


def test_an_ensemble_does_not_count() -> None:
    members = [RANKING["smooth_ap"]() for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    batched = vmap(lambda p, b, x: functional_call(members[0], (p, b), (x, NEVER_VALID)))
    batched(parameters, buffers, torch.randn(3, 4))
    for member in members:
        member.warn_of_invalid_epoch()


def test_losses_within_a_foreign_main_loss_are_looked_at() -> None:
    class Sum(Recorder):
        temperature = 1.0

        def __init__(self) -> None:
            super().__init__(0.0)
            self.parts = nn.ModuleList([RANKING["smooth_ap"](), RANKING["recall"]()])

        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            return torch.stack([part(logits, targets) for part in self.parts]).sum()

        def reset_queue(self) -> None: ...

    wrapper = make(main_loss=Sum())
    epoch(wrapper, 0, NEVER_VALID, wrapper)
    with pytest.warns(UserWarning, match="can rank") as caught:
        wrapper.on_train_epoch_start(1)
    assert len(caught) == 2

"""The warm-up wrapper: which loss runs when, and what the hooks do to the main loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imbalanced_losses import LossWarmupWrapper, ScheduleConfig, ScheduleState, SmoothAPLoss
from imbalanced_losses.schedule import main_weight
from tests.modules.recorders import (
    LOGITS,
    MAIN_VALUE,
    TARGETS,
    WARMUP_VALUE,
    WEIGHT,
    CatchAllRecorder,
    MainLoss,
    Recorder,
    WeightedRecorder,
    bits,
    make,
    save_and_load,
    train,
)

# --- which loss runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "weights"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 2}, [0, 0, 1, 1, 1, 1]),
        ({"blend_steps": 3}, [0.25, 0.5, 0.75, 1, 1, 1]),
        ({"warmup_steps": 1, "blend_steps": 3, "final_main_weight": 0.5}, [0, 0.125, 0.25, 0.375, 0.5, 0.5]),
        ({"warmup_epochs": 2}, [0, 0, 0, 0, 1, 1]),
        ({"warmup_epochs": 1, "blend_epochs": 1}, [0, 0, 0.5, 0.5, 1, 1]),
    ],
)
def test_the_loss_follows_the_weight(settings: dict[str, Any], weights: list[float]) -> None:
    wrapper = make(**settings)
    losses = [float(loss) for loss in train(wrapper, range(6), steps_per_epoch=2)]
    assert losses == [WARMUP_VALUE + weight * (MAIN_VALUE - WARMUP_VALUE) for weight in weights]
    assert len(wrapper.warmup_loss.calls) == sum(weight < 1 for weight in weights)
    assert len(wrapper.main_loss.calls) == sum(weight > 0 for weight in weights)


def test_properties_tell_the_phase() -> None:
    wrapper = make(warmup_epochs=1, blend_epochs=1, temp_start=1.0, temp_end=0.25, temp_decay_steps=2)
    seen = []
    for step in range(6):
        train(wrapper, [step], steps_per_epoch=2)
        assert wrapper.ap_weight == wrapper.main_weight
        seen.append((wrapper.in_warmup, wrapper.in_blend, wrapper.main_weight, wrapper.current_temperature))
    warmup, blend, main = (True, False, 0.0, 1.0), (False, True, 0.5), (False, False, 1.0, 0.25)
    assert seen == [warmup, warmup, (*blend, 1.0), (*blend, 0.5), main, main]


def test_state_and_config_are_those_of_the_pure_functions() -> None:
    wrapper = make(warmup_epochs=1, blend_epochs=2, temp_decay_steps=5)
    assert wrapper.config == ScheduleConfig(warmup_epochs=1, blend_epochs=2, temp_decay_steps=5)
    train(wrapper, range(5))
    state = wrapper.schedule_state
    assert isinstance(state, ScheduleState)
    assert (int(state.epoch), int(state.step), int(state.switch_step)) == (1, 4, 3)
    assert float(main_weight(state, wrapper.config)) == wrapper.main_weight


def test_gradients_are_mixed_like_values() -> None:
    wrapper = make(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1, queue_size=0), blend_epochs=2, temp_start=0.5)
    wrapper.on_train_epoch_start(0)
    wrapper.on_train_batch_start(0)
    logits, targets = torch.randn(6, requires_grad=True), torch.tensor([1.0, 0, 0, 1, 0, 0])

    def gradient(loss_fn: nn.Module) -> Tensor:
        return torch.autograd.grad(loss_fn(logits, targets), logits)[0]

    expected = 2 / 3 * gradient(wrapper.warmup_loss) + 1 / 3 * gradient(wrapper.main_loss)
    torch.testing.assert_close(gradient(wrapper), expected)


class TupleLoss(MainLoss):
    def forward(self, logits: Tensor, targets: Tensor, **kwargs: Any) -> Any:
        return super().forward(logits, targets), "per class", "valid"


def test_a_tuple_keeps_its_tail() -> None:
    wrapper = make(main_loss=TupleLoss(), warmup_steps=1, blend_steps=1)
    warmup, mixed, main = train(wrapper, range(3))
    assert float(warmup) == WARMUP_VALUE
    assert (float(mixed[0]), *mixed[1:]) == (2.0, "per class", "valid")
    assert (float(main[0]), *main[1:]) == (MAIN_VALUE, "per class", "valid")


@pytest.mark.parametrize(
    ("recorder", "weighted"), [(Recorder, False), (WeightedRecorder, True), (CatchAllRecorder, True)]
)
def test_keyword_arguments_go_where_they_are_wanted(recorder: type[Recorder], weighted: bool) -> None:
    wrapper = make(recorder(WARMUP_VALUE), warmup_steps=1, blend_steps=1)
    train(wrapper, range(3), sample_weight=WEIGHT, iid_mask="rows")
    assert wrapper.warmup_loss.calls == [{"sample_weight": WEIGHT} if weighted else {}] * 2
    assert wrapper.main_loss.calls == [{"sample_weight": WEIGHT, "iid_mask": "rows"}] * 2


def test_a_wrong_batch_in_the_blend_leaves_the_queue_as_it_was() -> None:
    wrapper = make(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1, queue_size=8), blend_epochs=1)
    train(wrapper, range(2))
    before = bits(wrapper.main_loss.queue_state)
    with pytest.raises(ValueError, match="Target size"):
        wrapper(torch.zeros(4), torch.zeros(4, 1))  # fits the ranking loss, not the other one
    assert bits(wrapper.main_loss.queue_state) == before


# --- what the hooks do to the main loss -------------------------------------------------------------------------------


class PropertyLoss(MainLoss):
    def __init__(self) -> None:
        self.written: list[float] = []
        super().__init__()

    @property
    def temperature(self) -> Tensor:
        return torch.tensor(self.written[-1])

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.written.append(value)


class BufferLoss(MainLoss):
    def __init__(self) -> None:
        super().__init__()
        del self.temperature
        self.register_buffer("temperature", torch.tensor(7.0))


class ParameterLoss(MainLoss):
    def __init__(self) -> None:
        super().__init__()
        del self.temperature
        self.temperature = nn.Parameter(torch.tensor(7.0), requires_grad=False)


def smooth_ap_loss() -> nn.Module:
    return SmoothAPLoss(num_classes=1, queue_size=8)


@pytest.mark.parametrize(
    ("main_loss", "filled"),
    [(MainLoss, False), (PropertyLoss, False), (BufferLoss, True), (ParameterLoss, True), (smooth_ap_loss, True)],
)
def test_the_temperature_is_written_into_the_main_loss(main_loss: Any, filled: bool) -> None:
    wrapper = make(main_loss=main_loss(), warmup_steps=2, temp_start=1.0, temp_end=0.25, temp_decay_steps=2)
    held = wrapper.main_loss.temperature
    assert float(held) == 1.0
    seen = []
    for step in range(6):
        train(wrapper, [step])
        seen.append(float(wrapper.main_loss.temperature))
        assert seen[-1] == wrapper.current_temperature
    assert seen == [1.0, 1.0, 1.0, 0.5, 0.25, 0.25]
    # a new tensor would cost a compilation, and drop out of the optimiser or the state_dict
    assert (wrapper.main_loss.temperature is held) == filled


@pytest.mark.parametrize(
    ("settings", "resets"),
    [
        ({}, [0, 0, 0, 0, 0, 0, 0, 0]),
        ({"warmup_epochs": 1}, [0, 0, 1, 1, 1, 1, 1, 1]),
        ({"warmup_epochs": 1, "blend_epochs": 1}, [0, 0, 1, 1, 1, 1, 1, 1]),
        ({"warmup_steps": 3, "blend_steps": 2}, [0, 0, 0, 1, 1, 1, 1, 1]),
        ({"reset_queue_each_epoch": True}, [1, 1, 2, 2, 3, 3, 4, 4]),
        ({"warmup_epochs": 1, "reset_queue_each_epoch": True}, [0, 0, 1, 1, 2, 2, 3, 3]),
        ({"warmup_steps": 3, "reset_queue_each_epoch": True}, [0, 0, 0, 1, 2, 2, 3, 3]),
    ],
)
def test_the_queue_is_reset_once_when_warmup_ends(settings: dict[str, Any], resets: list[int]) -> None:
    wrapper = make(**settings)
    seen = []
    for step in range(8):
        train(wrapper, [step], steps_per_epoch=2)
        seen.append(wrapper.main_loss.resets)
    assert seen == resets


def test_leaving_warmup_by_a_leap_resets_too() -> None:
    wrapper = make(warmup_epochs=2, blend_epochs=1)
    wrapper.on_train_epoch_start(7)
    wrapper.on_train_epoch_start(8)
    assert wrapper.main_loss.resets == 1


@pytest.mark.parametrize("cut", range(6))
def test_the_reset_happens_once_across_a_checkpoint(cut: int) -> None:
    first, second = make(warmup_epochs=1, blend_epochs=1), make(warmup_epochs=1, blend_epochs=1)
    train(first, range(cut), steps_per_epoch=2)
    second.load_state_dict(save_and_load(first))
    train(second, range(cut, 6), steps_per_epoch=2)
    assert first.main_loss.resets + second.main_loss.resets == 1


@pytest.mark.parametrize(
    ("counter", "error", "message"),
    [
        (-1, ValueError, "at least 0, got -1"),
        (torch.tensor(-3), ValueError, "at least 0, got -3"),
        (torch.tensor(2.0), TypeError, "of an integer dtype, got torch.float32"),
        (True, TypeError, "to be an int, got True"),
    ],
)
@pytest.mark.parametrize("hook", ["on_train_epoch_start", "on_train_batch_start"])
def test_a_refused_counter_changes_nothing(hook: str, counter: Any, error: type[Exception], message: str) -> None:
    wrapper = make(warmup_epochs=1)
    train(wrapper, range(2))
    before = bits(wrapper.schedule_state)
    with pytest.raises(error, match=message):
        getattr(wrapper, hook)(counter)
    assert bits(wrapper.schedule_state) == before
    assert wrapper.in_warmup


# --- steps of its own -------------------------------------------------------------------------------------------------

IN_STEPS = {"warmup_steps": 2, "blend_steps": 2, "temp_start": 1.0, "temp_end": 0.25, "temp_decay_steps": 2}


def call(wrapper: Any, times: int) -> list[tuple[float, float, float, int]]:
    """What each call gave, without any hook."""
    seen = []
    for _ in range(times):
        loss = float(wrapper(LOGITS, TARGETS))
        seen.append((loss, wrapper.main_weight, wrapper.current_temperature, int(wrapper.step)))
    return seen


def hooked(wrapper: Any, steps: range) -> list[tuple[float, float, float, int]]:
    seen = []
    for step in steps:
        wrapper.on_train_batch_start(step)
        seen.append((float(wrapper(LOGITS, TARGETS)), wrapper.main_weight, wrapper.current_temperature, step))
    return seen


@pytest.mark.parametrize("settings", [{}, IN_STEPS, {"blend_steps": 3}, {"warmup_steps": 1}])
def test_auto_step_is_the_run_with_hooks(settings: dict[str, Any]) -> None:
    alone, driven = make(**settings, auto_step=True), make(**settings)
    assert call(alone, 7) == hooked(driven, range(7))
    assert alone.main_loss.resets == driven.main_loss.resets == ("warmup_steps" in settings)


def test_auto_step_stands_still_outside_training_and_before_it() -> None:
    wrapper = make(blend_steps=1, auto_step=True)
    assert (wrapper.main_weight, wrapper.in_blend) == (0.5, True)  # as step 0
    wrapper.eval()
    assert [loss for loss, *_ in call(wrapper, 3)] == [2.0, 2.0, 2.0]
    assert [loss for loss, *_ in call(wrapper.train(), 3)] == [2.0, 3.0, 3.0]


@pytest.mark.parametrize("n_before", [0, 1, 3, 5])
def test_auto_step_resumes_where_it_was(n_before: int) -> None:
    whole, first, second = (make(**IN_STEPS, auto_step=True) for _ in range(3))
    call(first, n_before)
    second.load_state_dict(save_and_load(first))
    assert call(second, 8 - n_before) == call(whole, 8)[n_before:]


def test_the_hook_takes_over_from_auto_step() -> None:
    wrapper = make(**IN_STEPS, auto_step=True)
    call(wrapper, 2)
    wrapper.on_train_batch_start(0)
    assert [step for *_, step in call(wrapper, 3)] == [0, 0, 0]


def test_a_call_that_raises_is_no_step() -> None:
    main_loss = SmoothAPLoss(num_classes=1)
    wrapper = make(nn.BCEWithLogitsLoss(), main_loss, **IN_STEPS, auto_step=True)
    wrapper(LOGITS, TARGETS)
    before = bits(wrapper.state_dict())
    with pytest.raises(ValueError, match="input size"):
        wrapper(LOGITS, TARGETS[:2])
    assert bits(wrapper.state_dict()) == before
    wrapper(LOGITS, TARGETS)
    assert int(wrapper.step) == 1


def test_auto_step_compiles_outside_a_full_graph() -> None:
    wrapper = make(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1), warmup_steps=2, blend_steps=1, auto_step=True)
    driven = make(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1), warmup_steps=2, blend_steps=1)
    compiled = torch.compile(wrapper, backend="eager")
    logits, targets = torch.randn(8), torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])
    for step in range(5):
        driven.on_train_batch_start(step)
        torch.testing.assert_close(compiled(logits, targets), driven(logits, targets))
    assert int(wrapper.step) == 4


@pytest.mark.parametrize("settings", [{"warmup_epochs": 1}, {"blend_epochs": 1}])
def test_auto_step_cannot_know_epochs(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected auto_step with warmup_steps and blend_steps, got phases counted in"):
        make(**settings, auto_step=True)


# --- construction and warnings ----------------------------------------------------------------------------------------


class NoTemperature(Recorder):
    def reset_queue(self) -> None: ...


class NoQueue(Recorder):
    temperature = 1.0


@pytest.mark.parametrize(
    ("main_loss", "missing"),
    [(NoTemperature, "temperature"), (NoQueue, "reset_queue"), (Recorder, "temperature and no reset_queue")],
)
def test_a_plain_main_loss_works_with_one_warning(main_loss: type[Recorder], missing: str) -> None:
    with pytest.warns(UserWarning, match=f"{main_loss.__name__} has no {missing}: ") as caught:
        wrapper = LossWarmupWrapper(Recorder(WARMUP_VALUE), main_loss(MAIN_VALUE), warmup_epochs=1)
    assert [warning.filename for warning in caught] == [__file__]
    assert (wrapper.current_temperature is None) == (main_loss is not NoQueue)
    assert [float(loss) for loss in train(wrapper, range(4), steps_per_epoch=2)] == [1, 1, 3, 3]


@pytest.mark.parametrize("settings", [{"warmup_epochs": 1}, {"blend_epochs": 1}])
def test_a_missing_epoch_hook_is_told_once(settings: dict[str, int]) -> None:
    wrapper = make(**settings)
    wrapper.eval()(LOGITS, TARGETS)
    wrapper.train().on_train_batch_start(0)
    with pytest.warns(
        UserWarning, match="expected a call of on_train_epoch_start before each training epoch"
    ) as caught:
        wrapper(LOGITS, TARGETS)
    assert [warning.filename for warning in caught] == [__file__]
    wrapper(LOGITS, TARGETS)  # warnings are errors: it would raise if it warned again


def test_resets_by_epoch_want_the_epoch_hook() -> None:
    wrapper = make(warmup_steps=1, reset_queue_each_epoch=True, auto_step=True)
    with pytest.warns(UserWarning, match="on_train_epoch_start .* does not advance"):
        wrapper(LOGITS, TARGETS)
    wrapper(LOGITS, TARGETS)  # warnings are errors: it would raise if it warned again


@pytest.mark.parametrize("settings", [{}, {"warmup_steps": 1, "blend_steps": 1}])
def test_only_what_moves_by_epochs_wants_the_epoch_hook(settings: dict[str, int]) -> None:
    wrapper = make(**settings)
    wrapper.on_train_batch_start(0)
    wrapper(LOGITS, TARGETS)


def test_a_run_resumed_within_an_epoch_is_not_asked_for_the_epoch_hook() -> None:
    first, second = make(warmup_epochs=1), make(warmup_epochs=1)
    train(first, range(2))
    second.load_state_dict(save_and_load(first))
    second.on_train_batch_start(2)
    second(LOGITS, TARGETS)


def test_stepwise_warmup_without_the_batch_hook_is_told() -> None:
    with pytest.warns(UserWarning, match="on_train_batch_start .* does not advance"):
        make(warmup_steps=1)(LOGITS, TARGETS)


def test_a_missing_batch_hook_is_told_once() -> None:
    wrapper = make(warmup_epochs=1)
    wrapper.on_train_epoch_start(0)
    wrapper(LOGITS, TARGETS)
    wrapper.on_train_epoch_start(1)
    wrapper.eval()(LOGITS, TARGETS)
    wrapper.train()
    with pytest.warns(
        UserWarning, match="expected a call of on_train_batch_start before each training batch"
    ) as caught:
        wrapper(LOGITS, TARGETS)
    assert [warning.filename for warning in caught] == [__file__]
    wrapper(LOGITS, TARGETS)  # warnings are errors: it would raise if it warned again


def test_a_missing_batch_hook_is_told_after_a_resume() -> None:
    first, second = make(), make()
    train(first, range(3))
    second.load_state_dict(save_and_load(first))
    with pytest.warns(UserWarning, match="on_train_batch_start"):
        second(LOGITS, TARGETS)


def test_only_what_moves_by_steps_wants_the_batch_hook() -> None:
    with pytest.warns(UserWarning, match="has no temperature"):
        by_epochs, by_steps = (
            make(main_loss=NoTemperature(MAIN_VALUE), **{mode: 1}) for mode in ("blend_epochs", "blend_steps")
        )
    by_epochs.on_train_epoch_start(0)
    by_epochs(LOGITS, TARGETS)
    with pytest.warns(UserWarning, match="does not advance"):
        by_steps(LOGITS, TARGETS)


def test_losses_must_be_callable() -> None:
    with pytest.raises(TypeError, match=r"expected warmup_loss to be an nn\.Module or another callable, got str"):
        LossWarmupWrapper("bce", MainLoss())
    with pytest.raises(TypeError, match=r"expected main_loss to be an nn\.Module or another callable, got Tensor"):
        LossWarmupWrapper(MainLoss(), torch.zeros(()))


def test_eval_mode_keeps_to_the_phase() -> None:
    wrapper = make(warmup_epochs=1, blend_epochs=1)
    for epoch, expected in enumerate([1.0, 2.0, 3.0]):
        train(wrapper, [2 * epoch], steps_per_epoch=2)
        assert float(wrapper.eval()(LOGITS, TARGETS)) == expected
        wrapper.train()


@pytest.mark.parametrize("value", [None, False, True])
def test_gather_distributed_overrides_that_of_the_losses(value: bool | None) -> None:
    inner, plain = MainLoss(), Recorder(WARMUP_VALUE)
    inner.gather_distributed = "untouched"  # type: ignore[assignment]
    expected = "untouched" if value is None else value
    assert make(plain, inner, gather_distributed=value).main_loss.gather_distributed == expected
    assert not hasattr(plain, "gather_distributed")
    make(inner, MainLoss(), gather_distributed=value)
    assert inner.gather_distributed == expected


@pytest.mark.parametrize(
    "settings", [{"warmup_epochs": 1, "blend_steps": 1}, {"temp_end": 0}, {"final_main_weight": 2}]
)
def test_a_wrong_schedule_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        make(**settings)

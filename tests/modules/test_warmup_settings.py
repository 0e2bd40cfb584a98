"""The warm-up wrapper's parameters as attributes, and losses that are any callable."""

from __future__ import annotations

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from imbalanced_losses import LossWarmupWrapper, ScheduleConfig, SmoothAPLoss
from tests.modules.recorders import (
    LOGITS,
    MAIN_VALUE,
    TARGETS,
    WARMUP_VALUE,
    WEIGHT,
    MainLoss,
    Recorder,
    WeightedRecorder,
    bits,
    make,
    save_and_load,
    train,
)

IN_EPOCHS = {"warmup_epochs": 3, "blend_epochs": 2, "temp_start": 0.5, "temp_end": 0.25, "temp_decay_steps": 7}
IN_STEPS = {"warmup_steps": 3, "blend_steps": 2, "final_main_weight": 0.5, "auto_step": True}
OTHERS = {"reset_queue_each_epoch": True, "gather_distributed": False}

# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {**IN_EPOCHS, **OTHERS}, IN_STEPS])
def test_every_parameter_is_an_attribute(settings: dict[str, Any]) -> None:
    warmup_loss, main_loss = Recorder(WARMUP_VALUE), MainLoss()
    wrapper = LossWarmupWrapper(warmup_loss, main_loss, **settings)
    assert (wrapper.warmup_loss, wrapper.main_loss) == (warmup_loss, main_loss)
    defaults = {name: getattr(ScheduleConfig(), name) for name in ScheduleConfig.__dataclass_fields__}
    defaults |= {"reset_queue_each_epoch": False, "gather_distributed": None, "auto_step": False}
    for name, value in {**defaults, **settings}.items():
        assert getattr(wrapper, name) == value, name


@pytest.mark.parametrize(
    ("before", "name", "value"),
    [
        (IN_EPOCHS, "warmup_epochs", 0),
        (IN_EPOCHS, "warmup_epochs", 5),
        (IN_EPOCHS, "blend_epochs", 0),
        ({**IN_EPOCHS, "warmup_epochs": 0}, "temp_start", 2.0),
        ({**IN_EPOCHS, "warmup_epochs": 0}, "temp_end", 0.01),
        ({**IN_EPOCHS, "warmup_epochs": 0}, "temp_decay_steps", 20),
        ({"warmup_steps": 9}, "warmup_steps", 2),
        ({"warmup_steps": 2}, "warmup_steps", 9),
        ({"blend_steps": 9}, "blend_steps", 3),
        ({"blend_steps": 9}, "final_main_weight", 0.5),
    ],
)
@pytest.mark.parametrize("main_loss", [MainLoss, functools.partial(SmoothAPLoss, num_classes=1, queue_size=4)])
def test_what_is_assigned_takes_effect(before: dict[str, Any], name: str, value: Any, main_loss: Any) -> None:
    """From the next step on, the run is that of a wrapper that was made so."""
    assigned, made = make(main_loss=main_loss(), **before), make(main_loss=main_loss(), **{**before, name: value})
    for wrapper in (assigned, made):
        train(wrapper, range(5))
    setattr(assigned, name, value)
    assert getattr(assigned, name) == value
    assert assigned.config == made.config
    for wrapper in (assigned, made):
        assert (wrapper.in_warmup, wrapper.in_blend, wrapper.main_weight) == (
            made.in_warmup,
            made.in_blend,
            made.main_weight,
        )
    assert assigned.current_temperature == made.current_temperature == float(assigned.main_loss.temperature)
    train(assigned, range(5, 9)), train(made, range(5, 9))
    assert assigned.main_weight == made.main_weight
    assert assigned.current_temperature == made.current_temperature


def test_a_config_may_be_assigned_as_a_whole() -> None:
    wrapper = make(warmup_epochs=1)
    wrapper.config = ScheduleConfig(blend_steps=3, temp_start=0.3)
    assert (wrapper.in_blend, wrapper.main_weight, wrapper.warmup_epochs) == (True, 0.25, 0)
    assert wrapper.main_loss.temperature == pytest.approx(0.3)


def test_the_queue_is_emptied_where_an_assignment_ends_warmup() -> None:
    wrapper = make(warmup_epochs=3)
    train(wrapper, range(3))
    wrapper.warmup_epochs = 0
    wrapper.temp_end = 0.001
    assert wrapper.main_loss.resets == 1


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("warmup_epochs", -1, ValueError, "warmup_epochs to be at least 0, got -1"),
        ("blend_epochs", 1.5, TypeError, "blend_epochs to be an int"),
        ("temp_start", 0.0, ValueError, "temp_start to be a finite number above 0"),
        ("final_main_weight", 2.0, ValueError, "final_main_weight in"),
        ("warmup_steps", 3, ValueError, "phases in epochs or in steps"),
        ("auto_step", True, ValueError, "expected auto_step with warmup_steps"),
        ("config", {"warmup_epochs": 2}, TypeError, "to be a ScheduleConfig, got dict"),
        ("warmup_loss", None, TypeError, "warmup_loss to be an nn.Module or another callable, got NoneType"),
        ("main_loss", 3.0, TypeError, "main_loss to be an nn.Module or another callable, got float"),
    ],
)
def test_a_wrong_assignment_raises_and_changes_nothing(
    name: str, value: Any, error: type[Exception], message: str
) -> None:
    wrapper = make(warmup_epochs=1)
    before = getattr(wrapper, name)
    with pytest.raises(error, match=message):
        setattr(wrapper, name, value)
    assert getattr(wrapper, name) is before
    assert wrapper.in_warmup


def test_phases_in_epochs_are_refused_with_auto_step() -> None:
    wrapper = make(auto_step=True)
    with pytest.raises(ValueError, match="expected auto_step with warmup_steps"):
        wrapper.warmup_epochs = 1
    assert wrapper.warmup_epochs == 0


def test_auto_step_may_be_switched_on_before_and_in_a_run() -> None:
    made, assigned, later = make(warmup_steps=2, auto_step=True), make(warmup_steps=2), make(warmup_steps=2)
    assigned.auto_step = True
    assert [float(w(LOGITS, TARGETS)) for w in (made, assigned) for _ in range(4)] == [1, 1, 3, 3] * 2
    later.load_state_dict(save_and_load(made))
    later.auto_step = True
    later(LOGITS, TARGETS)
    assert int(later.step) == 4
    later.auto_step = False
    with pytest.warns(UserWarning, match="on_train_batch_start"):
        later(LOGITS, TARGETS)
    assert int(later.step) == 4


def test_gather_distributed_overrides_when_assigned() -> None:
    wrapper = make(SmoothAPLoss(num_classes=1))
    wrapper.gather_distributed = False
    assert wrapper.warmup_loss.gather_distributed is wrapper.main_loss.gather_distributed is False
    wrapper.gather_distributed = None  # leaves them as they are
    assert wrapper.main_loss.gather_distributed is False
    wrapper.gather_distributed = True
    wrapper.main_loss = MainLoss()
    assert wrapper.main_loss.gather_distributed is True


def test_another_loss_takes_over() -> None:
    wrapper = make(warmup_steps=2, blend_steps=1, temp_start=0.5, temp_end=0.25, temp_decay_steps=1)
    train(wrapper, range(5), sample_weight=WEIGHT)
    wrapper.main_loss, wrapper.warmup_loss = SmoothAPLoss(num_classes=1), WeightedRecorder(WARMUP_VALUE)
    assert wrapper.current_temperature == float(wrapper.main_loss.temperature) == 0.25
    wrapper.final_main_weight = 0.5
    wrapper(LOGITS, TARGETS, sample_weight=WEIGHT)
    assert wrapper.warmup_loss.calls == [{"sample_weight": WEIGHT}]
    for loss in (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss()):  # a function in a module's place and back
        wrapper.warmup_loss = loss
        wrapper(LOGITS, TARGETS)
    with pytest.warns(UserWarning, match="Recorder has no temperature and no reset_queue") as caught:
        wrapper.main_loss = Recorder(MAIN_VALUE)
    assert caught[0].filename == __file__
    assert wrapper.current_temperature is None


# --- any callable -----------------------------------------------------------------------------------------------------


class Counted:
    """A loss that is no module, with what the wrapper looks for."""

    temperature = 7.0

    def __init__(self) -> None:
        self.resets = 0

    def __call__(self, logits: Tensor, targets: Tensor, **_: Any) -> Tensor:
        return MAIN_VALUE + 0 * logits.sum()

    def reset_queue(self) -> None:
        self.resets += 1


def weighted(logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, targets, weight=sample_weight)


class NoSignature:
    __signature__ = "none"

    def __call__(self, *arguments: Any, **keywords: Any) -> Tensor:
        assert not keywords
        return F.binary_cross_entropy_with_logits(*arguments)


@pytest.mark.parametrize(
    ("loss", "takes_weights"),
    [
        (F.binary_cross_entropy_with_logits, False),
        (nn.BCEWithLogitsLoss(), False),
        (functools.partial(F.binary_cross_entropy_with_logits, reduction="mean"), False),
        (lambda logits, targets: F.binary_cross_entropy_with_logits(logits, targets), False),
        (nn.BCEWithLogitsLoss().forward, False),
        (torch.compile(nn.BCEWithLogitsLoss(), backend="eager"), False),
        (NoSignature(), False),
        (weighted, True),
        (functools.partial(weighted), True),
    ],
    ids=[
        "function",
        "module",
        "partial",
        "lambda",
        "method",
        "compiled",
        "no-signature",
        "weighted",
        "weighted-partial",
    ],
)
def test_a_warmup_loss_is_any_callable(loss: Any, takes_weights: bool) -> None:
    wrapper = make(loss, SmoothAPLoss(num_classes=1), warmup_steps=1, blend_steps=1)
    logits, targets, weight = torch.randn(4), torch.tensor([1.0, 0, 0, 1]), torch.tensor([1.0, 2, 3, 4])
    expected = F.binary_cross_entropy_with_logits(logits, targets, weight=weight if takes_weights else None)
    wrapper.on_train_batch_start(0)
    torch.testing.assert_close(wrapper(logits, targets, sample_weight=weight), expected)
    wrapper.on_train_batch_start(1)
    main = SmoothAPLoss(num_classes=1, temperature=0.05)(logits, targets, sample_weight=weight)
    torch.testing.assert_close(wrapper(logits, targets, sample_weight=weight), (expected + main) / 2)


def test_a_main_loss_is_any_callable() -> None:
    counted = Counted()
    wrapper = make(main_loss=counted, warmup_steps=2, temp_start=1.0, temp_end=0.25, temp_decay_steps=2)
    assert [float(loss) for loss in train(wrapper, range(5))] == [1, 1, 3, 3, 3]
    assert (counted.resets, counted.temperature, wrapper.current_temperature) == (1, 0.25, 0.25)
    train(wrapper, [0])
    assert counted.resets == 2
    with pytest.warns(UserWarning, match="function has no temperature and no reset_queue"):
        plain = make(main_loss=F.binary_cross_entropy_with_logits)
    plain(LOGITS, TARGETS)
    assert plain.current_temperature is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda wrapper: pickle.loads(pickle.dumps(wrapper))])
def test_a_wrapper_of_functions_is_copied_and_pickled(duplicate: Any) -> None:
    wrapper = make(F.binary_cross_entropy_with_logits, SmoothAPLoss(num_classes=1), warmup_steps=2, auto_step=True)
    twin = duplicate(wrapper)
    logits, targets = torch.randn(4), torch.tensor([1.0, 0, 0, 1])
    for _ in range(3):
        assert torch.equal(twin(logits, targets), wrapper(logits, targets))


def test_a_wrapper_of_functions_compiles() -> None:
    wrapper = make(functools.partial(F.binary_cross_entropy_with_logits), SmoothAPLoss(num_classes=1), blend_steps=3)
    eager = copy.deepcopy(wrapper)
    compiled = torch.compile(wrapper, backend="aot_eager", fullgraph=True)
    logits, targets = torch.randn(4), torch.tensor([1.0, 0, 0, 1])
    for step in range(3):
        wrapper.on_train_batch_start(step), eager.on_train_batch_start(step)
        torch.testing.assert_close(compiled(logits, targets), eager(logits, targets))


def tuple_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, str]:
    return WARMUP_VALUE + 0 * logits.sum(), "parts"


def test_a_warmup_loss_that_gives_a_tuple_counts_with_its_first_element() -> None:
    wrapper = make(tuple_loss, warmup_steps=1, blend_steps=1)
    assert [float(loss) for loss in train(wrapper, range(3))] == [1, 2, 3]


# --- temperature ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"warmup_epochs": 1}])
def test_the_current_temperature_is_the_main_losss_own(settings: dict[str, int]) -> None:
    wrapper = make(main_loss=SmoothAPLoss(num_classes=1), **settings)
    train(wrapper, range(4))
    wrapper.main_loss.temperature = 0.75
    assert wrapper.current_temperature == 0.75
    assert float(wrapper.diagnostics()["temperature"]) == 0.75 if settings == {} else True
    wrapper.on_train_batch_start(5)
    assert wrapper.current_temperature < 0.75


@pytest.mark.parametrize(("settings", "elapsed"), [({}, 500), ({"warmup_steps": 100}, 400), ({"blend_steps": 5}, 500)])
def test_temperature_decays_from_a_switch_that_is_known(settings: dict[str, int], elapsed: int) -> None:
    wrapper = make(**settings, temp_start=1.0, temp_end=0.1, temp_decay_steps=1000)
    wrapper.on_train_batch_start(500)
    assert wrapper.current_temperature == pytest.approx(0.1 ** (elapsed / 1000))


def test_a_temperature_outside_the_buffers_follows_them() -> None:
    """As when ``from_pretrained`` or a broadcast fills them."""
    source, target = make(temp_decay_steps=9), make(temp_decay_steps=9)
    train(source, range(6))
    with torch.no_grad():
        for name, buffer in target.named_buffers():
            buffer.copy_(getattr(source, name))
    assert target.current_temperature == target.main_loss.temperature == source.main_loss.temperature
    assert bits(target.state_dict()) == bits(source.state_dict())


def test_the_temperature_is_told_without_asking_the_device() -> None:
    """On ``meta`` there is nothing to ask for."""
    with torch.device("meta"):
        wrapper = make(main_loss=SmoothAPLoss(num_classes=1), temp_start=1.0, temp_end=0.25, temp_decay_steps=2)
    wrapper.on_train_batch_start(1)
    assert wrapper.current_temperature == 0.5

"""NumPy scalars and 0-dim tensors are settings wherever a number is, and are kept as Python's own numbers."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from imbalanced_losses import (
    LossWarmupWrapper,
    RecallAtQuantileConfig,
    RecallAtQuantileLoss,
    SigmoidFocalConfig,
    SmoothAPConfig,
    SmoothAPLoss,
    SoftmaxFocalConfig,
    SoftmaxFocalLoss,
    init_queue,
    metrics,
    smooth_ap,
)
from imbalanced_losses.distributed import find_ranks
from imbalanced_losses.schedule import ScheduleConfig, init_schedule, preview, start_epoch, start_step
from tests import registry

RANKING = {"num_classes": 3, "temperature": 0.25, "ignore_index": -1, "max_pool_size": 64, "multilabel": True}
SCHEDULE = {"temp_start": 0.5, "temp_end": 0.25, "temp_decay_steps": 100, "final_main_weight": 0.5}


def numbers(other: Mapping[str, Any], needs_others: Container[str] = ()) -> dict[str, Any]:
    return {
        name: value for name, value in other.items() if type(value) in (bool, int, float) and name not in needs_others
    }


OF_LOSSES: list[tuple[type, type, dict[str, Any]]] = [
    *((loss.config, loss.shell, {**RANKING, **numbers(loss.other, loss.needed)}) for loss in registry.RANKING.values()),
    *((loss.config, loss.shell, numbers(loss.other)) for loss in registry.ELEMENTWISE.values() if not loss.required),
]
CONFIGS: list[tuple[type, dict[str, Any]]] = [
    *((config, settings) for config, _, settings in OF_LOSSES),
    (ScheduleConfig, {**SCHEDULE, "warmup_epochs": 2, "blend_epochs": 1}),
    (ScheduleConfig, {**SCHEDULE, "warmup_steps": 2, "blend_steps": 1}),
]
MODULES: list[tuple[type, dict[str, Any]]] = [
    (shell, {**settings, **({"queue_size": 8} if "num_classes" in settings else {})})
    for _, shell, settings in OF_LOSSES
]
NUMBERS = [(config, settings, name) for config, settings in CONFIGS for name in settings]
every_number = pytest.mark.parametrize(
    ("config", "settings", "name"), NUMBERS, ids=[f"{config.__name__}.{name}" for config, _, name in NUMBERS]
)


def as_numpy(value: Any) -> Any:
    return {bool: np.bool_, int: np.int64, float: np.float32}[type(value)](value)


FORMS: dict[str, Callable[[Any], Any]] = {"numpy": as_numpy, "array": np.array, "tensor": torch.tensor}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=list(FORMS))


@every_form
@pytest.mark.parametrize(("config", "settings"), CONFIGS)
def test_configurations_keep_python_numbers(config: Any, settings: dict[str, Any], form: Callable[[Any], Any]) -> None:
    expected = config(**settings)
    built = config(**{name: form(value) for name, value in settings.items()})
    assert built == expected
    assert hash(built) == hash(expected)
    assert repr(built) == repr(expected)
    assert pickle.loads(pickle.dumps(built)) == expected
    for field in dataclasses.fields(built):
        assert type(getattr(built, field.name)) in (bool, int, float, str, tuple, type(None))


@every_form
@pytest.mark.parametrize(("module", "settings"), MODULES)
def test_modules_take_them(module: Any, settings: dict[str, Any], form: Callable[[Any], Any]) -> None:
    expected, built = module(**settings), module(**{name: form(value) for name, value in settings.items()})
    assert repr(built) == repr(expected)
    assert built.config == expected.config
    state = built.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.state_dict().items())
    if "queue_size" in settings:
        assert type(built.queue_size) is int


@every_number
@pytest.mark.parametrize("wrong", [torch.tensor([1]), np.array([1]), "1", [1], torch.ones(2, 2), 1j], ids=repr)
def test_what_is_no_number_is_refused(config: Any, settings: dict[str, Any], name: str, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"expected {name} to be (a number|an int|True or False), got "):
        config(**{**settings, name: wrong})


@every_number
@pytest.mark.parametrize("form", [bool, np.bool_, np.array, torch.tensor])
def test_flags_are_no_numbers(config: Any, settings: dict[str, Any], name: str, form: Any) -> None:
    flag = form(True)
    if type(settings[name]) is bool:
        assert getattr(config(**{**settings, name: flag}), name) is True
    else:
        with pytest.raises(TypeError, match=f"expected {name} to be .*, got .*True"):
            config(**{**settings, name: flag})


@every_number
def test_parameters_are_no_settings(config: Any, settings: dict[str, Any], name: str) -> None:
    """They would be copied, and never trained."""
    parameter = torch.nn.Parameter(torch.tensor(0.5))
    with pytest.raises(TypeError, match=f"expected {name} .*requires grad.*detach"):
        config(**{**settings, name: parameter})
    with pytest.raises(TypeError, match=r"expected alpha .*requires grad"):
        SoftmaxFocalConfig(alpha=torch.nn.Parameter(torch.ones(2)))


@every_number
def test_tensors_on_meta_are_no_settings(config: Any, settings: dict[str, Any], name: str) -> None:
    """They hold no values."""
    with pytest.raises(TypeError, match=f"expected {name} to be .*, got a tensor on meta, .*: pass a Python number"):
        config(**{**settings, name: torch.tensor(0.5, device="meta")})


def test_class_weights_on_meta() -> None:
    message = "expected alpha to be a sequence of numbers, got a tensor on meta, .*: pass a Python list"
    for build in (SoftmaxFocalConfig, SoftmaxFocalLoss):
        with pytest.raises(TypeError, match=message):
            build(alpha=torch.ones(3, device="meta"))
    with torch.device("meta"):
        with pytest.raises(TypeError, match=message):
            SoftmaxFocalLoss(alpha=torch.ones(2))
        loss_fn = SoftmaxFocalLoss(alpha=[1.0, 2.0])
    assert loss_fn.alpha is not None
    assert loss_fn.alpha.is_meta
    loss_fn.to_empty(device="cpu").reset_parameters()
    assert loss_fn.alpha.tolist() == [1, 2]


@every_form
def test_ranges_show_the_number(form: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match=r"got 1\.5$"):
        SoftmaxFocalConfig(label_smoothing=form(1.5))
    with pytest.raises(ValueError, match=r"got -0\.5$"):
        ScheduleConfig(final_main_weight=form(-0.5))


@pytest.mark.parametrize("value", [2.5, np.float32(2.5), torch.tensor(2.5), np.float64(2.0)], ids=repr)
def test_a_float_is_no_integer(value: Any) -> None:
    for name in ("num_classes", "max_pool_size", "ignore_index"):
        with pytest.raises(TypeError, match=f"expected {name} to be an int, got "):
            SmoothAPConfig(**{**RANKING, name: value})
    with pytest.raises(TypeError, match="expected queue_size to be an int, got "):
        SmoothAPLoss(num_classes=1, queue_size=value)


@every_form
def test_ranges_hold_for_them(form: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError, match="expected num_classes to be at least 1, got 0"):
        SmoothAPConfig(num_classes=form(0))
    with pytest.raises(ValueError, match="expected gamma to be a finite number of at least 0, got -1"):
        SigmoidFocalConfig(gamma=form(-1.0))


@every_form
def test_queues(form: Callable[[Any], Any]) -> None:
    state = init_queue(form(4), form(2), multilabel=form(True), ignore_index=form(-1))
    expected = init_queue(4, 2, multilabel=True, ignore_index=-1)
    assert torch.equal(state.targets, expected.targets)
    assert state.logits.shape == (4, 2)
    with pytest.raises(TypeError, match=r"expected ignore_index to be an int, got 0\.5"):
        init_queue(4, 2, ignore_index=0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected multilabel to be True or False, got 'no'"):
        init_queue(4, 2, multilabel="no")  # type: ignore[arg-type]


@every_form
def test_metrics_and_schedules(form: Callable[[Any], Any]) -> None:
    scores, targets = torch.rand(40), torch.arange(40) % 2
    for metric, settings in (
        (metrics.recall_at_quantile, {"quantile": 0.25}),
        (metrics.partial_auc, {"alpha": 0.25, "beta": 0.5}),
        (metrics.coverage_at_budget, {"budget": 0.25}),
    ):
        own = {name: form(value) for name, value in settings.items()}
        assert torch.equal(metric(scores, targets, **own), metric(scores, targets, **settings))
    cfg = ScheduleConfig(warmup_epochs=1)
    assert torch.equal(
        preview(cfg, form(6), steps_per_epoch=form(2)).main_weight, preview(cfg, 6, steps_per_epoch=2).main_weight
    )
    state = start_step(start_epoch(init_schedule(cfg), cfg, form(3)), cfg, form(7))
    assert (state.epoch, state.step) == (3, 7)


@every_form
def test_the_wrapper(form: Callable[[Any], Any]) -> None:
    main = SmoothAPLoss(num_classes=1, queue_size=0)
    wrapper = LossWarmupWrapper(torch.nn.BCEWithLogitsLoss(), main, form(1), blend_epochs=form(1), temp_start=form(0.5))
    assert wrapper.config == ScheduleConfig(warmup_epochs=1, blend_epochs=1, temp_start=0.5)
    wrapper.on_train_epoch_start(form(1))
    wrapper.on_train_batch_start(form(5))
    assert wrapper.main_weight == 0.5
    assert wrapper.switch_step == 5


@pytest.mark.parametrize("temperature", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), 1, 0.5])
def test_temperatures_of_a_call(temperature: Any) -> None:
    logits, targets = torch.tensor([2.0, 1.0, -1.0, 0.0]), torch.tensor([1, 0, 0, 1])
    cfg, queue = SmoothAPConfig(num_classes=1), init_queue(0, 1)
    loss, _ = smooth_ap(logits, targets, queue, cfg, temperature=temperature)
    expected, _ = smooth_ap(logits, targets, queue, SmoothAPConfig(num_classes=1, temperature=float(temperature)))
    assert torch.equal(loss, expected)
    for flag in (True, np.bool_(True), torch.tensor(True)):
        with pytest.raises(TypeError, match="expected temperature"):
            smooth_ap(logits, targets, queue, cfg, temperature=flag)


def test_an_integer_temperature_can_be_lowered() -> None:
    """It made an integer buffer, which rounded what was assigned later."""
    loss_fn = SmoothAPLoss(num_classes=1, temperature=1)
    assert loss_fn.temperature.dtype == torch.float32
    loss_fn.temperature = 0.25
    assert loss_fn.temperature == 0.25


def test_class_weights_of_scalars() -> None:
    weights = [np.float32(0.5), torch.tensor(2.0), 1]
    assert SoftmaxFocalConfig(alpha=weights) == SoftmaxFocalConfig(alpha=(0.5, 2.0, 1.0))


@pytest.mark.parametrize("no", [False, np.bool_(False)])
def test_flags_of_numpy_switch_gathering_off(no: Any) -> None:
    """Even where there is a process group, which is not asked for."""
    assert find_ranks(no, None) is None


def test_compiled_code_guards_on_python_numbers() -> None:
    """The configuration comes from NumPy and tensors, also in the compiled function: one graph, no break."""
    logits, targets = torch.randn(8), (torch.arange(8) % 2)
    cfg = SmoothAPConfig(num_classes=torch.tensor(1), temperature=np.float64(0.5))
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def loss(logits: torch.Tensor) -> torch.Tensor:
        return smooth_ap(logits, targets, init_queue(0, 1), cfg)[0] * SigmoidFocalConfig(gamma=2).gamma

    assert torch.equal(loss(logits), 2 * smooth_ap(logits, targets, init_queue(0, 1), cfg)[0])
    loss(logits + 1)
    assert counter.frame_count == 1


@pytest.mark.parametrize("quantile", [0, 1, 0.0, 1.0, -0.5, 1.5, np.float32(1), torch.tensor(0.0)])
def test_quantile_is_strictly_between_0_and_1(quantile: Any) -> None:
    """At 0 or 1 no threshold splits the rows: the loss would look at one row or at all of them."""
    for build in (RecallAtQuantileConfig, RecallAtQuantileLoss):
        with pytest.raises(ValueError, match=r"expected quantile strictly between 0 and 1, got .*: use the share of"):
            build(num_classes=1, quantile=quantile)

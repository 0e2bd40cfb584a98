"""The schedule against its own description in Python numbers, and as pure functions under every transform."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import optree
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils import _pytree

from imbalanced_losses import ScheduleConfig, ScheduleState, stack_states, unstack_states
from imbalanced_losses.schedule import (
    PHASES,
    blend,
    init_schedule,
    main_weight,
    phase,
    preview,
    start_epoch,
    start_step,
    temperature,
)
from tests.default_dtype import default_dtype

SHORT = ScheduleConfig(warmup_epochs=2, blend_epochs=3, temp_start=1.0, temp_end=0.1, temp_decay_steps=7)
IN_STEPS = ScheduleConfig(warmup_steps=4, blend_steps=5, temp_decay_steps=6, final_main_weight=0.7)
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
BOTH_MODES = pytest.mark.parametrize("cfg", [SHORT, IN_STEPS], ids=["epochs", "steps"])


# --- the schedule in Python numbers -----------------------------------------------------------------------------------


@dataclass
class PlainSchedule:
    """The sentences of the contract, one by one."""

    cfg: ScheduleConfig
    epoch: int = 0
    step: int = 0
    switch_step: int | None = None

    def start_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def start_step(self, step: int) -> None:
        self.step = step
        if self.phase == "warmup":
            self.switch_step = None
        elif self.known_switch is not None:
            self.switch_step = self.known_switch
        elif self.switch_step is None:
            self.switch_step = step

    @property
    def known_switch(self) -> int | None:
        """In steps the switch is where warm-up ends, and without a warm-up it is step 0."""
        in_steps = self.cfg.warmup_steps is not None or self.cfg.blend_steps is not None
        return (self.cfg.warmup_steps or 0) if in_steps or self.cfg.warmup_epochs == 0 else None

    @property
    def position(self) -> tuple[int, int, int]:
        cfg = self.cfg
        if cfg.warmup_steps is None and cfg.blend_steps is None:
            return self.epoch, cfg.warmup_epochs, cfg.blend_epochs
        return self.step, cfg.warmup_steps or 0, cfg.blend_steps or 0

    @property
    def phase(self) -> str:
        now, warmup, length = self.position
        return "warmup" if now < warmup else "blend" if now < warmup + length else "main"

    @property
    def main_weight(self) -> float:
        now, warmup, length = self.position
        rising = (now - warmup + 1) / (length + 1) * self.cfg.final_main_weight
        return {"warmup": 0.0, "blend": rising, "main": self.cfg.final_main_weight}[self.phase]

    @property
    def temperature(self) -> float:
        switch = self.switch_step if self.known_switch is None else self.known_switch
        elapsed = 0 if switch is None else max(0, self.step - switch)
        ratio = self.cfg.temp_end / self.cfg.temp_start
        return float(self.cfg.temp_start * ratio ** min(1, elapsed / self.cfg.temp_decay_steps))


LENGTHS = st.one_of(st.integers(0, 5), st.integers(0, 1000))
TEMPERATURES = st.floats(1e-4, 10)


@st.composite
def configs(draw: st.DrawFn) -> ScheduleConfig:
    mode: dict[str, Any] = draw(
        st.one_of(
            st.fixed_dictionaries({"warmup_epochs": LENGTHS, "blend_epochs": LENGTHS}),
            st.fixed_dictionaries({}, optional={"warmup_steps": LENGTHS, "blend_steps": LENGTHS}),
        )
    )
    return ScheduleConfig(
        **mode,
        temp_start=draw(TEMPERATURES),
        temp_end=draw(TEMPERATURES),
        temp_decay_steps=draw(st.integers(1, 1000)),
        final_main_weight=draw(st.floats(0.01, 1)),
    )


EVENTS = st.lists(st.tuples(st.sampled_from(["epoch", "step"]), LENGTHS), max_size=12)


def assert_agree(state: ScheduleState, plain: PlainSchedule) -> None:
    cfg = plain.cfg
    assert (int(state.epoch), int(state.step)) == (plain.epoch, plain.step)
    assert int(state.switch_step) == (-1 if plain.switch_step is None else plain.switch_step)
    assert PHASES[int(phase(state, cfg))] == plain.phase
    assert float(main_weight(state, cfg)) == pytest.approx(plain.main_weight, rel=1e-6, abs=0)
    assert float(temperature(state, cfg)) == pytest.approx(plain.temperature, rel=3e-6, abs=0)


@given(cfg=configs(), events=EVENTS)
def test_agrees_with_its_description_after_any_calls(cfg: ScheduleConfig, events: list[tuple[str, int]]) -> None:
    state, plain = init_schedule(cfg), PlainSchedule(cfg)
    assert_agree(state, plain)
    for hook, count in events:
        if hook == "epoch":
            state = start_epoch(state, cfg, count)
            plain.start_epoch(count)
        else:
            state = start_step(state, cfg, count)
            plain.start_step(count)
        assert_agree(state, plain)


@given(cfg=configs(), steps_per_epoch=st.integers(1, 4))
def test_agrees_with_its_description_over_a_run(cfg: ScheduleConfig, steps_per_epoch: int) -> None:
    state, plain = init_schedule(cfg), PlainSchedule(cfg)
    for step in range(20):
        if step % steps_per_epoch == 0:
            state = start_epoch(state, cfg, step // steps_per_epoch)
            plain.start_epoch(step // steps_per_epoch)
        state = start_step(state, cfg, step)
        plain.start_step(step)
        assert_agree(state, plain)


# --- the preview ------------------------------------------------------------------------------------------------------


@given(cfg=configs(), steps=st.integers(1, 40), steps_per_epoch=st.integers(1, 9))
def test_preview_tells_what_a_loop_sees(cfg: ScheduleConfig, steps: int, steps_per_epoch: int) -> None:
    seen = preview(cfg, steps, steps_per_epoch=steps_per_epoch)
    state = init_schedule(cfg)
    for step in range(steps):
        if step % steps_per_epoch == 0:
            state = start_epoch(state, cfg, step // steps_per_epoch)
        state = start_step(state, cfg, step)
        assert (seen.step[step], seen.epoch[step]) == (state.step, state.epoch)
        assert seen.phase[step] == phase(state, cfg)
        assert seen.main_weight[step] == main_weight(state, cfg)
        assert float(seen.temperature[step]) == pytest.approx(float(temperature(state, cfg)), rel=1e-6)


def test_preview_prints_the_first_step_of_each_phase_and_the_last() -> None:
    cfg = ScheduleConfig(warmup_steps=333, blend_steps=77, temp_start=0.5, temp_end=0.25, temp_decay_steps=500)
    header, *lines = str(preview(cfg, 1000)).splitlines()
    assert header.split() == ["step", "epoch", "phase", "main", "weight", "temperature"]
    table = [line.split() for line in lines]
    assert len(table) <= 14
    for line in (
        ["0", "0", "warmup", "0.000", "0.5"],
        ["333", "0", "blend", "0.013", "0.5"],
        ["410", "0", "main", "1.000", "0.449"],
        ["999", "0", "main", "1.000", "0.25"],
    ):
        assert line in table


def test_preview_of_steps_is_one_epoch_unless_told() -> None:
    assert preview(IN_STEPS, 5).epoch.tolist() == [0, 0, 0, 0, 0]
    assert preview(IN_STEPS, 5, steps_per_epoch=2).epoch.tolist() == [0, 0, 1, 1, 2]
    assert preview(ScheduleConfig(), 1).main_weight.tolist() == [1.0]


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ({"steps": 0}, ValueError, "expected steps to be at least 1, got 0"),
        ({"steps": 1.5}, TypeError, "expected steps to be an int, got 1.5"),
        ({"steps": 5}, ValueError, "expected steps_per_epoch .* in epochs, got None"),
        ({"steps": 5, "steps_per_epoch": 0}, ValueError, "expected steps_per_epoch to be at least 1, got 0"),
    ],
)
def test_a_wrong_length_is_named(lengths: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        preview(SHORT, **lengths)


# --- values written out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lengths", "final", "expected"),
    [
        ((0, 0), 1.0, [1, 1, 1]),
        ((2, 0), 1.0, [0, 0, 1, 1]),
        ((0, 1), 1.0, [0.5, 1, 1]),
        ((2, 3), 1.0, [0, 0, 0.25, 0.5, 0.75, 1, 1]),
        ((1, 3), 0.5, [0, 0.125, 0.25, 0.375, 0.5, 0.5]),
    ],
)
def test_weights_in_epochs_and_in_steps(lengths: tuple[int, int], final: float, expected: list[float]) -> None:
    in_epochs = ScheduleConfig(warmup_epochs=lengths[0], blend_epochs=lengths[1], final_main_weight=final)
    in_steps = ScheduleConfig(warmup_steps=lengths[0], blend_steps=lengths[1], final_main_weight=final)
    start = init_schedule(in_epochs)
    positions = range(len(expected))
    assert [float(main_weight(start_epoch(start, in_epochs, p), in_epochs)) for p in positions] == expected
    assert [float(main_weight(start_step(start, in_steps, p), in_steps)) for p in positions] == expected


@pytest.mark.parametrize("final", [1.0, 0.3])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_weight_is_exact_at_its_ends_and_rises_between(final: float, device: str) -> None:
    for length in range(100):
        cfg = ScheduleConfig(warmup_steps=1, blend_steps=length, final_main_weight=final)
        start = init_schedule(cfg, device=device)
        weights = torch.stack([main_weight(start_step(start, cfg, step), cfg) for step in range(length + 3)]).cpu()
        assert weights[0] == 0
        assert (weights[-2:] == torch.tensor(final)).all()
        assert (weights.diff()[:-1] > 0).all()


def test_only_blend_steps_means_no_warmup() -> None:
    cfg = ScheduleConfig(blend_steps=1)
    assert PHASES[int(phase(init_schedule(cfg), cfg))] == "blend"


@given(cfg=configs(), first=st.integers(0, 50))
def test_temperature_is_exact_at_its_ends(cfg: ScheduleConfig, first: int) -> None:
    cfg = dataclasses.replace(cfg, warmup_epochs=0, blend_epochs=0, warmup_steps=first, blend_steps=None)
    state = init_schedule(cfg)
    assert temperature(state, cfg) == torch.tensor(cfg.temp_start)
    state = start_step(state, cfg, first)
    assert temperature(state, cfg) == torch.tensor(cfg.temp_start)
    state = start_step(state, cfg, first + cfg.temp_decay_steps)
    assert temperature(state, cfg) == torch.tensor(cfg.temp_end)
    state = start_step(state, cfg, first + 2 * cfg.temp_decay_steps)
    assert temperature(state, cfg) == torch.tensor(cfg.temp_end)


def test_decay_counts_from_the_first_step_after_warmup() -> None:
    state = start_step(init_schedule(SHORT), SHORT, 40)
    state = start_epoch(state, SHORT, 2)
    assert int(state.switch_step) == -1, "the epoch's start is not a step"
    state = start_step(state, SHORT, 41)
    state = start_step(state, SHORT, 42)
    assert int(state.switch_step) == 41
    assert float(temperature(state, SHORT)) == pytest.approx(0.1 ** (1 / 7), rel=1e-6)


def test_decay_counts_from_step_0_if_that_is_the_first_one_told() -> None:
    state = start_epoch(init_schedule(SHORT), SHORT, 2)
    for step in range(3):
        state = start_step(state, SHORT, step)
    assert int(state.switch_step) == 0
    assert float(temperature(state, SHORT)) == pytest.approx(0.1 ** (2 / 7), rel=1e-6)


@pytest.mark.parametrize(
    ("lengths", "step", "elapsed"),
    [
        ({}, 500, 500),
        ({"blend_epochs": 3}, 500, 500),
        ({"blend_steps": 3}, 500, 500),
        ({"warmup_steps": 100}, 500, 400),
        ({"warmup_steps": 100, "blend_steps": 9}, 100, 0),
        ({"warmup_steps": 100}, 99, 0),
        ({"warmup_epochs": 1}, 500, 0),
    ],
)
def test_decay_counts_from_a_switch_that_is_known_beforehand(lengths: dict[str, int], step: int, elapsed: int) -> None:
    """Whatever step comes first. A warm-up in epochs ends with the first step that is passed after it."""
    cfg = ScheduleConfig(**lengths, temp_start=1.0, temp_end=0.1, temp_decay_steps=1000)
    state = start_step(start_epoch(init_schedule(cfg), cfg, 4), cfg, step)
    assert int(state.switch_step) == (-1 if step == 99 else step - elapsed)
    assert float(temperature(state, cfg)) == pytest.approx(0.1 ** (elapsed / 1000), rel=1e-6)


def test_a_step_inside_warmup_starts_a_new_run() -> None:
    state = start_step(start_epoch(init_schedule(SHORT), SHORT, 5), SHORT, 100)
    state = start_step(start_epoch(state, SHORT, 0), SHORT, 0)
    assert int(state.switch_step) == -1


def test_blend_is_a_weighted_sum() -> None:
    mixed = blend(torch.tensor(1.0), torch.tensor([3.0, 5.0]), torch.tensor(0.25))
    assert mixed.tolist() == [1.5, 2.0]


# --- configuration and arguments --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"warmup_epochs": -1}, ValueError, "warmup_epochs to be at least 0, got -1"),
        ({"blend_epochs": 1.5}, TypeError, r"blend_epochs to be an int, got 1\.5"),
        ({"warmup_steps": -2}, ValueError, "warmup_steps to be at least 0, got -2"),
        ({"blend_steps": True}, TypeError, "blend_steps to be an int, got True"),
        ({"temp_decay_steps": 0}, ValueError, "temp_decay_steps to be at least 1, got 0"),
        ({"temp_start": 0.0}, ValueError, r"temp_start to be a finite number above 0, got 0\.0"),
        ({"temp_end": 1e-60}, ValueError, r"expected temp_end in .* \(normal in float32\), got 1e-60"),
        ({"temp_start": 1e39}, ValueError, r"expected temp_start in .* \(normal in float32\), got 1e\+39"),
        ({"temp_end": float("inf")}, ValueError, "temp_end to be a finite number above 0, got inf"),
        ({"temp_end": float("nan")}, ValueError, "temp_end to be a finite number above 0, got nan"),
        ({"final_main_weight": 0}, ValueError, "final_main_weight to be a finite number above 0, got 0"),
        ({"final_main_weight": 1.1}, ValueError, r"final_main_weight in \[0, 1\], got 1\.1"),
        (
            {"warmup_epochs": 1, "warmup_steps": 0},
            ValueError,
            "got warmup_epochs=1, blend_epochs=0 with warmup_steps=0",
        ),
        ({"blend_epochs": 1, "blend_steps": 2}, ValueError, "got warmup_epochs=0, blend_epochs=1 with blend_steps=2"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ScheduleConfig(**changes)


def test_config_is_a_frozen_value() -> None:
    assert hash(ScheduleConfig(warmup_epochs=2)) == hash(ScheduleConfig(warmup_epochs=2))
    assert ScheduleConfig(warmup_epochs=2) != ScheduleConfig(warmup_epochs=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        SHORT.warmup_epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("start", [start_epoch, start_step])
@pytest.mark.parametrize(
    ("count", "error", "message"),
    [
        (-1, ValueError, "to be at least 0, got -1"),
        (1.0, TypeError, r"to be an int, got 1\.0"),
        (torch.tensor(1.0), TypeError, r"of an integer dtype, got torch\.float32"),
        (torch.tensor(True), TypeError, r"of an integer dtype, got torch\.bool"),
        (torch.tensor([1]), ValueError, r"as an int or a 0-dim tensor, got shape \[1\]"),
    ],
)
def test_a_wrong_counter_is_named(start: Any, count: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"expected {start.__name__.removeprefix('start_')} {message}"):
        start(init_schedule(SHORT), SHORT, count)


# --- as pure functions ------------------------------------------------------------------------------------------------


def advance(state: ScheduleState, cfg: ScheduleConfig, epoch: Tensor, step: Tensor) -> tuple[Any, ...]:
    """All that a training step asks of a schedule."""
    state = start_step(start_epoch(state, cfg, epoch), cfg, step)
    return state, phase(state, cfg), main_weight(state, cfg), temperature(state, cfg)


def assert_same(actual: Any, expected: Any) -> None:
    assert _pytree.tree_structure(actual) == _pytree.tree_structure(expected)
    torch.testing.assert_close(_pytree.tree_leaves(actual), _pytree.tree_leaves(expected), rtol=0, atol=0)


@BOTH_MODES
@pytest.mark.parametrize(
    "count", [3, torch.tensor(3), torch.tensor(3, dtype=torch.int32)], ids=["int", "int64", "int32"]
)
def test_a_new_state_conforms_to_the_old_one(cfg: ScheduleConfig, count: int | Tensor) -> None:
    old = init_schedule(cfg)
    for new in (start_epoch(old, cfg, count), start_step(old, cfg, count)):
        assert _pytree.tree_structure(new) == _pytree.tree_structure(old)
        for now, before in zip(_pytree.tree_leaves(new), _pytree.tree_leaves(old), strict=True):
            assert (now.shape, now.dtype, now.device) == (before.shape, before.dtype, before.device)
    assert_same(old, init_schedule(cfg))


@pytest.mark.parametrize("default", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_float32_whatever_the_default(default: torch.dtype) -> None:
    with default_dtype(default):
        _, index, weight, tau = advance(init_schedule(SHORT), SHORT, torch.tensor(3), torch.tensor(5))
    assert (index.dtype, weight.dtype, tau.dtype) == (torch.int64, torch.float32, torch.float32)
    assert weight.shape == tau.shape == index.shape == ()


def test_a_counter_changed_in_place_leaves_the_state_alone() -> None:
    count = torch.tensor(3)
    state = start_step(start_epoch(init_schedule(SHORT), SHORT, count), SHORT, count)
    count += 1
    assert int(state.epoch) == int(state.step) == int(state.switch_step) == 3


def test_state_is_a_pytree_of_torch_and_optree() -> None:
    state = start_epoch(init_schedule(SHORT), SHORT, 4)
    assert_same(optree.tree_map(lambda leaf: leaf + 1, state), _pytree.tree_map(lambda leaf: leaf + 1, state))


@BOTH_MODES
def test_vmap_over_stacked_states_is_a_loop(cfg: ScheduleConfig) -> None:
    begin = init_schedule(cfg)
    states = [start_step(start_epoch(begin, cfg, epoch), cfg, 2 * epoch) for epoch in range(8)]
    epochs, steps = torch.arange(8), 3 * torch.arange(8)
    batched = torch.func.vmap(lambda state, epoch, step: advance(state, cfg, epoch, step))
    loop = [advance(*each) for each in zip(states, [cfg] * 8, epochs, steps, strict=True)]
    assert_same(unstack_states(batched(stack_states(states), epochs, steps)), loop)
    # one counter for the whole ensemble
    shared = torch.func.vmap(lambda state, step: start_step(state, cfg, step), in_dims=(0, None))
    loop = [start_step(state, cfg, 9) for state in states]
    assert_same(unstack_states(shared(stack_states(states), torch.tensor(9))), loop)


@BOTH_MODES
def test_one_compilation_serves_a_run(cfg: ScheduleConfig) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(advance, backend=counter, fullgraph=True)
    eager_state = compiled_state = init_schedule(cfg)
    for step in range(20):
        counts = torch.tensor(step // 3), torch.tensor(step)
        compiled_state, *values = compiled(compiled_state, cfg, *counts)
        eager_state, *expected = advance(eager_state, cfg, *counts)
        assert_same((compiled_state, *values), (eager_state, *expected))
    assert counter.frame_count == 1


@BOTH_MODES
def test_compiled_ensemble(cfg: ScheduleConfig) -> None:
    batched = torch.func.vmap(lambda state, epoch, step: advance(state, cfg, epoch, step))
    arguments = stack_states([init_schedule(cfg)] * 8), torch.arange(8), 3 * torch.arange(8)
    compiled = torch.compile(batched, backend="aot_eager", fullgraph=True)
    assert_same(compiled(*arguments), batched(*arguments))


@BOTH_MODES
def test_reads_no_data(cfg: ScheduleConfig) -> None:
    results = advance(init_schedule(cfg, device="meta"), cfg, torch.tensor(3), torch.tensor(5))
    assert all(leaf.is_meta and leaf.shape == () for leaf in _pytree.tree_leaves(results))

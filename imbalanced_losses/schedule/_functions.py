"""The schedule's configuration, state and functions."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from imbalanced_losses.pytree import state_dataclass
from imbalanced_losses.settings import (
    check_counter,
    check_fields,
    check_fraction,
    check_integer,
    check_normal_number,
    check_positive,
    optional,
)

__all__ = [
    "BEFORE_THE_SWITCH",
    "PHASES",
    "ScheduleConfig",
    "ScheduleState",
    "blend",
    "blend_count",
    "init_schedule",
    "main_weight",
    "phase",
    "start_epoch",
    "start_step",
    "temperature",
]

BEFORE_THE_SWITCH = -1
PHASES = ("warmup", "blend", "main")
"""Names of the phases, indexed by :func:`phase`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """The lengths of the phases and the ends of the temperature decay.

    Phases are counted in epochs, or in steps if ``warmup_steps`` or ``blend_steps`` is given (the other one then
    defaults to 0). The main loss runs in the blend and in the main phase.

    Parameters
    ----------
    warmup_epochs : int >= 0
        Epochs on the warm-up loss alone.
    temp_start, temp_end : float > 0
        Temperatures at the first step after warm-up, and ``temp_decay_steps`` steps later.
    temp_decay_steps : int >= 1
        Length of the geometric decay from ``temp_start`` to ``temp_end``.
    blend_epochs : int >= 0
        Epochs after warm-up over which the main loss's weight rises linearly to ``final_main_weight``.
    warmup_steps, blend_steps : int >= 0, optional
        The same in steps.
    final_main_weight : float in (0, 1]
        Weight of the main loss after the blend. Below 1 the warm-up loss keeps the rest of the weight. 0 is refused,
        because the main loss would never count.

    Raises
    ------
    TypeError, ValueError
        If a value is out of range, or the phases are given both in epochs and in steps.

    Examples
    --------
    >>> ScheduleConfig(warmup_epochs=2, blend_epochs=3).blend_length
    3
    >>> ScheduleConfig(warmup_epochs=2, blend_steps=100)
    Traceback (most recent call last):
    ValueError: expected phases in epochs or in steps, got warmup_epochs=2, blend_epochs=0 with blend_steps=100
    """

    warmup_epochs: int = 0
    temp_start: float = 0.05
    temp_end: float = 0.005
    temp_decay_steps: int = 10_000
    blend_epochs: int = 0
    warmup_steps: int | None = None
    blend_steps: int | None = None
    final_main_weight: float = 1.0

    def __post_init__(self) -> None:
        length = partial(check_integer, minimum=0)
        check_fields(
            self,
            warmup_epochs=length,
            blend_epochs=length,
            warmup_steps=optional(length),
            blend_steps=optional(length),
            temp_decay_steps=partial(check_integer, minimum=1),
            temp_start=check_normal_number,
            temp_end=check_normal_number,
            final_main_weight=lambda name, value: check_fraction(name, check_positive(name, value)),
        )
        in_steps = {name: getattr(self, name) for name in ("warmup_steps", "blend_steps")}
        in_steps = {name: value for name, value in in_steps.items() if value is not None}
        in_epochs = {"warmup_epochs": self.warmup_epochs, "blend_epochs": self.blend_epochs}
        if in_steps and any(in_epochs.values()):
            epochs, steps = (", ".join(f"{k}={v}" for k, v in mode.items()) for mode in (in_epochs, in_steps))
            raise ValueError(f"expected phases in epochs or in steps, got {epochs} with {steps}")

    @property
    def counts_steps(self) -> bool:
        """Whether phases are counted in steps instead of epochs."""
        return self.warmup_steps is not None or self.blend_steps is not None

    @property
    def counts_epochs(self) -> bool:
        """Whether there are phases, and they are counted in epochs."""
        return not self.counts_steps and self.warmup_epochs + self.blend_epochs > 0

    @property
    def known_switch_step(self) -> int | None:
        """The first step after warm-up; ``None`` if a warm-up is counted in epochs."""
        return self.warmup_length if self.counts_steps or self.warmup_epochs == 0 else None

    @property
    def warmup_length(self) -> int:
        """Length of warm-up in epochs or steps."""
        return (self.warmup_steps or 0) if self.counts_steps else self.warmup_epochs

    @property
    def blend_length(self) -> int:
        """Length of the blend in epochs or steps."""
        return (self.blend_steps or 0) if self.counts_steps else self.blend_epochs


@state_dataclass
class ScheduleState:
    """The progress of training.

    Attributes
    ----------
    epoch : Tensor [], int64
        The current epoch, from 0.
    step : Tensor [], int64
        The current step (batch), counted from 0 over all epochs. Before the first step it may be -1, which is treated
        as 0.
    switch_step : Tensor [], int64
        The first step after warm-up, from which the temperature decays; -1 before it. If it is not known in advance (a
        warm-up in epochs), it is the first step passed to :func:`start_step` after warm-up.
    """

    epoch: Tensor
    step: Tensor
    switch_step: Tensor


def init_schedule(cfg: ScheduleConfig, *, device: torch.device | str | None = None) -> ScheduleState:
    """Make the state before training: epoch 0, step 0, not switched.

    Parameters
    ----------
    cfg : ScheduleConfig
        Not used: all schedules start with the same state. All functions of a schedule take it.
    device : torch.device or str, optional

    Examples
    --------
    >>> init_schedule(ScheduleConfig()).switch_step
    tensor(-1)
    """
    return ScheduleState(
        epoch=torch.zeros((), dtype=torch.int64, device=device),
        step=torch.zeros((), dtype=torch.int64, device=device),
        switch_step=torch.full((), BEFORE_THE_SWITCH, dtype=torch.int64, device=device),
    )


def start_epoch(state: ScheduleState, cfg: ScheduleConfig, epoch: int | Tensor) -> ScheduleState:
    """Set the epoch; call this when an epoch begins.

    Parameters
    ----------
    state : ScheduleState
    cfg : ScheduleConfig
        Not used: ``switch_step`` is set by the step that follows.
    epoch : int >= 0, or integer Tensor []
        Pass a tensor in a compiled loop to avoid recompilation.

    Returns
    -------
    ScheduleState
        A new state with the structure, shapes, dtypes and device of ``state``.

    Raises
    ------
    TypeError, ValueError
        If ``epoch`` is not an integer, negative, or a tensor that is not 0-dim.

    Examples
    --------
    >>> cfg = ScheduleConfig(warmup_epochs=1, blend_epochs=1)
    >>> main_weight(start_epoch(init_schedule(cfg), cfg, 1), cfg)
    tensor(0.5000)
    """
    epoch = _counter("epoch", epoch, like=state.epoch)
    return ScheduleState(epoch=epoch, step=state.step, switch_step=state.switch_step)


def start_step(state: ScheduleState, cfg: ScheduleConfig, step: int | Tensor) -> ScheduleState:
    """Set the step; call this before each training batch.

    After warm-up this sets ``switch_step``: to the step that ends warm-up if it is known in advance (phases in steps,
    or no warm-up), else to the first step after warm-up that is passed here. A step inside warm-up resets it to -1, so
    that counters that go back start a new run.

    Parameters
    ----------
    state : ScheduleState
    cfg : ScheduleConfig
    step : int >= 0, or integer Tensor []
        The global step, counted over all epochs. Pass a tensor in a compiled loop to avoid recompilation.

    Returns
    -------
    ScheduleState
        A new state with the structure, shapes, dtypes and device of ``state``.

    Raises
    ------
    TypeError, ValueError
        If ``step`` is not an integer, negative, or a tensor that is not 0-dim.

    Examples
    --------
    >>> cfg = ScheduleConfig(warmup_steps=3)
    >>> start_step(init_schedule(cfg), cfg, 2).switch_step, start_step(init_schedule(cfg), cfg, 3).switch_step
    (tensor(-1), tensor(3))
    """
    step = _counter("step", step, like=state.step)
    moved = ScheduleState(epoch=state.epoch, step=step, switch_step=state.switch_step)
    if cfg.known_switch_step is None:
        switch_step = torch.where(state.switch_step < 0, step, state.switch_step)
    else:
        switch_step = torch.full_like(state.switch_step, cfg.known_switch_step)
    in_warmup = blend_count(moved, cfg) == 0
    return dataclasses.replace(moved, switch_step=torch.where(in_warmup, BEFORE_THE_SWITCH, switch_step))


def phase(state: ScheduleState, cfg: ScheduleConfig) -> Tensor:
    """Return the index into :data:`PHASES`, a 0-dim int64: 0 in warm-up, 1 in the blend, 2 in the main phase.

    Examples
    --------
    >>> cfg = ScheduleConfig(blend_epochs=1)
    >>> PHASES[phase(init_schedule(cfg), cfg)]
    'blend'
    """
    count = blend_count(state, cfg)
    return (count > 0).long() + (count > cfg.blend_length).long()


def main_weight(state: ScheduleState, cfg: ScheduleConfig) -> Tensor:
    """Return the main loss's weight: ``final_main_weight * clamp((e - W + 1) / (B + 1), 0, 1)``.

    ``e`` is the epoch (or step), ``W`` and ``B`` the lengths of warm-up and blend. Exactly 0 in warm-up and exactly
    ``final_main_weight`` after the blend.

    Parameters
    ----------
    state : ScheduleState
    cfg : ScheduleConfig

    Returns
    -------
    Tensor [], float32

    Examples
    --------
    >>> cfg = ScheduleConfig(warmup_epochs=1, blend_epochs=1, final_main_weight=0.5)
    >>> [main_weight(start_epoch(init_schedule(cfg), cfg, epoch), cfg).item() for epoch in range(4)]
    [0.0, 0.25, 0.5, 0.5]
    """
    return cfg.final_main_weight * _ratio(blend_count(state, cfg), cfg.blend_length + 1)


def temperature(state: ScheduleState, cfg: ScheduleConfig) -> Tensor:
    """Return the temperature: ``temp_start * (temp_end / temp_start) ** min(1, elapsed / temp_decay_steps)``.

    ``elapsed = step - switch_step``; before the switch the temperature is ``temp_start``. If the switch is known in
    advance, ``elapsed`` counts from it, whichever step is passed first. The temperature is exactly ``temp_start`` and
    ``temp_end`` (in float32) at the ends.

    Parameters
    ----------
    state : ScheduleState
    cfg : ScheduleConfig

    Returns
    -------
    Tensor [], float32

    Examples
    --------
    >>> cfg = ScheduleConfig(warmup_steps=10, temp_start=1.0, temp_end=0.25, temp_decay_steps=2)
    >>> state = init_schedule(cfg)
    >>> [temperature(start_step(state, cfg, step), cfg).item() for step in range(10, 14)]
    [1.0, 0.5, 0.25, 0.25]
    """
    if cfg.known_switch_step is None:
        elapsed = torch.where(state.switch_step < 0, 0, state.step - state.switch_step)
    else:
        elapsed = state.step - cfg.known_switch_step
    decayed = _ratio(elapsed.clamp(0, cfg.temp_decay_steps), cfg.temp_decay_steps)
    # equal to the formula above, and exact at both ends
    return torch.pow(cfg.temp_start, 1 - decayed) * torch.pow(cfg.temp_end, decayed)


def blend(warmup_loss: Tensor, main_loss: Tensor, weight: Tensor) -> Tensor:
    """Mix two losses: ``(1 - weight) * warmup_loss + weight * main_loss``.

    Parameters
    ----------
    warmup_loss, main_loss : Tensor
        Their shapes must broadcast.
    weight : Tensor [], in [0, 1]
        From :func:`main_weight`.

    Examples
    --------
    >>> blend(torch.tensor(1.0), torch.tensor(3.0), torch.tensor(0.25))
    tensor(1.5000)
    """
    return (1 - weight) * warmup_loss + weight * main_loss


def blend_count(state: ScheduleState, cfg: ScheduleConfig) -> Tensor:
    """Return ``k`` of the weight ``k / (B + 1)``: 0 in warm-up, 1..B in the blend, B + 1 after it."""
    position = state.step.clamp_min(0) if cfg.counts_steps else state.epoch
    return (position - cfg.warmup_length + 1).clamp(0, cfg.blend_length + 1)


def _counter(name: str, value: int | Tensor, like: Tensor) -> Tensor:
    # a sum is a new tensor, so that a caller who increments a counter in-place does not change the state
    return torch.zeros_like(like) + check_counter(name, value)


def _ratio(count: Tensor, total: int) -> Tensor:
    """``count / total`` in float32 for ``0 <= count <= total``."""
    # some backends multiply by the reciprocal of a constant instead of dividing: 49 * (1 / 49) is not 1 in float32
    return torch.where(count == total, 1.0, count.float() / total)

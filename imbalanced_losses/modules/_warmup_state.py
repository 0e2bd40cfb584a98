"""The warm-up wrapper's parameters, and the schedule's state in buffers with a copy on the host."""

from __future__ import annotations

import dataclasses
import functools
from abc import ABC
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from imbalanced_losses import schedule
from imbalanced_losses.dispatch import can_read_values, is_plain_eager, version_of, without_dispatch_modes
from imbalanced_losses.lifecycle import StatefulModule, refuse_second_pass
from imbalanced_losses.modules._base import field_property
from imbalanced_losses.modules._callables import (
    Loss,
    has_temperature,
    keeps_temperature,
    override_gather,
    set_temperature,
    takes,
    warn_of_missing_hooks,
)
from imbalanced_losses.modules._runs import empty_queues, forget_rows
from imbalanced_losses.schedule import ScheduleConfig, ScheduleState
from imbalanced_losses.settings import check_callable, check_config, check_flag, optional

__all__ = ["WarmupState"]

SCHEDULE_FIELDS = ("epoch", "step", "switch_step")


class WarmupState(StatefulModule, ABC):
    """Parameters and schedule state of :class:`~imbalanced_losses.LossWarmupWrapper`, which adds hooks and forward."""

    warmup_loss: Any  # a Loss, but mypy takes a callable attribute for a method
    main_loss: Any
    # the schedule's parameters: properties, set below the class
    warmup_epochs: int
    temp_start: float
    temp_end: float
    temp_decay_steps: int
    blend_epochs: int
    warmup_steps: int | None
    blend_steps: int | None
    final_main_weight: float
    # the schedule's state
    epoch: Tensor
    step: Tensor
    switch_step: Tensor
    _versions: tuple[object, ...] | None = None
    _epoch_hook_called = False
    _gather_distributed: bool | None
    _weights_warmup: bool  # whether the warm-up loss takes sample_weight
    _main_updates_queue: bool  # whether the main loss takes update_queue
    _written: tuple[int, int] | None = None  # the temperature's version when the schedule last set it

    def __init__(
        self,
        warmup_loss: Loss,
        main_loss: Loss,
        config: ScheduleConfig,
        gather_distributed: bool | None,
        auto_step: bool,
    ) -> None:
        super().__init__()
        self._auto_step = check_flag("auto_step", auto_step)
        self._gather_distributed = optional(check_flag)("gather_distributed", gather_distributed)
        self.config = config
        self.warmup_loss = warmup_loss
        self.main_loss = main_loss
        self._await_hooks()
        state = self._first_state()
        for field in SCHEDULE_FIELDS:
            self.register_buffer(field, torch.tensor(without_dispatch_modes(int, getattr(state, field))))
        self.register_load_state_dict_post_hook(_follow_loaded_state)  # type: ignore[no-untyped-call]
        self._follow(state)

    def __setattr__(self, name: str, value: Any) -> None:
        """Accept any callable as a loss. A new main loss gets the schedule's temperature at its next use."""
        if name not in ("warmup_loss", "main_loss"):
            super().__setattr__(name, value)
            return
        check_callable(name, value)
        override_gather(self._gather_distributed, value)
        if not isinstance(value, nn.Module):
            self._modules.pop(name, None)  # torch refuses to replace a module by a function
        super().__setattr__(name, value)
        if name == "warmup_loss":
            self._weights_warmup = takes(value, "sample_weight")
            return
        self._main_updates_queue = takes(value, "update_queue")
        if self._is_complete:
            warn_of_missing_hooks(value)
            self._versions = None

    @property
    def _is_complete(self) -> bool:
        return "epoch" in self._buffers

    @property
    def config(self) -> ScheduleConfig:
        """The schedule's parameters."""
        return self._config

    @config.setter
    def config(self, config: ScheduleConfig) -> None:
        check_config(config, ScheduleConfig)
        _check_auto_step(self._auto_step, config)
        if self._is_complete:
            self._catch_up()
        self._config = config
        if self._is_complete:
            state = self._host_state
            if without_dispatch_modes(int, schedule.phase(state, config)) == schedule.PHASES.index("warmup"):
                state = dataclasses.replace(state, switch_step=self._first_state().switch_step)
            self._advance(state)

    def _set_field(self, name: str, value: Any) -> None:
        self.config = dataclasses.replace(self.config, **{name: value})

    @property
    def auto_step(self) -> bool:
        """Whether calls in training mode are steps."""
        return self._auto_step

    @auto_step.setter
    def auto_step(self, auto_step: bool) -> None:
        auto_step = check_flag("auto_step", auto_step)
        _check_auto_step(auto_step, self.config)
        self._catch_up()
        has_begun = (
            without_dispatch_modes(int, self._host_state.step) > 0 or "on_train_batch_start" not in self._awaited_hooks
        )
        self._auto_step = auto_step
        if not has_begun:
            self._advance(dataclasses.replace(self._host_state, step=self._first_state().step))

    @property
    def gather_distributed(self) -> bool | None:
        """Overrides the losses' attribute of that name; ``None`` leaves it unchanged."""
        return self._gather_distributed

    @gather_distributed.setter
    def gather_distributed(self, gather_distributed: bool | None) -> None:
        self._gather_distributed = optional(check_flag)("gather_distributed", gather_distributed)
        override_gather(gather_distributed, self.warmup_loss, self.main_loss)

    def _first_state(self) -> ScheduleState:
        state = without_dispatch_modes(functools.partial(schedule.init_schedule, device="cpu"), self.config)
        # with auto_step the first call advances to step 0
        return (
            dataclasses.replace(state, step=without_dispatch_modes(torch.sub, state.step, 1))
            if self.auto_step
            else state
        )

    def reset_parameters(self) -> None:
        """Reset the schedule to its state after construction; the losses reset their own state."""
        self._fill_buffers(self._first_state())
        self._versions = None  # the main loss may be reset after this, so set its temperature at the next use
        self._await_hooks()

    def start_new_run(self) -> None:
        """Restart the schedule, and reset queues and class counts, as the hooks do when epoch or step is 0 again."""
        self._restart()
        self._await_hooks()

    def _restart(self) -> None:
        self._fill_buffers(self._first_state())
        forget_rows(self.warmup_loss)
        forget_rows(self.main_loss)

    def _await_hooks(self) -> None:
        self._awaited_hooks = {"on_train_epoch_start", "on_train_batch_start"}
        self._epoch_hook_called = False

    def _before_compiled_call(self, **kwargs: Any) -> None:
        self._catch_up()
        if self._takes_own_steps:
            refuse_second_pass()
        if self._runs_warmup_loss and isinstance(self.warmup_loss, StatefulModule):
            self.warmup_loss._before_compiled_call()  # it gets no other keyword than sample_weight
        if self._runs_main_loss and isinstance(self.main_loss, StatefulModule):
            self.main_loss._before_compiled_call(**kwargs)

    @property
    def _runs_warmup_loss(self) -> bool:
        return self._phase != "main" or self.config.final_main_weight < 1

    @property
    def _runs_main_loss(self) -> bool:
        return self._phase != "warmup"

    @property
    def _takes_own_steps(self) -> bool:
        return self.auto_step and self.training and "on_train_batch_start" in self._awaited_hooks

    @property
    def schedule_state(self) -> ScheduleState:
        """The buffers (not copies) as the state that the pure functions take."""
        return ScheduleState(epoch=self.epoch, step=self.step, switch_step=self.switch_step)

    @property
    def in_warmup(self) -> bool:
        """Whether only the warm-up loss runs."""
        self._catch_up()
        return self._phase == "warmup"

    @property
    def in_blend(self) -> bool:
        """Whether the main loss's weight is rising."""
        self._catch_up()
        return self._phase == "blend"

    @property
    def main_weight(self) -> float:
        """The weight of the main loss, in [0, 1]."""
        self._catch_up()
        return self._on_host(schedule.main_weight)

    @property
    def ap_weight(self) -> float:
        """The name of :attr:`main_weight` in the library's predecessor."""
        return self.main_weight

    @property
    def current_temperature(self) -> float | None:
        """The main loss's temperature, in units of its ``tau_scale``; ``None`` if it has none."""
        self._catch_up()
        if not has_temperature(self.main_loss):
            return None
        held = self.main_loss.temperature
        if isinstance(held, Tensor) and not held.is_cpu and self._written == version_of(held):
            return self._written_temperature  # unchanged since the schedule set it: no wait for the device
        return float(held)

    def _on_host(self, function: Callable[[ScheduleState, ScheduleConfig], Tensor]) -> float:
        return without_dispatch_modes(lambda: float(function(self._host_state, self.config)))

    def _advance(self, state: ScheduleState, reset: bool = False) -> None:
        """Set a new state. Empty the queue if this ends warm-up, or if warm-up is over and ``reset`` is set."""
        was_in_warmup = self._phase == "warmup"
        self._fill_buffers(state)
        if self._phase != "warmup" and (was_in_warmup or reset):
            empty_queues(self.main_loss)

    def _fill_buffers(self, state: ScheduleState) -> None:
        for field in SCHEDULE_FIELDS:
            # fill_ with a Python number only enqueues a kernel; a copy from the host would wait for the device
            getattr(self, field).fill_(without_dispatch_modes(int, getattr(state, field)))
        self._follow(state)

    def _catch_up(self) -> None:
        """Update the host's copy if something else has written to the buffers: a loader, averaging, a broadcast.

        Version counters show that, so this waits for a device only then. A temperature in a buffer is left as it is:
        it was written with the others.
        """
        if is_plain_eager() and not self.epoch.is_meta and self._versions != self._buffer_versions():
            temperature = self._versions is None or not keeps_temperature(self.main_loss)
            self._follow(self._read_buffers(), temperature=temperature)

    def _read_buffers(self) -> ScheduleState:
        return ScheduleState(**{field: getattr(self, field).to("cpu", copy=True) for field in SCHEDULE_FIELDS})

    def _buffer_versions(self) -> tuple[object, ...]:
        """Return the buffers' values on the CPU; elsewhere their versions, which need no wait for the device."""
        return tuple(map(_value_or_version, (self.epoch, self.step, self.switch_step)))

    def _follow(self, state: ScheduleState, *, temperature: bool = True) -> None:
        """Set the host's copy, and the main loss's temperature, from a state on the host."""
        self._versions = self._buffer_versions()
        self._host_state = state
        self._phase = schedule.PHASES[int(self._on_host(schedule.phase))]
        if temperature and has_temperature(self.main_loss):
            self._written_temperature = self._on_host(schedule.temperature)
            set_temperature(self.main_loss, self._written_temperature)
            self._written = version_of(self.main_loss.temperature)


def _follow_loaded_state(wrapper: WarmupState, _: object) -> None:
    """Update the host's copy after ``load_state_dict``.

    A plain function: a bound method would still refer to the original in a copied or unpickled wrapper.
    """
    # a temperature in a buffer is loaded with its loss
    wrapper._follow(wrapper._read_buffers(), temperature=not keeps_temperature(wrapper.main_loss))
    wrapper._awaited_hooks.discard("on_train_epoch_start")  # a run that resumes mid-epoch does not call it again


def _check_auto_step(auto_step: bool, config: ScheduleConfig) -> None:
    if auto_step and config.counts_epochs:
        raise ValueError("expected auto_step with warmup_steps and blend_steps, got phases counted in epochs")


def _value_or_version(buffer: Tensor) -> object:
    return int(buffer) if buffer.is_cpu and can_read_values(buffer) else version_of(buffer)


for _name in ScheduleConfig.__dataclass_fields__:
    setattr(WarmupState, _name, field_property(_name))

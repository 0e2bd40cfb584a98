"""The warm-up wrapper's parameters as attributes: read under their names, checked and followed when assigned."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from imbalanced_losses.checks import check_callable, check_config
from imbalanced_losses.modules._callables import Loss, override_gather, takes, warn_of_missing_hooks
from imbalanced_losses.modules._loading import LoadableModule
from imbalanced_losses.schedule import ScheduleConfig, ScheduleState

__all__ = ["WarmupSettings"]


class WarmupSettings(LoadableModule, ABC):
    """What :class:`~imbalanced_losses.LossWarmupWrapper` is constructed with."""

    warmup_loss: Any  # a Loss; for mypy a callable attribute would be a method
    main_loss: Any
    # the schedule's parameters: properties, made below the class
    warmup_epochs: int
    temp_start: float
    temp_end: float
    temp_decay_steps: int
    blend_epochs: int
    warmup_steps: int | None
    blend_steps: int | None
    final_main_weight: float
    # the schedule's state, of the class below
    _host_state: ScheduleState
    _awaited_hooks: set[str]
    _versions: tuple[tuple[int, int] | None, ...] | None = None

    def __init__(
        self,
        warmup_loss: Loss,
        main_loss: Loss,
        config: ScheduleConfig,
        gather_distributed: bool | None,
        auto_step: bool,
    ) -> None:
        super().__init__()
        self._auto_step = auto_step
        self._gather_distributed = gather_distributed
        self.config = config
        self.warmup_loss = warmup_loss
        self.main_loss = main_loss

    @abstractmethod
    def _first_state(self) -> ScheduleState:
        """The state after construction."""

    @abstractmethod
    def _catch_up(self) -> None:
        """Follow the buffers, if something else has filled them."""

    @abstractmethod
    def _advance(self, state: ScheduleState, reset: bool = False) -> None:
        """Take on a state under the present configuration."""

    def __setattr__(self, name: str, value: Any) -> None:
        """A loss may be any callable. A new main loss takes on the schedule's temperature at its next use."""
        if name not in ("warmup_loss", "main_loss"):
            super().__setattr__(name, value)
            return
        check_callable(name, value)
        override_gather(self._gather_distributed, value)
        if not isinstance(value, nn.Module):
            self._modules.pop(name, None)  # torch refuses to put a function in a module's place
        super().__setattr__(name, value)
        if name == "warmup_loss":
            self._weights_warmup = takes(value, "sample_weight")
        elif self._is_complete:
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
            self._advance(self._host_state)

    @property
    def auto_step(self) -> bool:
        """Whether calls in training mode are steps."""
        return self._auto_step

    @auto_step.setter
    def auto_step(self, auto_step: bool) -> None:
        _check_auto_step(auto_step, self.config)
        self._catch_up()
        has_begun = int(self._host_state.step) > 0 or "on_train_batch_start" not in self._awaited_hooks
        self._auto_step = auto_step
        if not has_begun:
            self._advance(dataclasses.replace(self._host_state, step=self._first_state().step))

    @property
    def gather_distributed(self) -> bool | None:
        """What overrides the losses' attribute of that name; ``None`` leaves it as it is."""
        return self._gather_distributed

    @gather_distributed.setter
    def gather_distributed(self, gather_distributed: bool | None) -> None:
        self._gather_distributed = gather_distributed
        override_gather(gather_distributed, self.warmup_loss, self.main_loss)


def _check_auto_step(auto_step: bool, config: ScheduleConfig) -> None:
    if auto_step and config.counts_epochs:
        raise ValueError("expected auto_step with warmup_steps and blend_steps, got phases counted in epochs")


def _parameter(name: str) -> property:
    """A parameter of the schedule as an attribute of the wrapper."""

    def read(wrapper: WarmupSettings) -> Any:
        return getattr(wrapper.config, name)

    def assign(wrapper: WarmupSettings, value: Any) -> None:
        wrapper.config = dataclasses.replace(wrapper.config, **{name: value})

    return property(read, assign, doc=f"``{name}`` of :attr:`config`.")


for _name in ScheduleConfig.__dataclass_fields__:
    setattr(WarmupSettings, _name, _parameter(_name))

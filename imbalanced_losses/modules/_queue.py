"""What all losses with a queue share as modules: the queue and the temperature in buffers, and the write-back."""

from __future__ import annotations

import dataclasses
import warnings
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from imbalanced_losses.dispatch import can_read_values, is_traced, is_transformed
from imbalanced_losses.lifecycle import refuse_second_pass
from imbalanced_losses.modules._base import LossModule, field_names, fixed_setting, flag_property, refuse_gradient
from imbalanced_losses.queue import QueueState, push, push_in_place
from imbalanced_losses.rows import Rows
from imbalanced_losses.settings import check_integer, check_normal_number
from imbalanced_losses.validation import check_temperature

__all__ = ["QueueLoss"]

QUEUE_FIELDS = ("logits", "targets", "iid", "sample_weight", "cursor", "ignore_index")

Config = TypeVar("Config")


class QueueLoss(LossModule[Config], ABC):
    """State and write-back of a loss with a queue of past rows and a temperature."""

    _buffer_fields: ClassVar[tuple[str, ...]] = ("temperature",)

    # What to say when no step of an epoch had a valid class or query.
    _invalid_epoch: ClassVar[str]

    update_queue_in_eval = flag_property("update_queue_in_eval")

    temperature: Tensor

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """``arguments`` are those of the class below, by name."""
        super().__init__(arguments)
        self._queue_size = check_integer("queue_size", arguments["queue_size"], minimum=0)
        self.update_queue_in_eval = arguments["update_queue_in_eval"]
        queue = self._empty_queue()
        for field in QUEUE_FIELDS:
            self.register_buffer(f"queue_{field}", getattr(queue, field))
        dtype = torch.promote_types(torch.get_default_dtype(), torch.float32)  # loaders make models under a half type
        self.register_buffer("temperature", torch.tensor(self._settings["temperature"], dtype=dtype))
        self._warned_of_invalid_epoch = False
        # since the last call of `warn_of_invalid_epoch`: -1 no step, 0 never valid, 1 valid in some step; [C] in a loss
        # of several classes; no buffer, because it is no state
        self._validity = torch.full((1,), -1)

    @property
    def queue_size(self) -> int:
        """Past rows that the queue holds."""
        return self._queue_size

    @queue_size.setter
    def queue_size(self, value: int) -> None:
        if value != self._queue_size:
            raise fixed_setting(self, "queue_size")

    @property
    def queue_state(self) -> QueueState:
        """The queue's buffers as the state that the pure functions take (not a copy)."""
        return QueueState(**{field: getattr(self, f"queue_{field}") for field in QUEUE_FIELDS})

    def reset_queue(self) -> None:
        """Empty the queue."""
        self._store(self._empty_queue(dtype=self.queue_logits.dtype, device=self.queue_logits.device))

    def reset_parameters(self) -> None:
        """Restore the state after construction, from the configuration alone: an empty queue and the temperature.

        For buffers that hold nothing yet: after ``to_empty()``, or where a loader made the module on ``meta``.
        """
        self.reset_queue()
        with torch.no_grad():
            self.temperature.fill_(self._settings["temperature"])
            self._validity.fill_(-1)

    @abstractmethod
    def _empty_queue(self, **kind: Any) -> QueueState:
        """Make the queue after construction; ``kind`` has its dtype and device."""

    @property
    def _settings(self) -> dict[str, Any]:
        """The configuration's fields."""
        return {name: getattr(self._config, name) for name in field_names(type(self._config))}

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._place_validity(self.temperature.device)
        return self

    def _before_compiled_call(self, *, update_queue: bool = True, **kwargs: Any) -> None:
        if self._pushes(update_queue):
            refuse_second_pass()

    def _pushes(self, update_queue: bool) -> bool:
        return update_queue and (self.training or self.update_queue_in_eval) and self.queue_size > 0

    def extra_repr(self) -> str:
        settings = self._settings
        if can_read_values(self.temperature):
            settings["temperature"] = round(float(self.temperature), 7)  # of float32, what was assigned
        return ", ".join(f"{name}={value!r}" for name, value in {"queue_size": self.queue_size, **settings}.items())

    def __setattr__(self, name: str, value: Any) -> None:
        """``loss.temperature = x`` fills the buffer: no compilation for a schedule, and ``state_dict`` sees it."""
        # load_state_dict(assign=True) fills a module on meta
        if name != "temperature" or (self.temperature.is_meta and isinstance(value, Tensor)):
            super().__setattr__(name, value)
            return
        refuse_gradient(name, value)
        temperature = check_temperature(value, self.temperature)
        if self.validate_targets and can_read_values(temperature):
            check_normal_number("temperature", float(temperature))
        with torch.no_grad():
            self.temperature.copy_(temperature)
        if not isinstance(value, Tensor) and not is_traced():
            self._config = dataclasses.replace(self._config, temperature=value)  # type: ignore[type-var]

    def _place_validity(self, device: torch.device) -> None:
        if self._validity.device != device:  # a loader may have filled the buffers one by one
            with torch.inference_mode(False):  # an inference tensor could not be written to in training
                self._validity = torch.full_like(self._validity, -1, device=device)

    def _note_validity(self, valid: Tensor) -> None:
        if self.training:
            self._place_validity(valid.device)
            self._validity.clamp_min_(valid)

    def warn_of_invalid_epoch(self) -> None:
        """Warn, once, if there were steps in training mode since the last call of this method, and none was valid.

        Call it at the end of each epoch of your own loop; the callbacks do it for theirs. It reads a value, so it waits
        for the device.
        """
        if not can_read_values(self._validity):
            return
        was_never_valid = int(self._validity.max()) == 0
        self._validity.fill_(-1)
        if was_never_valid and not self._warned_of_invalid_epoch:
            self._warned_of_invalid_epoch = True
            warnings.warn(self._invalid_epoch.format(type(self).__name__), stacklevel=4)

    def _push(self, queue: QueueState, rows: Rows) -> None:
        if is_transformed():  # vmap has no rule for index_copy_
            self._store(push(queue, *rows))
            return
        with torch.no_grad():
            push_in_place(queue, rows)

    def _store(self, state: QueueState) -> None:
        """Use ``copy_``: an assignment is lost under ``vmap(functional_call)``."""
        with torch.no_grad():
            for field in QUEUE_FIELDS:
                buffer, value = getattr(self, f"queue_{field}"), getattr(state, field)
                if value is not buffer:
                    buffer.copy_(value)

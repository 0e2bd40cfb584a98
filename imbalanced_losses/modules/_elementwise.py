"""What the elementwise losses share as modules."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from imbalanced_losses.checks import check_element_weights
from imbalanced_losses.execution import can_read_values, is_traced
from imbalanced_losses.label_values import check_weight_values
from imbalanced_losses.modules._base import Config, LossModule, field_names

__all__ = ["ElementwiseLoss"]


class ElementwiseLoss(LossModule[Config], ABC):
    """Value checks and configuration: all that the elementwise losses share as modules."""

    def extra_repr(self) -> str:
        """Show the configuration in ``repr``, with what its buffers hold."""
        settings = {name: getattr(self._config, name) for name in field_names(type(self._config))}
        for name in self._buffer_fields:
            buffer = getattr(self, name)
            if can_read_values(buffer):
                settings[name] = tuple(buffer.tolist())
        return ", ".join(f"{name}={value!r}" for name, value in settings.items())

    def _before_compiled_call(self, **kwargs: Any) -> None:
        """Nothing, where a call changes no state."""

    @abstractmethod
    def _check_values(self, inputs: Tensor, targets: Tensor) -> None:
        """Read the targets."""

    def _check(self, inputs: Tensor, targets: Tensor, sample_weight: Tensor | None) -> None:
        if is_traced() or not self.validate_targets:
            return
        if can_read_values(targets):
            self._check_values(inputs, targets)
        if sample_weight is not None and isinstance(targets, Tensor) and can_read_values(sample_weight):
            check_weight_values(check_element_weights("sample_weight", sample_weight, targets))

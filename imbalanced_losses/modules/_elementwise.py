"""The base class of the elementwise loss modules."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import can_read_values
from imbalanced_losses.label_values import check_class_id_values, check_probability_values, check_weight_values
from imbalanced_losses.losses._cross_entropy import ParsedTargets
from imbalanced_losses.modules._base import Config, LossModule, field_names, refuse_gradient
from imbalanced_losses.modules._gathering import reduce_over_ranks
from imbalanced_losses.reductions import Elements
from imbalanced_losses.validation import check_element_weights

__all__ = ["ChangedLogitsLoss", "ElementwiseLoss", "class_numbers"]


class ElementwiseSettings(LossModule[Config], ABC):
    """The settings of an elementwise loss module, of which those per class are buffers."""

    def reset_parameters(self) -> None:
        """Reset the per-class settings to those of the configuration; a loss without any has no state."""
        for name in self._buffer_fields:
            buffer, values = getattr(self, name), getattr(self._config, name)
            if isinstance(buffer, Tensor) and values is not None:
                with torch.no_grad():
                    buffer.copy_(torch.tensor(values, dtype=buffer.dtype))

    def extra_repr(self) -> str:
        """Show the configuration in ``repr``, with the values in the buffers."""
        settings = {name: getattr(self._config, name) for name in field_names(type(self._config))}
        return ", ".join(f"{name}={value!r}" for name, value in (settings | self._held_settings()).items())

    def __setattr__(self, name: str, value: Any) -> None:
        """Check a setting in a buffer like an argument, then set, make or remove the buffer."""
        old = self._buffers.get(name) if name in self._buffer_fields else None
        # load_state_dict(assign=True) fills a module on meta
        if name not in self._buffer_fields or (old is not None and old.is_meta and isinstance(value, Tensor)):
            super().__setattr__(name, value)
            return
        refuse_gradient(name, value)
        config = dataclasses.replace(self._config, **{name: value})  # type: ignore[type-var]
        new = class_numbers(value, getattr(config, name))
        held = [self._buffers.get(field) for field in (name, *self._buffer_fields)]
        like = next((buffer for buffer in held if buffer is not None), None)
        self._buffers[name] = new if new is None or like is None else new.to(like)
        self._config = config

    def _held_settings(self) -> dict[str, Any]:
        buffers = {name: getattr(self, name) for name in self._buffer_fields}
        return {name: tuple(buffer.tolist()) for name, buffer in buffers.items() if can_read_values(buffer)}

    def _before_compiled_call(self, **kwargs: Any) -> None:
        """Do nothing: a call changes no state."""


class ElementwiseLoss(ElementwiseSettings[Config], ABC):
    """An elementwise loss whose function parses the targets itself."""

    @abstractmethod
    def _check_values(self, inputs: Tensor, targets: Tensor) -> None:
        """Check the values of the targets."""

    @final
    def _reduced(
        self,
        function: Callable[..., Tensor],
        elements: Callable[..., Elements],
        inputs: Tensor,
        targets: Tensor,
        sample_weight: Tensor | None,
        *,
        single_label: bool,
        **buffers: Tensor | None,
    ) -> Tensor:
        """Return the loss of this rank's elements by ``function``, or that of all ranks' by ``elements``."""
        ranks, reduction = self._find_ranks(), self._config.reduction  # type: ignore[attr-defined]
        if ranks is None or reduction == "none":
            self._check(inputs, targets, sample_weight)
            return function(inputs, targets, self._config, sample_weight=sample_weight, **buffers)

        def own() -> Elements:
            self._check(inputs, targets, sample_weight)
            return elements(inputs, targets, self._config, sample_weight=sample_weight, **buffers)

        mean = reduction != "sum"
        return reduce_over_ranks(ranks, self.grad_reduction, inputs, own, mean=mean, single_label=single_label)

    @final
    def _check(self, inputs: Tensor, targets: Tensor, sample_weight: Tensor | None) -> None:
        if not self.validate_targets:
            return
        if can_read_values(targets):
            self._check_values(inputs, targets)
        if sample_weight is not None and isinstance(targets, Tensor):
            _check_weights(sample_weight, targets)


class ChangedLogitsLoss(ElementwiseSettings[Config], ABC):
    """An elementwise loss that is the cross-entropy of changed logits. It parses the targets once, for all steps."""

    @final
    def _check_parsed(self, inputs: Tensor, parsed: ParsedTargets, sample_weight: Tensor | None) -> None:
        if not self.validate_targets:
            return
        targets, ignore_index = parsed.values, self._config.ignore_index  # type: ignore[attr-defined]
        if parsed.bounds is not None or can_read_values(targets):
            if parsed.binary:
                check_probability_values(targets, ignore_index, parsed.bounds)
            else:
                check_class_id_values(targets, inputs.shape[1], ignore_index, parsed.bounds)
        if sample_weight is not None:
            _check_weights(sample_weight, targets)


def _check_weights(sample_weight: Tensor, targets: Tensor) -> None:
    if can_read_values(sample_weight):
        check_weight_values(check_element_weights("sample_weight", sample_weight, targets))


def class_numbers(given: Any, values: tuple[float, ...] | None) -> Tensor | None:
    """Make the buffer of checked ``values``, in the dtype of a given tensor, but float32 or wider: half overflows."""
    if values is None:
        return None
    is_tensor = isinstance(given, Tensor)
    dtype = given.dtype if is_tensor and given.is_floating_point() else torch.get_default_dtype()
    device = given.device if is_tensor else None
    return torch.tensor(values, dtype=torch.promote_types(dtype, torch.float32), device=device)

"""What every loss has as a module: its configuration as attributes, and the ranks that it gathers from."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, final

from torch import Tensor, nn

from imbalanced_losses.checks import check_choice
from imbalanced_losses.distributed import GradReduction, Ranks, find_ranks
from imbalanced_losses.execution import is_in_backward, is_traced
from imbalanced_losses.modules._loading import LoadableModule

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Config",
    "LossModule",
    "at_least_float32",
    "field_property",
    "fixed_setting",
    "refuse_gradient",
    "refuse_second_pass",
]

Config = TypeVar("Config")


@final
class _SharedGroup:
    """A process group as a module's attribute: a copy of the module shares it; with one it cannot be pickled."""

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedGroup:
        return self

    def __reduce__(self) -> tuple[type[_SharedGroup], tuple[None]]:
        if self.group is not None:
            raise TypeError("expected a loss without group= to pickle: a process group ends with its process")
        return _SharedGroup, (None,)


class LossModule(LoadableModule, ABC, Generic[Config]):
    """The settings of a loss: the fields of its configuration, whether it reads values, and how it gathers.

    A class names its configuration, ``class SmoothAPLoss(RankingLoss[SmoothAPConfig], config=SmoothAPConfig)``, and has
    each field as an attribute. An assignment is checked like an argument of the constructor, and holds from the next
    call on; one that the state rules out raises ``AttributeError``.
    """

    # Fields that are buffers of the module: they are assigned as such.
    _buffer_fields: ClassVar[tuple[str, ...]] = ()
    # Fields that shape the state: they cannot change.
    _fixed_fields: ClassVar[tuple[str, ...]] = ()

    _config: Config

    def __init_subclass__(cls, config: type | None = None) -> None:
        super().__init_subclass__()
        for field in () if config is None else dataclasses.fields(config):
            if field.name not in cls._buffer_fields:
                setattr(cls, field.name, field_property(field.name))

    def __init__(
        self,
        config: Config,
        gather_distributed: bool | None,
        validate_targets: bool,
        grad_reduction: GradReduction,
        group: ProcessGroup | None,
    ) -> None:
        super().__init__()
        self._config = config
        self.gather_distributed = gather_distributed
        self.validate_targets = validate_targets
        self.grad_reduction = grad_reduction
        self.group = group

    @property
    def config(self) -> Config:
        """The configuration that the pure function takes. A new one can be assigned."""
        return self._configuration()

    @config.setter
    def config(self, config: Config) -> None:
        if type(config) is not type(self._config):
            raise TypeError(f"expected config to be a {type(self._config).__name__}, got {type(config).__name__}")
        for name in self._fixed_fields:
            if getattr(config, name) != getattr(self._config, name):
                raise fixed_setting(self, name)
        for name in self._buffer_fields:
            if getattr(config, name) != getattr(self._config, name):
                setattr(self, name, getattr(config, name))
        self._config = config

    @property
    def grad_reduction(self) -> GradReduction:
        """What happens to the ranks' gradients."""
        return self._grad_reduction

    @grad_reduction.setter
    def grad_reduction(self, value: GradReduction) -> None:
        check_choice("grad_reduction", value, ("mean", "sum"))
        self._grad_reduction = value

    @property
    def group(self) -> ProcessGroup | None:
        """The process group whose rows count; ``None`` is the default group."""
        return self._group.group

    @group.setter
    def group(self, group: ProcessGroup | None) -> None:
        self._group = _SharedGroup(group)

    @abstractmethod
    def _configuration(self) -> Config:
        """The configuration, with what buffers hold."""

    @final
    def _find_ranks(self) -> Ranks | None:
        """Whose rows count in this call, if not the own ones alone."""
        return find_ranks(self.gather_distributed, self.group)


def refuse_gradient(name: str, value: object) -> None:
    """A setting that a user made trainable would be copied, and never trained."""
    if isinstance(value, Tensor) and value.requires_grad:
        raise TypeError(f"expected {name} that needs no gradient (no loss trains it), got one that does: detach() it")


def refuse_second_pass() -> None:
    """For a call that changes state. Activation checkpointing runs it once more in the backward: on changed state."""
    if not is_traced() and is_in_backward():
        raise RuntimeError(
            "expected the loss outside activation checkpointing, got a second pass of it in the backward, which would "
            "meet what the first has changed (queue, steps): checkpoint the model, and call the loss on its output"
        )


def field_property(name: str) -> property:
    """A field of ``module._config``, which an assignment replaces through ``module.config``."""

    def read(module: Any) -> Any:
        return getattr(module._config, name)

    def assign(module: Any, value: Any) -> None:
        module.config = dataclasses.replace(module._config, **{name: value})

    return property(read, assign, doc=f"``config.{name}``.")


def fixed_setting(module: nn.Module, name: str) -> AttributeError:
    """What to raise where a setting cannot change."""
    return AttributeError(
        f"expected no change of {name}, which shapes the queue, got an assignment: make a new {type(module).__name__}"
    )


def at_least_float32(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What ``fn`` makes of a buffer, but for a cast to a half type, in which counts and weights overflow."""
    moved = fn(tensor)
    return tensor.to(moved.device) if moved.is_floating_point() and moved.dtype.itemsize < 4 else moved

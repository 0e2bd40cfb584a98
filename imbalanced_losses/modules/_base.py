"""What every loss has as a module: its configuration as attributes, and the ranks that it gathers from."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, final

from torch import Tensor, nn

from imbalanced_losses.distributed import GradReduction, Ranks, find_ranks
from imbalanced_losses.modules._lifecycle import StatefulModule
from imbalanced_losses.validation import check_choice, check_flag

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Config",
    "LossModule",
    "at_least_float32",
    "field_names",
    "field_property",
    "fixed_setting",
    "flag_property",
    "refuse_gradient",
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


def field_property(name: str) -> property:
    """A field of ``module._config``, which an assignment replaces through ``module.config``."""

    def read(module: Any) -> Any:
        return getattr(module._config, name)

    def assign(module: Any, value: Any) -> None:
        module.config = dataclasses.replace(module._config, **{name: value})

    return property(read, assign, doc=f"``config.{name}``.")


def flag_property(name: str, *, optional: bool = False) -> Any:
    """An attribute that is ``True`` or ``False``, or ``None`` if ``optional``."""

    def read(module: Any) -> bool | None:
        return getattr(module, f"_{name}")  # type: ignore[no-any-return]

    def assign(module: Any, value: object) -> None:
        setattr(module, f"_{name}", None if optional and value is None else check_flag(name, value))

    return property(read, assign, doc=f"The constructor's ``{name}``.")


class LossModule(StatefulModule, ABC, Generic[Config]):
    """The settings of a loss: the fields of its configuration, whether it reads values, and how it gathers.

    A class names its configuration, ``class SmoothAPLoss(RankingLoss[SmoothAPConfig], config=SmoothAPConfig)``, and has
    each field as an attribute. An assignment is checked like an argument of the constructor, and holds from the next
    call on; one that the state rules out raises ``AttributeError``.
    """

    # Fields that are buffers of the module: they are assigned as such.
    _buffer_fields: ClassVar[tuple[str, ...]] = ()
    # Fields that shape the state: they cannot change.
    _fixed_fields: ClassVar[tuple[str, ...]] = ()

    validate_targets = flag_property("validate_targets")
    gather_distributed = flag_property("gather_distributed", optional=True)

    _config_class: ClassVar[type]
    _config: Config

    def __init_subclass__(cls, config: type | None = None) -> None:
        super().__init_subclass__()
        if config is not None:
            cls._config_class = config
            for name in field_names(config):
                if name not in cls._buffer_fields:
                    setattr(cls, name, field_property(name))

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        """``arguments`` are those of the class below, by name: the fields of its configuration among them."""
        super().__init__()
        self._config = self._config_class(**{name: arguments[name] for name in field_names(self._config_class)})
        self.gather_distributed = arguments["gather_distributed"]
        self.validate_targets = arguments["validate_targets"]
        self.grad_reduction = arguments["grad_reduction"]
        self.group = arguments["group"]

    def __setattr__(self, name: str, value: Any) -> None:
        """A loss has no parameters to train."""
        refuse_gradient(name, value)
        super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follow ``.to()``, but stay in float32 where the module is cast to a half type: weights overflow there."""
        return super()._apply(partial(_at_least_float32, fn), recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for name, buffer in self._buffers.items():  # which assign=True takes as they are
            if buffer is not None and buffer.is_floating_point():
                self._buffers[name] = at_least_float32(buffer)

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


def field_names(config: type) -> tuple[str, ...]:
    """Of a configuration's class."""
    return tuple(field.name for field in dataclasses.fields(config))


def refuse_gradient(name: str, value: object) -> None:
    """A setting that a user made trainable would be copied, and never trained."""
    if isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and value.requires_grad):
        raise TypeError(f"expected {name} that needs no gradient (no loss trains it), got one that does: detach() it")


def fixed_setting(module: nn.Module, name: str) -> AttributeError:
    """What to raise where a setting cannot change."""
    return AttributeError(
        f"expected no change of {name}, which shapes the queue, got an assignment: make a new {type(module).__name__}"
    )


def at_least_float32(tensor: Tensor) -> Tensor:
    """``tensor``, in float32 if it is of a half type."""
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize < 4 else tensor


def _at_least_float32(fn: Callable[[Tensor], Tensor], tensor: Tensor) -> Tensor:
    """What ``fn`` makes of a buffer, with the digits that the buffer has."""
    moved = fn(tensor)
    is_half = moved.is_floating_point() and moved.dtype.itemsize < 4
    return at_least_float32(tensor).to(moved.device) if is_half else moved

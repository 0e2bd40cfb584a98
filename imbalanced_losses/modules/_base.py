"""The base class of all loss modules: the configuration as attributes, and the ranks to gather from."""

from __future__ import annotations

import dataclasses
from abc import ABC
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, final

from torch import Tensor, nn

from imbalanced_losses.distributed import GradReduction, Ranks, find_ranks
from imbalanced_losses.dtypes import at_least_float32, moved_at_least_float32
from imbalanced_losses.lifecycle import StatefulModule
from imbalanced_losses.settings import check_choice, check_flag

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = [
    "Config",
    "LossModule",
    "field_names",
    "field_property",
    "fixed_setting",
    "flag_property",
    "refuse_gradient",
]

Config = TypeVar("Config")


@final
class _SharedGroup:
    """A process group as a module's attribute. Copies of the module share it; a module with one cannot be pickled."""

    def __init__(self, group: ProcessGroup | None) -> None:
        self.group = group

    def __deepcopy__(self, memo: dict[int, Any]) -> _SharedGroup:
        return self

    def __reduce__(self) -> tuple[type[_SharedGroup], tuple[None]]:
        if self.group is not None:
            raise TypeError("expected a loss without group= to pickle: a process group ends with its process")
        return _SharedGroup, (None,)


def field_property(name: str) -> property:
    """A property for a field of ``module._config``."""

    def read(module: Any) -> Any:
        return getattr(module._config, name)

    def assign(module: Any, value: Any) -> None:
        module._set_field(name, value)

    return property(read, assign, doc=f"``config.{name}``.")


def flag_property(name: str, *, optional: bool = False) -> Any:
    """A property that is ``True`` or ``False``, or ``None`` if ``optional``."""

    def read(module: Any) -> bool | None:
        return getattr(module, f"_{name}")  # type: ignore[no-any-return]

    def assign(module: Any, value: object) -> None:
        setattr(module, f"_{name}", None if optional and value is None else check_flag(name, value))

    return property(read, assign, doc=f"The constructor's ``{name}``.")


class LossModule(StatefulModule, ABC, Generic[Config]):
    """A loss module: its configuration's fields, ``validate_targets``, and how it gathers.

    A class names its configuration, ``class SmoothAPLoss(RankingLoss[SmoothAPConfig], config=SmoothAPConfig)``, and has
    each field as an attribute. An assignment is checked like an argument of the constructor and takes effect from the
    next call on. A change that the state does not allow raises ``AttributeError``.
    """

    # Fields that are buffers of the module and are assigned as such.
    _buffer_fields: ClassVar[tuple[str, ...]] = ()
    # Fields that determine the state's shape and cannot change.
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
        """``arguments`` are those of the subclass, by name. They include the fields of its configuration."""
        super().__init__()
        self._config = self._config_class(**{name: arguments[name] for name in field_names(self._config_class)})
        self.gather_distributed = arguments["gather_distributed"]
        self.validate_targets = arguments["validate_targets"]
        self.grad_reduction = arguments["grad_reduction"]
        self.group = arguments["group"]

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse a tensor that requires grad: a loss has no parameters to train."""
        refuse_gradient(name, value)
        super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follow ``.to()``, but stay in float32 when the module is cast to a half dtype, in which weights overflow."""
        return super()._apply(partial(moved_at_least_float32, fn), recurse)  # type: ignore[no-untyped-call]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for name, buffer in self._buffers.items():  # assign=True puts loaded tensors here in their own dtype
            if buffer is not None and buffer.is_floating_point():
                self._buffers[name] = at_least_float32(buffer)

    @property
    def config(self) -> Config:
        """The configuration that the pure function takes, with the class weights, counts or priors in the buffers.

        Its temperature is the number last assigned, not what a schedule has filled in. A new one can be assigned.
        """
        held = self._held_settings()
        return dataclasses.replace(self._config, **held) if held else self._config  # type: ignore[type-var]

    @config.setter
    def config(self, config: Config) -> None:
        if type(config) is not type(self._config):
            raise TypeError(f"expected config to be a {type(self._config).__name__}, got {type(config).__name__}")
        self._check_fixed(config)
        held = self._held_settings()
        for name in self._buffer_fields:
            if getattr(config, name) != held.get(name, getattr(self._config, name)):
                setattr(self, name, getattr(config, name))
        self._config = config

    def _set_field(self, name: str, value: Any) -> None:
        """Change a field that is not in a buffer; the others stay as they are."""
        config = dataclasses.replace(self._config, **{name: value})  # type: ignore[type-var]
        self._check_fixed(config)
        self._config = config

    def _check_fixed(self, config: Config) -> None:
        for name in self._fixed_fields:
            if getattr(config, name) != getattr(self._config, name):
                raise fixed_setting(self, name)

    @property
    def grad_reduction(self) -> GradReduction:
        """What is done with the gradients of the ranks, ``"mean"`` or ``"sum"``."""
        return self._grad_reduction

    @grad_reduction.setter
    def grad_reduction(self, value: GradReduction) -> None:
        check_choice("grad_reduction", value, ("mean", "sum"))
        self._grad_reduction = value

    @property
    def group(self) -> ProcessGroup | None:
        """The process group to gather from; ``None`` is the default group."""
        return self._group.group

    @group.setter
    def group(self, group: ProcessGroup | None) -> None:
        self._group = _SharedGroup(group)

    def _held_settings(self) -> dict[str, Any]:
        """Return the configuration's fields that are in buffers, if these are settings alone and can be read."""
        return {}

    @final
    def _find_ranks(self) -> Ranks | None:
        """Return the ranks to gather from in this call, or ``None`` if there is nothing to gather."""
        return find_ranks(self.gather_distributed, self.group)


def field_names(config: type) -> tuple[str, ...]:
    """Return the field names of a configuration class."""
    return tuple(field.name for field in dataclasses.fields(config))


def refuse_gradient(name: str, value: object) -> None:
    """Raise if a setting requires grad: it would be copied, and never trained."""
    if isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and value.requires_grad):
        raise TypeError(f"expected {name} that needs no gradient (no loss trains it), got one that does: detach() it")


def fixed_setting(module: nn.Module, name: str) -> AttributeError:
    """Return the error to raise when a setting that cannot change is assigned."""
    return AttributeError(
        f"expected no change of {name}, which shapes the queue, got an assignment: make a new {type(module).__name__}"
    )

"""What happens to a module between its calls: loaders that make it without memory, and compilation in place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from imbalanced_losses.dispatch import is_in_backward, is_traced

__all__ = ["StatefulModule", "refuse_second_pass"]


class StatefulModule(nn.Module, ABC):
    """A module whose buffers are right after ``from_pretrained`` of transformers, and that is compiled in place.

    The loader makes a model on ``meta``, fills it from the checkpoint and sets ``_is_hf_initialized`` on each tensor
    that it has filled. The others hold uninitialised memory. The model's ``_init_weights`` is to initialise them, but
    knows only layers. After it the loader sets ``_is_hf_initialized`` on each module: the setter restores the buffers.
    """

    _was_marked = False

    def __init__(self) -> None:
        super().__init__()
        self._has_no_memory = torch.empty(0).is_meta  # made under torch.device("meta")

    @abstractmethod
    def reset_parameters(self) -> None:
        """Bring back the state after construction, from the configuration alone."""

    @property
    def _is_hf_initialized(self) -> bool:
        return self._was_marked

    @_is_hf_initialized.setter
    def _is_hf_initialized(self, is_initialized: bool) -> None:
        self._was_marked = is_initialized
        if not (is_initialized and self._has_no_memory):
            return
        self._has_no_memory = False
        if not all(getattr(buffer, "_is_hf_initialized", False) for buffer in self.buffers(recurse=False)):
            self.reset_parameters()  # all of it: a part that was loaded need not fit what is new

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile calls of this module in place, as of any module; :func:`torch.compile` takes the arguments."""
        super().compile(*args, **kwargs)
        # generated code sees neither who calls it nor what has filled the buffers since
        compiled = self._compiled_call_impl
        assert compiled is not None
        self._compiled_call_impl = partial(_look_and_call, self, compiled)

    @abstractmethod
    def _before_compiled_call(self, **kwargs: Any) -> None:
        """What an eager call looks at and a compiled one cannot; ``kwargs`` are the call's."""


def refuse_second_pass() -> None:
    """For a call that changes state. Activation checkpointing runs it once more in the backward: on changed state."""
    if not is_traced() and is_in_backward():
        raise RuntimeError(
            "expected the loss outside activation checkpointing, got a second pass of it in the backward, which would "
            "meet what the first has changed (queue, steps): checkpoint the model, and call the loss on its output"
        )


def _look_and_call(module: StatefulModule, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    module._before_compiled_call(**kwargs)
    return compiled(*args, **kwargs)

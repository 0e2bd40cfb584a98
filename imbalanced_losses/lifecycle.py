"""The lifecycle of a module with state: loaders that make it on ``meta``, and compilation in-place."""

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
    """A module with state that supports ``from_pretrained`` of transformers and compilation in-place.

    The loader makes a model on ``meta``, fills it from the checkpoint and sets ``_is_hf_initialized`` on each tensor
    that it has filled. The other tensors hold uninitialised memory. The model's ``_init_weights`` should initialise
    them, but it knows only layers. The loader then sets ``_is_hf_initialized`` on each module; this setter restores
    the buffers.
    """

    _was_marked = False

    def __init__(self) -> None:
        super().__init__()
        self._has_no_memory = torch.empty(0).is_meta  # made under torch.device("meta")

    @abstractmethod
    def reset_parameters(self) -> None:
        """Reset the state to what it was after construction, using only the configuration."""

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
            self.reset_parameters()  # all buffers: loaded ones need not be consistent with initialised ones

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile calls of this module in-place; the arguments are those of :func:`torch.compile`."""
        super().compile(*args, **kwargs)
        # compiled code can see neither its caller nor that buffers have been overwritten since the last call
        compiled = self._compiled_call_impl
        assert compiled is not None
        self._compiled_call_impl = partial(_check_and_call, self, compiled)

    @abstractmethod
    def _before_compiled_call(self, **kwargs: Any) -> None:
        """Check in eager mode what a compiled call cannot check; ``kwargs`` are the call's."""


def refuse_second_pass() -> None:
    """Raise if a call that changes state runs again in the backward, as activation checkpointing makes it do."""
    if not is_traced() and is_in_backward():
        raise RuntimeError(
            "expected the loss outside activation checkpointing, got a second pass of it in the backward, which would "
            "use state that the first has changed (queue, steps): checkpoint the model, and call the loss on its output"
        )


def _check_and_call(module: StatefulModule, compiled: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    module._before_compiled_call(**kwargs)
    return compiled(*args, **kwargs)

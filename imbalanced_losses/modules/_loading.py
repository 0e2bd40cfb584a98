"""Modules that a loader makes without memory: buffers that its checkpoint lacks come out as constructed."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import nn

__all__ = ["LoadableModule"]


class LoadableModule(nn.Module, ABC):
    """A module whose buffers are right after ``from_pretrained`` of transformers, whatever the checkpoint holds.

    The loader makes a model on ``meta``, fills it from the checkpoint and marks each tensor that it has filled with
    ``_is_hf_initialized``. The others get memory that holds anything. Their initialisation is the model's
    ``_init_weights``, which knows layers, not losses; after it the loader sets ``_is_hf_initialized`` of each module.
    That is the one moment of which a part of any model hears, so it brings its buffers back itself.
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

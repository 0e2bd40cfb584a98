"""A ranking loss's module as a pure function of its queue, which is what the contract is written for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from imbalanced_losses import QueueState

NAMES = [field.name for field in fields(QueueState)]


def as_function(shell: nn.Module) -> Callable[..., tuple[Tensor, QueueState]]:
    """``loss(logits, targets, queue_state, ...) -> (loss, new_state)``."""

    def loss(logits: Tensor, targets: Tensor, queue_state: QueueState, **extras: Any) -> tuple[Tensor, QueueState]:
        buffers = {f"queue_{name}": getattr(queue_state, name).clone() for name in NAMES}
        value = functional_call(shell, buffers, (logits, targets), extras)
        return value, QueueState(**{name: buffers[f"queue_{name}"] for name in NAMES})

    return loss

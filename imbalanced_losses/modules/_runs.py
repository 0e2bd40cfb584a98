"""Actions on every loss in a module, at any depth: empty queues when a run starts, warn when an epoch ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from imbalanced_losses.modules._queue import QueueLoss

__all__ = ["empty_queues", "warn_of_invalid_epoch"]


def empty_queues(loss: Callable[..., Any]) -> None:
    """Call ``reset_queue`` on a wrapper's loss and all its parts; any callable that has it counts."""
    for part in _parts(loss):
        reset_queue = getattr(part, "reset_queue", None)
        if reset_queue is not None:
            reset_queue()


def warn_of_invalid_epoch(loss: Callable[..., Any]) -> None:
    """Warn about each loss with a queue for which no step of an epoch was valid. Call it when the epoch ends."""
    for part in _parts(loss):
        if isinstance(part, QueueLoss):
            part.warn_of_invalid_epoch()


def _parts(loss: Callable[..., Any]) -> Iterator[object]:
    return loss.modules() if isinstance(loss, nn.Module) else iter([loss])

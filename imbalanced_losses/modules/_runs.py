"""Actions on every loss in a module, at any depth: forget rows when a run starts, warn when an epoch ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from imbalanced_losses.modules._queue import QueueLoss

__all__ = ["empty_queues", "forget_rows", "warn_of_invalid_epoch"]


def empty_queues(loss: Callable[..., Any]) -> None:
    """Call ``reset_queue`` on a wrapper's loss and all its parts; any callable that has it counts."""
    _call_on_parts(loss, "reset_queue")


def forget_rows(loss: Callable[..., Any]) -> None:
    """Reset what a wrapper's loss and its parts keep of earlier rows: queues and class counts."""
    empty_queues(loss)
    _call_on_parts(loss, "reset_class_counts")


def warn_of_invalid_epoch(loss: Callable[..., Any]) -> None:
    """Warn about each loss with a queue for which no step of an epoch was valid. Call it when the epoch ends."""
    for part in _parts(loss):
        if isinstance(part, QueueLoss):
            part.warn_of_invalid_epoch()


def _call_on_parts(loss: Callable[..., Any], method: str) -> None:
    for part in _parts(loss):
        call = getattr(part, method, None)
        if call is not None:
            call()


def _parts(loss: Callable[..., Any]) -> Iterator[object]:
    return loss.modules() if isinstance(loss, nn.Module) else iter([loss])

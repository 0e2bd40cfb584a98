"""The strategy of queue states draws every kind of state that pushes can lead to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import find

from imbalanced_losses import QueueState
from imbalanced_losses.testing import queue_states

KINDS: dict[str, Callable[[QueueState], bool]] = {
    "without slots": lambda state: state.targets.numel() == 0,
    "empty": lambda state: state.targets.numel() > 0 and not state.valid.any(),
    "partly full": lambda state: bool(state.valid.any() and not state.valid.all()),
    "full": lambda state: state.targets.numel() > 0 and bool(state.valid.all() and state.cursor == 0),
    "wrapped": lambda state: state.targets.numel() > 0 and bool(state.valid.all() and state.cursor > 0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_drawn(kind: str) -> None:
    find(queue_states(ignored=False), KINDS[kind])  # raises if it finds none

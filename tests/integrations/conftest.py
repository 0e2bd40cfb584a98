"""What the frameworks keep in the process is not handed from test to test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    """Device, processes and precision of the last Accelerator, or Trainer, hold for the next one in the process."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)

"""Two processes train in the Trainer what one does on the concatenated batch."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.distributed.processes import Processes
from tests.integrations.transformers_ddp import LOSSES, train


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    with Processes(2) as started:
        yield started


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("loss", LOSSES)
def test_two_processes_train_as_one(loss: str, accumulated: int, averaged: bool, processes: Processes) -> None:
    settings = {"gradient_accumulation_steps": accumulated, "average_tokens_across_devices": averaged}
    alone = train(loss, 8, **settings)
    for together in processes.run("tests.integrations.transformers_ddp:train", loss=loss, rows_per_step=4, **settings):
        for one, other in zip(alone[:2], together[:2], strict=True):
            for name, value in one.items():
                torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)
        assert together[2] == pytest.approx(alone[2], rel=1e-4)
        assert together[3] == pytest.approx(alone[3], rel=1e-4)

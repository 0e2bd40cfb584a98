"""What is saved on W ranks goes on on W' as one process would, also after a rank died."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.processes import Processes
from tests.distributed.resuming import MAIN_LOSSES, go_on, push_all

GroupOf = Callable[[int], Processes]
JOBS = "tests.distributed.resuming"
STEPS = 9

every_loss = pytest.mark.parametrize("loss", MAIN_LOSSES)


@pytest.mark.parametrize("size", [2, 3, 4])
@every_loss
def test_queues_are_those_of_one_process_to_the_bit(processes: GroupOf, loss: str, size: int) -> None:
    """Batches below, at and above the queue's 17 rows, and none at all; the cursor goes round several times."""
    numbers = random.Random(size)
    schedule = [[numbers.choice([0, 1, 3, 5, 7, 19]) for _ in range(size)] for _ in range(11)]
    schedule[4] = [0] * size
    schedule[5] = [17, *[0] * (size - 1)]
    alone = push_all(loss, schedule, rank=-1)
    for of_rank in processes(size).run(f"{JOBS}:push_all", loss=loss, schedule=schedule):
        for step, (state, expected) in enumerate(zip(of_rank, alone, strict=True)):
            for name, value in expected.items():
                assert torch.equal(state[name], value), (step, name)


@pytest.mark.parametrize(("before", "after"), [(2, 3), (4, 2), (3, 1), (1, 2)])
@pytest.mark.parametrize("stop", [1, 3, 6], ids=["warm-up", "blend", "main"])
@every_loss
def test_resumes_with_another_number_of_ranks(
    processes: GroupOf, tmp_path: Path, loss: str, before: int, after: int, stop: int
) -> None:
    path = str(tmp_path / "checkpoint.pt")
    first = train(processes, before, loss=loss, first=0, last=stop, save_to=path)
    second = train(processes, after, loss=loss, first=stop, last=STEPS, path=path)
    alone = go_on(loss, 0, STEPS, alone=True)
    for run in first:
        torch.testing.assert_close(run["losses"], alone["losses"][:stop], rtol=1e-5, atol=1e-6)
    for run in second:
        assert_same_end(run, alone, stop)
        for name, value in run["state"].items():
            assert torch.equal(value, second[0]["state"][name])


@pytest.mark.parametrize(("size", "how", "who"), [(3, "before the forward", 0), (2, "before the backward", 1)])
def test_a_rank_that_dies(processes: GroupOf, tmp_path: Path, size: int, how: str, who: int) -> None:
    """The others get torch's own error, none hangs, and the last completed step is what a new job goes on from."""
    path, stop = str(tmp_path / "checkpoint.pt"), 6
    job = {"loss": "smooth_ap", "first": 0, "last": STEPS, "save_to": path, "death": (how, who, stop)}
    with Processes(size, timeout=10) as group:
        results = group.try_run(f"{JOBS}:go_on", **job)
    assert results.pop(who) == (None, "died")
    for _, error in results:
        assert re.search(r"^(RuntimeError|torch\.distributed\.\w+): .*gloo", error or "", re.MULTILINE), error
        assert "ValueError" not in str(error)
    alone = go_on("smooth_ap", 0, STEPS, alone=True)
    for run in train(processes, 2, loss="smooth_ap", first=stop, last=STEPS, path=path):
        assert_same_end(run, alone, stop)


def train(processes: GroupOf, size: int, **options: Any) -> list[dict[str, Any]]:
    return [go_on(**options, alone=True)] if size == 1 else processes(size).run(f"{JOBS}:go_on", **options)


def assert_same_end(run: dict[str, Any], alone: dict[str, Any], first: int) -> None:
    difference = (run["parameters"] - alone["parameters"]).norm() / alone["parameters"].norm()
    assert difference <= 1e-5
    torch.testing.assert_close(run["losses"], alone["losses"][first:], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(run["state"], alone["state"], rtol=1e-4, atol=1e-5)

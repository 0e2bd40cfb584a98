"""Groups of processes, started once for all tests of a worker of the suite."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.distributed.processes import Processes


@pytest.fixture(scope="session")
def processes() -> Iterator[Callable[[int], Processes]]:
    groups: dict[int, Processes] = {}

    def of_size(size: int) -> Processes:
        if size not in groups:
            groups[size] = Processes(size)
        return groups[size]

    yield of_size
    for group in groups.values():
        group.close()

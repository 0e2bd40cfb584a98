"""W real processes in one gloo group, which run functions of the tests' modules."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
from multiprocessing.connection import Listener
from pathlib import Path
from types import TracebackType
from typing import Any

import coverage

ROOT = Path(__file__).parents[2]


class Processes:
    """Starts W workers; all of them run each job, and the results come back in the order of their ranks."""

    def __init__(self, size: int, timeout: float = 60) -> None:
        self.size, self.timeout = size, timeout
        self._folder = tempfile.TemporaryDirectory()
        address, store = str(Path(self._folder.name) / "line"), str(Path(self._folder.name) / "store")
        measured = (
            {} if coverage.Coverage.current() is None else {"COVERAGE_PROCESS_START": str(ROOT / "pyproject.toml")}
        )
        env = {**os.environ, **measured}
        with Listener(address, "AF_UNIX", backlog=size) as listener:
            worker = [sys.executable, str(Path(__file__).with_name("worker.py")), address, store]
            self.workers = [
                subprocess.Popen([*worker, str(rank), str(size), str(timeout)], env=env, stderr=subprocess.DEVNULL)
                for rank in range(size)
            ]
            lines = [listener.accept() for _ in range(size)]
        self._lines = dict(sorted((line.recv(), line) for line in lines))

    def run(self, job: str, **options: Any) -> list[Any]:
        """The results of ``"module:function"`` on every rank; an error of any is an error of the test."""
        results = self.try_run(job, **options)
        failures = [f"rank {rank}:\n{error}" for rank, (_, error) in enumerate(results) if error is not None]
        assert not failures, "\n".join(failures)
        return [result for result, _ in results]

    def try_run(self, job: str, **options: Any) -> list[tuple[Any, str | None]]:
        """``(result, traceback)`` of every rank; of one that died, ``(None, "died")``."""
        is_covered = coverage.Coverage.current() is not None
        for line in self._lines.values():
            line.send_bytes(pickle.dumps((job, options, is_covered)))
        return [self._receive(rank) for rank in range(self.size)]

    def _receive(self, rank: int) -> tuple[Any, str | None]:
        if not self._lines[rank].poll(self.timeout + 20):  # longer than torch waits
            self.close()
            raise TimeoutError(f"rank {rank} hangs")
        try:
            return pickle.loads(self._lines[rank].recv_bytes())  # type: ignore[no-any-return]
        except (EOFError, ConnectionResetError):
            return None, "died"

    def close(self) -> None:
        for line in self._lines.values():
            line.close()
        for worker in self.workers:
            try:
                worker.wait(10)  # it saves what coverage has measured
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self._folder.cleanup()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

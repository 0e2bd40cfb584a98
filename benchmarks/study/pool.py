"""Worker processes of the study: one for each thread that asks and each series."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from processes import LostWorkerError, Worker

__all__ = ["FAILURES", "WorkerPool"]

FAILURES = (LostWorkerError, RuntimeError, ValueError, OSError)  # of a run: the worker's, the data's and the measures'

SCRIPT = Path(__file__).with_name("train.py")
HERE = ("ours", "trees")  # series that run in this environment


class WorkerPool:
    """Starts a worker when it is first asked, with the interpreter of its series."""

    def __init__(self, pythons: dict[str, str]) -> None:
        self.pythons, self.started, self.lock = pythons, list[Worker](), threading.Lock()
        self.slot = threading.local()

    def ask(self, series: str, timeout: float, /, **request: object) -> dict[str, Any]:
        """Ask the worker of this thread."""
        if not hasattr(self.slot, "workers"):
            self.slot.workers = {}
        workers: dict[str, Worker] = self.slot.workers
        if series not in workers:
            workers[series] = Worker(self.pythons[series], script=SCRIPT, keep_python_path=series in HERE)
            with self.lock:
                self.started.append(workers[series])
        try:
            return workers[series].ask(timeout, **request)
        except OSError as error:
            raise LostWorkerError(f"no environment: {error.strerror}") from error

    def hello(self) -> dict[str, dict[str, Any]]:
        """Versions by series, or why it cannot run."""
        answers = {}
        for series in self.pythons:
            try:
                answers[series] = self.ask(series, 180, do="hello", series=series)
            except LostWorkerError as error:
                answers[series] = {"skipped": str(error)}
        self.stop()  # this thread only asked; its workers would wait, with their memory, to the end
        return answers

    def stop(self) -> None:
        """End the workers."""
        for worker in self.started:
            worker.stop()

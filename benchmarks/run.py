"""Time forward + backward of every loss beside the peer package and ``torch.sort``, and write docs/benchmarks.*.

    python benchmarks/run.py --peer .venv-peer/bin/python

A worker process a series, such as ours, ours compiled, the peer, ``torch.sort``; and another one for its memory. They
are asked in turn, round after round, so that one computes at a time and a slow minute of the machine slows all of them.
Results are written after each cell.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import COMPILED, SERIES, Cell, select
from hardware import describe
from pages import rounded
from processes import LostWorkerError, Worker
from report import write_report
from tqdm import tqdm

Result = dict[str, Any]

OUT_OF_TIME = "the run's time was spent"


@dataclass(frozen=True)
class Limits:
    """What measuring may cost."""

    rounds: int = 5
    slice_seconds: float = 0.08  # of one series in one round: as many calls as fit, one at least
    cell_seconds: float = 5.0  # no new round after this
    call_seconds: float = 5.0  # a slower call is made once, and larger pools are not tried
    compile_seconds: float = 60.0
    memory_bytes: int = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2

    @property
    def patience(self) -> float:
        """Seconds to wait for a call and the making of its inputs before the worker is given up."""
        return 3 * self.call_seconds + 15


QUICK = Limits(rounds=2, slice_seconds=0.02)


class Bench:
    """Measures cells with its workers, and remembers smaller pools to tell what a larger one costs at least."""

    def __init__(self, workers: dict[str, Worker], memory_workers: dict[str, Worker], limits: Limits) -> None:
        self.workers, self.memory_workers, self.limits = workers, memory_workers, limits
        self.seen: dict[tuple[object, ...], tuple[int, Result]] = {}

    def measure(self, cell: Cell) -> dict[str, Result]:
        """Results by series: ``seconds`` and ``peak_bytes``, or why not."""
        results: dict[str, Result] = {series: {} for series in cell.series if series in self.workers}
        if cell.task == "time":
            # an empty folder, so that the first call compiles; the worker for memory finds there what that has compiled
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
                self._measure_steps(cell, results, cache)
        else:
            for series, result in results.items():
                result.update(self._ask(self.workers[series], result, 300, do=cell.task, work=cell.work(series)))
        return results

    def _measure_steps(self, cell: Cell, results: dict[str, Result], cache: str) -> None:
        for series, result in results.items():
            self._prepare(cell, series, result, cache)
        self._time(results)
        for series, result in results.items() if not cell.states else ():
            request = {"do": "memory", "work": cell.work(series), "cache": cache}
            answer = self._ask(self.memory_workers[series], result, self._patience(series), **request)
            result.update({"peak_bytes": answer["bytes"]} if answer else {})
        self.remember(cell, results)

    def remember(self, cell: Cell, results: dict[str, Result]) -> None:
        """Take note of results, measured now or in the run that this one goes on with."""
        self.seen.update({(*cell.family, series): (cell.pool, result) for series, result in results.items()})

    def _patience(self, series: str) -> float:
        """Seconds to wait for inputs to be made and a first call."""
        return self.limits.patience + self.limits.compile_seconds * (series in COMPILED)

    @staticmethod
    def _ask(worker: Worker, result: Result, timeout: float, **request: object) -> Result:
        """Ask about a series that has not failed yet; a failure is a result."""
        if "skipped" not in result:
            try:
                return worker.ask(timeout, **request)
            except LostWorkerError as error:
                result["skipped"] = str(error)
        return {}

    def _prepare(self, cell: Cell, series: str, result: Result, cache: str) -> None:
        """Build the call and make it once; what that compiles and caches is not timed."""
        reason = self._reason_against(cell, series)
        if reason:
            result["skipped"] = reason
            return
        request = {"do": "prepare", "work": cell.work(series), "cache": cache}
        answer = self._ask(self.workers[series], result, self._patience(series), **request)
        if answer:
            result["first_call_seconds"] = rounded(answer["seconds"])

    def _reason_against(self, cell: Cell, series: str) -> str:
        """Why not to try, if there is a reason: no loss grows more slowly than its pool."""
        rows, smaller = self.seen.get((*cell.family, series), (cell.pool, {}))
        growth, limits = cell.pool / rows, self.limits
        if growth > 1 and "skipped" in smaller:
            return str(smaller["skipped"])
        if growth > 1 and growth * smaller.get("seconds", 0) > limits.call_seconds:
            return f"over {limits.call_seconds:g} s a call, going by a smaller pool"
        if growth > 1 and growth * (smaller.get("peak_bytes") or 0) > limits.memory_bytes:
            return f"over {limits.memory_bytes / 1e9:.0f} GB, going by a smaller pool"
        return ""

    def _time(self, results: dict[str, Result]) -> None:
        """Ask the series in turn, round after round, and take the least of the rounds' medians.

        A median within a round is the time of a typical call; among rounds the least is the one that the rest of the
        machine disturbed least, and disturbance only ever adds.
        """
        rounds: dict[str, list[float]] = {series: [] for series in results}
        end = time.monotonic() + self.limits.cell_seconds
        for _ in range(self.limits.rounds):
            for series, result in results.items():
                if rounds[series] and (time.monotonic() > end or min(rounds[series]) > self.limits.call_seconds):
                    continue
                request = {"do": "time", "seconds": self.limits.slice_seconds}
                answer = self._ask(self.workers[series], result, self.limits.patience, **request)
                rounds[series] += [rounded(answer["seconds"])] if answer else []
        for series, result in results.items():
            if rounds[series]:
                result.update(seconds=min(rounds[series]), rounds=rounds[series])


def make_workers(purpose: str, arguments: argparse.Namespace, limits: Limits) -> dict[str, Worker]:
    """Workers by series; none for the peer if there is no interpreter that has it."""
    settings = (purpose, arguments.device, str(arguments.threads), str(limits.memory_bytes))
    workers = {series: Worker(sys.executable, *settings) for series in SERIES if series != "peer"}
    if arguments.peer:
        workers["peer"] = Worker(arguments.peer, *settings, keep_python_path=False)
    return workers


def describe_machine(arguments: argparse.Namespace, workers: dict[str, Worker]) -> dict[str, object]:
    """What the numbers hang on."""
    versions = {series: workers[series].ask(120, do="hello") for series in workers if series in ("ours", "peer")}
    return {
        **describe(),
        "threads": arguments.threads,
        "device": versions["ours"]["device"],
        "torch": versions["ours"]["torch"],
        "packages": {series: version["package"] for series, version in versions.items()},
    }


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="interpreter of the environment that has the peer package; ours alone without")
    parser.add_argument("--rows", choices=("promises", "sweep", "all"), default="all")
    parser.add_argument("--max-rows", type=int, default=1 << 20, help="largest pool")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, nothing compiled")
    parser.add_argument("--minutes", type=float, default=28, help="no new cell after this long")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs"), help="folder for benchmarks.json, .md and .png")
    parser.add_argument("--resume", action="store_true", help="keep what the folder has, measure what it lacks")
    return parser.parse_args(argv)


def load_or_begin(path: Path, machine: dict[str, object], limits: Limits, *, resume: bool) -> dict[str, Any]:
    """The results so far: none, or those of the run to go on with."""
    if resume and path.exists():
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kept = {
            key: results
            for key, results in data["cells"].items()
            if not any(result.get("skipped") == OUT_OF_TIME for result in results.values())
        }
        return {**data, "cells": kept}
    bounds = {"call_seconds": limits.call_seconds, "memory_bytes": limits.memory_bytes, "rounds": limits.rounds}
    return {"machine": machine, "limits": bounds, "cells": {}}


def run(bench: Bench, asked: list[Cell], data: dict[str, Any], path: Path, minutes: float) -> None:
    """Measure cell by cell, and write all results after each."""
    end = time.monotonic() + 60 * minutes
    progress = tqdm(asked, unit="cell", smoothing=0)
    for cell in progress:
        progress.set_postfix_str(cell.key)
        if cell.key in data["cells"]:
            bench.remember(cell, data["cells"][cell.key])
            continue
        late = {series: {"skipped": OUT_OF_TIME} for series in cell.series if series in bench.workers}
        data["cells"][cell.key] = late if time.monotonic() > end else bench.measure(cell)
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Measure and report."""
    arguments = parse_args()
    limits = QUICK if arguments.quick else Limits()
    workers, memory_workers = (make_workers(purpose, arguments, limits) for purpose in ("time", "memory"))
    path = arguments.output / "benchmarks.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        data = load_or_begin(path, describe_machine(arguments, workers), limits, resume=arguments.resume)
        asked = select(arguments.rows, arguments.max_rows, quick=arguments.quick)
        run(Bench(workers, memory_workers, limits), asked, data, path, arguments.minutes)
    finally:
        for worker in (*workers.values(), *memory_workers.values()):
            worker.stop()
    write_report(arguments.output)


if __name__ == "__main__":
    main()

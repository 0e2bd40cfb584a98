"""Train every contender on every task, and write docs/outcome.*.

    PYTHONPATH=benchmarks python -m outcome.run --peer .venv-peer/bin/python --libauc .venv-libauc/bin/python

Each contender is tuned on a task: its four settings are trained with the first seeds, and the one whose mean of the
target measure on validation is best (of equals that with the best average precision) is trained with the others. Two
processes of one thread train at a time. Each finished run is appended to a file at once, and ``--resume`` goes on from
there.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from hardware import describe
from pages import rounded
from processes import LostWorkerError, Worker
from tqdm import tqdm

import imbalanced_losses
from outcome.comparison import best_setting
from outcome.contenders import BASELINE, BATCH, CONTENDERS, Contender
from outcome.measures import MEASURES, measure
from outcome.report import write_report
from outcome.results import dump
from outcome.tasks import TASKS, Data, Task

Result = dict[str, Any]
Cell = tuple[Task, Contender]

OUT_OF_TIME = "the run's time was spent"
SCRIPT = Path(__file__).with_name("train.py")
QUICK_TASKS = ("digits 3 %", "generated 1 %", "digits, long tail")


@dataclass(frozen=True)
class Protocol:
    """What is the same for all contenders."""

    first_seed: int = 0
    seeds: int = 10
    tuning_seeds: int = 3
    steps: int = 600
    batch: int = BATCH

    @property
    def tuning(self) -> range:
        """Seeds that settings are tried with."""
        return range(self.first_seed, self.first_seed + self.tuning_seeds)

    @property
    def all_seeds(self) -> range:
        """Seeds that are reported."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def runs(self) -> int:
        """Training runs of a contender on a task."""
        return 4 * self.tuning_seeds + self.seeds - self.tuning_seeds


QUICK = Protocol(seeds=2, tuning_seeds=1, steps=40)


class Journal:
    """The finished runs: the digest of the code that made them, and then a line of JSON each, added at once.

    A journal that is not resumed is kept beside the new one. One of other code cannot be resumed. Runs that failed are
    made again.
    """

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path, self.lock = path, threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self.runs: dict[str, Result] = {}
        # a line without an end was cut off with the run that wrote it
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if resume and path.exists() else []
        code = {"code": digest()}
        head, *kept = [json.loads(line) for line in lines if line.endswith("\n")] or [code]
        if head != code:
            raise SystemExit(f"the code has changed since {path} was begun: start anew, without --resume")
        if path.exists() and not resume:
            path.replace(path.with_suffix(".old"))
        kept = [run for run in kept if "skipped" not in run["result"]]
        self.runs.update((run["key"], run["result"]) for run in kept)
        path.write_text("".join(json.dumps(line) + "\n" for line in (head, *kept)), encoding="utf-8")

    def add(self, key: str, result: Result) -> None:
        """Keep a result, on disk before anything else happens."""
        with self.lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "result": result}) + "\n")
        self.runs[key] = result


def digest() -> str:
    """What a run's result hangs on besides its key: the package and the study's data, training and measures."""
    package = Path(imbalanced_losses.__file__).parent
    files = [
        *sorted(package.rglob("*.py")),
        *(SCRIPT.with_name(name) for name in ("tasks.py", "train.py", "measures.py")),
    ]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


class DataStore:
    """The data of tasks and seeds: made once, as files for the workers and as tensors for the measures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, threading.Lock()
        self.made: dict[tuple[str, int], tuple[Path, Data]] = {}

    def get(self, task: Task, seed: int) -> tuple[Path, Data]:
        """File and tensors."""
        with self.lock:
            if (task.name, seed) not in self.made:
                self.made[task.name, seed] = self._make(task, seed)
            return self.made[task.name, seed]

    def _make(self, task: Task, seed: int) -> tuple[Path, Data]:
        data = task.make(seed)
        path = self.folder / f"{len(self.made)}.pt"
        tensors = {"train_targets": data.train.targets}
        tensors |= {f"{name}_features": split.features for name, split in zip(data._fields, data, strict=True)}
        torch.save(tensors, path)
        return path, data


class Study:
    """Trains cells, one in each of its slots at a time; a slot has a worker process for each series."""

    def __init__(self, protocol: Protocol, journal: Journal, store: DataStore, pythons: dict[str, str]) -> None:
        self.protocol, self.journal, self.store, self.pythons = protocol, journal, store, pythons
        self.progress: tqdm[Any] = tqdm(unit="run", smoothing=0)
        self.counted: set[tuple[str, str]] = set()
        self.end = float("inf")
        self.workers: list[Worker] = []
        self.slot = threading.local()

    def hello(self) -> dict[str, Result]:
        """Versions by series, or why it cannot run."""
        answers = {}
        for series in self.pythons:
            try:
                answers[series] = self._worker(series).ask(180, do="hello", series=series)
            except LostWorkerError as error:
                answers[series] = {"skipped": f"no environment: {error}"}
            except OSError as error:
                answers[series] = {"skipped": f"no environment: {error.strerror}"}
        return answers

    def _worker(self, series: str) -> Worker:
        """The one of this slot."""
        if not hasattr(self.slot, "workers"):
            self.slot.workers = {}
        if series not in self.slot.workers:
            worker = Worker(self.pythons[series], script=SCRIPT, keep_python_path=series == "ours")
            self.slot.workers[series] = worker
            self.workers.append(worker)
        found: Worker = self.slot.workers[series]
        return found

    def cell(self, cell: Cell) -> Result:
        """Tune and train: the settings' validation scores, the chosen one, and its test measures seed by seed."""
        task, contender = cell
        tried = [[self.run(cell, i, seed) for seed in self.protocol.tuning] for i in range(len(contender.grid))]
        for run in itertools.chain(*tried):
            if "skipped" in run:
                return {"skipped": run["skipped"]}
        scores = {
            name: [[run["validation"][name] for run in of_setting] for of_setting in tried]
            for name in (task.target, "ap")
        }
        chosen = best_setting(*scores.values())
        runs = [self.run(cell, chosen, seed) for seed in self.protocol.all_seeds]
        for run in runs:
            if "skipped" in run:
                return {"skipped": run["skipped"]}
        means = [rounded(statistics.fmean(of_setting)) for of_setting in scores[task.target]]
        test = {name: [rounded(run["test"][name]) for run in runs] for name in MEASURES}
        milliseconds = 1e3 * statistics.median(run["seconds"] for run in runs)
        return {"chosen": chosen, "validation": means, "milliseconds": rounded(milliseconds), "test": test}

    def run(self, cell: Cell, setting: int, seed: int) -> Result:
        """One training run, now or in the journal; a failure is a result, too."""
        task, contender = cell
        key = json.dumps([task.name, contender.spec(), contender.grid[setting], seed, asdict(self.protocol)])
        is_new = key not in self.journal.runs
        if is_new:
            if time.monotonic() > self.end:
                return {"skipped": OUT_OF_TIME}
            try:
                self.journal.add(key, self._train(cell, setting, seed))
            except LostWorkerError as error:
                self.journal.add(key, {"skipped": f"failed: {error}"})
        if (contender.name, key) not in self.counted:  # two contenders may share a run
            self.counted.add((contender.name, key))
            self.progress.initial += not is_new  # old runs fill the bar and leave its rate alone
            self.progress.update()
        return self.journal.runs[key]

    def _train(self, cell: Cell, setting: int, seed: int) -> Result:
        task, contender = cell
        path, data = self.store.get(task, seed)
        output = self.store.folder / f"logits-{threading.get_ident()}.pt"
        answer = self._worker(contender.series).ask(
            300,
            do="train",
            data=str(path),
            output=str(output),
            kind=task.kind,
            n_classes=task.n_classes,
            budget=task.budget,
            contender=contender.spec(),
            setting=contender.grid[setting],
            seed=seed,
            steps=self.protocol.steps,
            batch=self.protocol.batch,
        )
        logits = torch.load(output)
        link = contender.link(task.kind)
        validation, test = (measure(logits[name], getattr(data, name), task, link) for name in ("validation", "test"))
        return {"seconds": answer["seconds"], "validation": validation, "test": test}

    def stop(self) -> None:
        """End the workers."""
        self.progress.close()
        for worker in self.workers:
            worker.stop()


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="interpreter of the environment that has the peer package")
    parser.add_argument("--libauc", default="", help="interpreter of the environment that has LibAUC")
    parser.add_argument(
        "--quick", action="store_true", help="three tasks, two seeds, few steps: only to see that it runs"
    )
    parser.add_argument("--minutes", type=float, default=58, help="no new run after this long")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each")
    parser.add_argument("--first-seed", type=int, default=0, help="what is published begins at 0")
    parser.add_argument("--seeds", type=int, help="seeds, from the first one")
    parser.add_argument("--tuning-seeds", type=int, help="how many of them try out settings")
    parser.add_argument("--steps", type=int, help="of each training run")
    parser.add_argument("--tasks", nargs="+", choices=[task.name for task in TASKS], metavar="TASK")
    parser.add_argument("--contenders", nargs="+", choices=[one.name for one in CONTENDERS], metavar="CONTENDER")
    parser.add_argument("--output", type=Path, help="folder for outcome.json, .md and .png (docs; of a part build/)")
    parser.add_argument("--journal", type=Path, help="file of the finished runs (build/outcome/runs.jsonl)")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs, make those that are missing")
    return parser.parse_args(argv)


def is_whole(arguments: argparse.Namespace) -> bool:
    """Whether all of the study is asked for, which is what is published."""
    narrowing = ("tasks", "contenders", "seeds", "tuning_seeds", "steps")
    return not (
        arguments.quick or arguments.first_seed or any(getattr(arguments, name) is not None for name in narrowing)
    )


def select(arguments: argparse.Namespace) -> list[Cell]:
    """The asked tasks with all contenders that can do them."""
    names = arguments.tasks or (QUICK_TASKS if arguments.quick else [task.name for task in TASKS])
    # whatever is asked for, differences need the baseline
    contenders = [one for one in CONTENDERS if one.name in {BASELINE, *(arguments.contenders or [one.name])}]
    tasks = [task for task in TASKS if task.name in names]
    return [(task, one) for task in tasks for one in contenders if one.takes(task.kind, task.name)]


def make_protocol(arguments: argparse.Namespace) -> Protocol:
    """The full or the quick one, but for what was asked for."""
    names = ("first_seed", "seeds", "tuning_seeds", "steps")
    asked = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    return Protocol(**{**asdict(QUICK if arguments.quick else Protocol()), **asked})


def describe_machine(arguments: argparse.Namespace, versions: dict[str, Result]) -> Result:
    """What the numbers hang on."""
    return {
        **describe(),
        "jobs": arguments.jobs,
        "torch": torch.__version__,
        "packages": {series: answer.get("package", answer.get("skipped")) for series, answer in versions.items()},
    }


def run(
    study: Study, cells: Sequence[Cell], available: dict[str, Result], arguments: argparse.Namespace
) -> Iterator[tuple[Cell, Result]]:
    """All cells, ``jobs`` at a time."""
    study.end = time.monotonic() + 60 * arguments.minutes

    def one(cell: Cell) -> Result:
        reason = available[cell[1].series].get("skipped")
        return {"skipped": reason} if reason else study.cell(cell)

    possible = [cell for cell in cells if "skipped" not in available[cell[1].series]]
    study.progress.reset(total=len(possible) * study.protocol.runs)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        yield from zip(cells, pool.map(one, cells), strict=True)


def collect(results: Iterator[tuple[Cell, Result]]) -> dict[str, dict[str, Result]]:
    """Results by task and contender."""
    cells: dict[str, dict[str, Result]] = {}
    for (task, contender), result in results:
        cells.setdefault(task.name, {})[contender.name] = result
    return cells


def main(argv: Sequence[str] | None = None) -> None:
    """Train and report."""
    arguments = parse_args(argv)
    torch.set_num_threads(1)
    build = Path("build", "outcome-quick" if arguments.quick else "outcome")
    output = arguments.output or (Path("docs") if is_whole(arguments) else build)
    journal = Journal(arguments.journal or build / "runs.jsonl", resume=arguments.resume)
    pythons = {"ours": sys.executable, "peer": arguments.peer, "libauc": arguments.libauc}
    with tempfile.TemporaryDirectory() as folder:
        study = Study(make_protocol(arguments), journal, DataStore(Path(folder)), pythons)
        try:
            versions = study.hello()
            cells = collect(run(study, select(arguments), versions, arguments))
        finally:
            study.stop()
    data = {"machine": describe_machine(arguments, versions), "protocol": asdict(study.protocol), "cells": cells}
    output.mkdir(parents=True, exist_ok=True)
    (output / "outcome.json").write_text(dump(data), encoding="utf-8")
    write_report(output)


if __name__ == "__main__":
    main()

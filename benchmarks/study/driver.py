"""Trains cells of the study in worker processes: tuning on the first split, then all splits with what it chose."""

from __future__ import annotations

import json
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from pages import rounded
from processes import LostWorkerError

from study.contenders import BASELINE, CONTENDERS, MEMBERS, Contender, Setting
from study.journal import Journal
from study.loop import Limits
from study.measures import MEASURES, judge
from study.parts import Part, Sets
from study.pool import FAILURES, WorkerPool
from study.problems import Problem

__all__ = ["OUT_OF_TIME", "Cell", "Protocol", "Study"]

Result = dict[str, Any]
OUT_OF_TIME = "the run's time was spent"
LONGEST_RUN = 240.0
ENSEMBLE_SPLITS = 1  # on three, ensembles would take a third of the whole time


@dataclass(frozen=True)
class Cell:
    """A contender on a problem with a model; an ensemble is a model of its own."""

    problem: Problem
    model: str
    contender: Contender

    @property
    def settings(self) -> tuple[Setting, ...]:
        """What is tuned over."""
        return self.contender.settings(self.model)


@dataclass(frozen=True)
class Protocol:
    """What is the same for all contenders."""

    most_splits: int = 8
    settings: int = 4
    limits: Limits = field(default_factory=Limits)

    def splits(self, cell: Cell) -> range:
        """Numbers of the splits that are reported; the first one is tuned on, and of an ensemble the only one."""
        most = ENSEMBLE_SPLITS if cell.model == "ensemble" else self.most_splits
        return range(min(cell.problem.splits, self.most_splits, most))


class DataStore:
    """Splits as files for the workers; targets and costs stay here for the measures."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.lock = folder, threading.Lock()
        self.made: dict[tuple[str, int], tuple[Path, tuple[Part, Part]]] = {}

    def get(self, problem: Problem, split: int) -> tuple[Path, tuple[Part, Part]]:
        """File, and the held-out sets without their features."""
        with self.lock:
            if (problem.name, split) not in self.made:
                sets = problem.make(split)
                path = self.folder / f"{len(self.made)}.pt"
                torch.save(tensors_of(sets), path)
                held_out = (sets.validation, sets.test)
                kept = tuple(part._replace(features=torch.empty(0)) for part in held_out)
                self.made[problem.name, split] = path, (kept[0], kept[1])
            return self.made[problem.name, split]


def tensors_of(sets: Sets) -> dict[str, torch.Tensor]:
    """What a worker gets; the test set's targets stay out of its reach."""
    found = {f"{name}_features": part.features for name, part in zip(sets._fields, sets, strict=True)}
    return {**found, "train_targets": sets.train.targets, "validation_targets": sets.validation.targets}


class Study:
    """Runs of cells, each in a worker of the thread that asks."""

    def __init__(self, protocol: Protocol, journal: Journal, folder: Path, pool: WorkerPool) -> None:
        self.protocol, self.journal, self.folder, self.pool = protocol, journal, folder, pool
        self.store, self.end = DataStore(folder), float("inf")
        self.kept: dict[tuple[str, str, int], Path] = {}
        self.locks: dict[tuple[str, str, int], threading.Lock] = {}
        self.lock, self.counted = threading.Lock(), set[str]()
        self.on_run: Callable[[], object] = lambda: None

    def cell(self, cell: Cell) -> Result:
        """Tune and train: the settings' validation scores, the chosen one, and its test measures split by split."""
        scores, chosen = self.tuned(cell)
        if chosen is None:
            return scores[0]
        runs = [self.run(cell, chosen, split) for split in self.protocol.splits(cell)]
        if failed := [run for run in runs if "skipped" in run]:
            return failed[0]
        return {
            "chosen": cell.settings[chosen],
            "validation": [rounded(run["best"]) for run in scores],
            "seconds": rounded(statistics.median(run["seconds"] for run in runs)),
            "steps": rounded(statistics.median(run["steps"] for run in runs)),
            "test": {name: [rounded(run["test"][name]) for run in runs] for name in MEASURES},
        }

    def tuned(self, cell: Cell) -> tuple[list[Result], int | None]:
        """Runs of all settings on the first split, and the best on its validation set; none if a run is missing.

        An ensemble has the setting of the single model, so that only the number of members differs.
        """
        if cell.model == "ensemble":
            scores, chosen = self.tuned(Cell(cell.problem, "MLP", cell.contender))
            first = scores[0] if chosen is None else self.run(cell, chosen, 0)
            return [first], None if "skipped" in first else chosen
        tried: list[Result] = []
        for i in range(min(self.protocol.settings, len(cell.settings))):
            tried.append(self.run(cell, i, 0))
            if "skipped" in tried[-1]:  # the others would fail, too, or come too late
                return tried[-1:], None
        return tried, max(range(len(tried)), key=lambda i: tried[i]["best"])

    def run(self, cell: Cell, setting: int, split: int) -> Result:
        """One training run, now or in the journal; a failure is a result, too."""
        of_cell = (cell.problem.name, cell.model, cell.contender.spec(), cell.settings[setting])
        key = json.dumps([*of_cell, split, asdict(self.protocol.limits)])
        if key not in self.journal.runs:
            if time.monotonic() > self.end:
                return {"skipped": OUT_OF_TIME}
            try:
                self.journal.add(key, self._train(cell, setting, split))
            except FAILURES as error:
                self.journal.add(key, {"skipped": f"failed: {error}"})
        with self.lock:
            is_new = key not in self.counted
            self.counted.add(key)
        if is_new:
            self.on_run()
        return self.journal.runs[key]

    def _train(self, cell: Cell, setting: int, split: int) -> Result:
        problem, contender = cell.problem, cell.contender
        path, held_out = self.store.get(problem, split)
        start = None
        if cell.model == "head":
            path, start = (self.base(problem, "MLP", split).with_suffix(end) for end in (".features", ".last"))
        elif contender.schedule == "tuned":
            start = self.base(problem, cell.model, split)
        logits, answer = self._ask(cell, setting, split, path, start)
        found = judge(logits["validation"], logits["test"], held_out, problem, contender.link(problem.kind))
        return {**answer, "test": found}

    def _ask(
        self, cell: Cell, setting: int, split: int, path: Path, start: Path | None, *, keep: bool = False
    ) -> tuple[dict[str, Any], Result]:
        output = self.folder / f"output-{threading.get_ident()}.pt"
        problem, contender = cell.problem, cell.contender
        answer = self.pool.ask(
            contender.series,
            LONGEST_RUN,
            do="ensemble" if cell.model == "ensemble" else "train",
            data=str(path),
            output=str(output),
            model=cell.model,
            n_classes=problem.n_classes,
            budget=problem.budget,
            contender=contender.spec(),
            setting=cell.settings[setting],
            link=contender.link(problem.kind),
            seed=split,
            start=str(start) if start else "",
            keep=keep,
            members=MEMBERS,
            limits=asdict(self.protocol.limits),
        )
        return torch.load(output), answer

    def base(self, problem: Problem, model: str, split: int) -> Path:
        """Weights of the tuned baseline, made once; beside them its frozen features and its last layer."""
        place = (problem.name, model, split)
        with self.lock:
            lock = self.locks.setdefault(place, threading.Lock())
        with lock:
            if place not in self.kept:
                self.kept[place] = self._base(problem, model, split)
            return self.kept[place]

    def _base(self, problem: Problem, model: str, split: int) -> Path:
        cell = Cell(problem, model, next(one for one in CONTENDERS if one.name == BASELINE))
        _, chosen = self.tuned(cell)
        if chosen is None:
            raise LostWorkerError("the baseline is missing")
        path, _ = self.store.get(problem, split)
        found, _ = self._ask(cell, chosen, split, path, None, keep=True)
        with self.lock:
            base = self.folder / f"base-{len(self.kept)}-{threading.get_ident()}.weights"
        torch.save({"weights": found["weights"]}, base)
        if model == "MLP":
            targets = {name: value for name, value in torch.load(path).items() if name.endswith("targets")}
            torch.save({**found["features"], **targets}, base.with_suffix(".features"))
            last = {f"0.{name.split('.')[1]}": value for name, value in list(found["weights"].items())[-2:]}
            torch.save({"weights": last}, base.with_suffix(".last"))
        return base

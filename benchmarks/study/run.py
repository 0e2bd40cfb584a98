"""Train every contender on every problem with every model, and write docs/study.*.

    PYTHONPATH=benchmarks python -m study.run --peer .venv-peer/bin/python --libauc .venv-libauc/bin/python

Contenders go in the order of their list, each over all problems, so that a run that is stopped has whole contenders.
Two processes of one thread train at a time. Each finished run is appended to a file at once; ``--resume`` goes on.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from hardware import describe
from tqdm import tqdm

from study.contenders import BASELINE, CONTENDERS, ENSEMBLES, MODELS
from study.driver import Cell, Protocol, Study
from study.journal import Journal
from study.loop import Limits
from study.pool import WorkerPool
from study.problems import PROBLEMS
from study.report import write_report
from study.results import dump
from study.tables import TABLES
from study.unseen_classes import LETTERS, RETRIEVAL_DATA, Retrieval, retrieval
from study.wheels import WHEELS, fetch

Result = dict[str, Any]
RETRIEVAL_PART = "retrieval"
# one of the half that chooses nothing is among them: 20 steps tell nothing about it
QUICK_PROBLEMS = ("wine quality", "yeast", "digits, long tail")
QUICK = Protocol(most_splits=2, settings=1, limits=Limits(every=10, patience=1, epochs=1, least=20, most=20))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", default="", help="interpreter of the environment that has the peer package")
    parser.add_argument("--libauc", default="", help="interpreter of the environment that has LibAUC")
    parser.add_argument("--quick", action="store_true", help="three problems, one setting, 20 steps: does it run?")
    parser.add_argument("--minutes", type=float, default=85, help="no new run after this long; one takes up to four")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each")
    parser.add_argument("--half", choices=("chosen on", "held out"), help="only one half: development sees the first")
    parser.add_argument("--splits", type=int, help="at most, of each problem")
    parser.add_argument("--problems", nargs="+", choices=[one.name for one in PROBLEMS], metavar="PROBLEM")
    parser.add_argument("--models", nargs="+", choices=(*MODELS, "ensemble", RETRIEVAL_PART), metavar="MODEL")
    parser.add_argument("--contenders", nargs="+", choices=[one.name for one in CONTENDERS], metavar="CONTENDER")
    parser.add_argument("--output", type=Path, help="folder for study.json, .md and .png (docs; of a part build/)")
    parser.add_argument("--journal", type=Path, help="file of the finished runs (build/study/runs.jsonl)")
    parser.add_argument("--resume", action="store_true", help="keep the finished runs, make those that are missing")
    return parser.parse_args(argv)


def is_whole(arguments: argparse.Namespace) -> bool:
    """Whether all of the study is asked for, which is what is published."""
    narrowing = ("half", "splits", "problems", "models", "contenders")
    return not (arguments.quick or any(getattr(arguments, name) is not None for name in narrowing))


def select(arguments: argparse.Namespace) -> list[Cell]:
    """The cells that are asked for, baselines first: heads and fine-tuning start from them."""
    names = arguments.problems or (QUICK_PROBLEMS if arguments.quick else [one.name for one in PROBLEMS])
    problems = [one for one in PROBLEMS if one.name in names and arguments.half in (None, one.half)]
    models = arguments.models or (*MODELS, "ensemble")
    # whatever is asked for, differences need the baseline
    contenders = [one for one in CONTENDERS if one.name in {BASELINE, *(arguments.contenders or [one.name])}]
    cells = []
    for contender in contenders:
        for model in models:
            where = [problem for problem in problems if contender.takes(model, problem.kind)]
            if model == "ensemble" and contender.name in ENSEMBLES:
                where = [problem for problem in problems if problem.kind == "binary"]
            cells += [Cell(problem, model, contender) for problem in where]
    return cells


def make_protocol(arguments: argparse.Namespace) -> Protocol:
    """The full or the quick one, but for what was asked for."""
    protocol = QUICK if arguments.quick else Protocol()
    return replace(protocol, most_splits=arguments.splits) if arguments.splits else protocol


def count_runs(protocol: Protocol, cells: Sequence[Cell]) -> int:
    """Training runs of the cells: all settings on the first split, the chosen one on the others."""
    return sum(
        len(protocol.splits(cell)) + (0 if cell.model == "ensemble" else protocol.settings - 1) for cell in cells
    )


def unreadable(names: Sequence[str]) -> dict[str, str]:
    """Fetch the wheels of these tables; why the others cannot be read, by table."""
    lost: dict[str, str] = {}
    tables = [one for one in TABLES if one.name in names]
    for package in dict.fromkeys(one.package for one in tables):
        try:
            fetch(WHEELS[package])
        except RuntimeError as error:
            reason = str(error).splitlines()[0].rstrip(":")
            lost |= {one.name: f"failed: {reason}" for one in tables if one.package == package}
    return lost


def run(
    study: Study, cells: Sequence[Cell], available: dict[str, Result], lost: dict[str, str], jobs: int
) -> Iterator[tuple[Cell, Result]]:
    """All cells, ``jobs`` at a time."""

    def one(cell: Cell) -> Result:
        reason = available[cell.contender.series].get("skipped") or lost.get(cell.problem.name)
        return {"skipped": reason} if reason else study.cell(cell)

    with ThreadPoolExecutor(jobs) as pool:
        yield from zip(cells, pool.map(one, cells), strict=True)


def collect(results: Iterator[tuple[Cell, Result]]) -> dict[str, dict[str, dict[str, Result]]]:
    """Results by model, problem and contender."""
    cells: dict[str, dict[str, dict[str, Result]]] = {}
    for cell, result in results:
        cells.setdefault(cell.model, {}).setdefault(cell.problem.name, {})[cell.contender.name] = result
    return cells


def main(argv: Sequence[str] | None = None) -> None:
    """Train and report."""
    arguments = parse_args(argv)
    torch.set_num_threads(1)
    build = Path("build", "study-quick" if arguments.quick else "study")
    output = arguments.output or (Path("docs") if is_whole(arguments) else build)
    journal = Journal(arguments.journal or build / "runs.jsonl", resume=arguments.resume)
    here = dict.fromkeys(("ours", "trees"), sys.executable)
    pool = WorkerPool({**here, "peer": arguments.peer, "libauc": arguments.libauc})
    protocol, cells = make_protocol(arguments), select(arguments)
    lost = unreadable([*{cell.problem.name for cell in cells}, LETTERS])  # before the clock starts
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        study = Study(protocol, journal, Path(folder), pool)
        study.end = time.monotonic() + 60 * arguments.minutes
        try:
            versions = pool.hello()
            unseen = {}
            if RETRIEVAL_PART in (arguments.models or [RETRIEVAL_PART]):
                part = Retrieval(journal, Path(folder), pool, study.end, quick=arguments.quick)
                unseen = retrieval(part, arguments.jobs, [name for name in RETRIEVAL_DATA if name not in lost])
            with tqdm(total=count_runs(protocol, cells), unit="run", smoothing=0) as progress:
                study.on_run = progress.update
                found = collect(run(study, cells, versions, lost, arguments.jobs))
        finally:
            pool.stop()
    packages = {series: answer.get("package", answer.get("skipped")) for series, answer in versions.items()}
    machine = {**describe(), "jobs": arguments.jobs, "torch": torch.__version__, "packages": packages}
    data = {"machine": machine, "protocol": asdict(protocol), "retrieval": unseen, "cells": found}
    output.mkdir(parents=True, exist_ok=True)
    (output / "study.json").write_text(dump(data), encoding="utf-8")
    write_report(output)


if __name__ == "__main__":
    main()

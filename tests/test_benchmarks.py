"""The benchmarks' smallest run has the cells it should, counts are right, and the page is what its numbers say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]
LOSSES = ("SmoothAP", "recall", "pAUC, trapezoid", "pAUC, pairwise")
MACHINE = {
    "date": "2000-01-01",
    "cpu": "abacus",
    "cores": 1,
    "threads": 1,
    "device": "cpu",
    "system": "Linux",
    "python": "3.10",
    "torch": "2.8",
    "packages": {"ours": "1", "peer": "2"},
}


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import report

    return report


def page(report: ModuleType, cells: dict[str, Any]) -> str:
    text: str = report.page({"machine": MACHINE, "cells": cells})
    return text


def promise_of(text: str, measured_on: str, promised: str) -> list[str]:
    """Columns of a promise: ours, against, result, promised, verdict."""
    rows = [[column.strip() for column in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    (row,) = (row for row in rows if row[1:2] == [measured_on] and promised in row)
    return row[2:]


def test_page_is_what_its_numbers_say(report: ModuleType) -> None:
    data = json.loads((ROOT / "docs" / "benchmarks.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8") == report.page(data)


def test_page_of_both_ways_is_what_its_numbers_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The committed page, and that of a shortest run, which times every choice of the package at its first size."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import paths

    text = (ROOT / "docs" / "paths.md").read_text(encoding="utf-8")
    assert text == paths.page(json.loads((ROOT / "docs" / "paths.json").read_text(encoding="utf-8")))
    monkeypatch.setattr(
        paths, "CHOICES", [dataclasses.replace(choice, sizes=choice.sizes[:1]) for choice in paths.CHOICES]
    )
    paths.main(["--output", str(tmp_path), "--seconds", "0", "--rounds", "1"])
    measured = json.loads((tmp_path / "paths.json").read_text(encoding="utf-8"))["choices"]
    assert {name: list(sizes) for name, sizes in measured.items()} == {c.name: list(c.sizes) for c in paths.CHOICES}


@pytest.mark.exhaustive
def test_both_ways_are_timed_at_every_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import paths

    command = [sys.executable, str(ROOT / "benchmarks" / "paths.py"), "--output", str(tmp_path), "--seconds", "0"]
    subprocess.run([*command, "--rounds", "1"], check=True, capture_output=True, timeout=120)
    measured = json.loads((tmp_path / "paths.json").read_text(encoding="utf-8"))["choices"]
    assert {name: list(sizes) for name, sizes in measured.items()} == {c.name: list(c.sizes) for c in paths.CHOICES}


def run_smallest(folder: Path, *flags: str) -> dict[str, Any]:
    """The cells of a run with our package alone."""
    smallest = ("--quick", "--rows", "sweep", "--max-rows", "1056", "--threads", "1", "--output", str(folder))
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *smallest, *flags]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    cells: dict[str, Any] = json.loads((folder / "benchmarks.json").read_text(encoding="utf-8"))["cells"]
    return cells


@pytest.mark.exhaustive
def test_smallest_run_marks_what_it_did_not_reach_and_resumes(tmp_path: Path) -> None:
    cells = run_smallest(tmp_path, "--minutes", "0")
    assert list(cells) == [f"{loss}, pool 1056, classes 1, rate {rate}" for loss in LOSSES for rate in ("0.005", "0.1")]
    assert all(set(result) == {"skipped"} for results in cells.values() for result in results.values())

    path = tmp_path / "benchmarks.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    data["cells"] = {next(iter(cells)): {"ours": {"seconds": 123.0}}}
    path.write_text(json.dumps(data), encoding="utf-8")
    resumed = run_smallest(tmp_path, "--resume")
    assert list(resumed) == list(cells)
    assert resumed.pop(next(iter(cells))) == {"ours": {"seconds": 123.0}}
    for results in resumed.values():
        assert set(results) == {"ours", "sort"}
        assert all(result["seconds"] == min(result["rounds"]) > 0 for result in results.values())
    assert "The peer was not run." in (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert (tmp_path / "benchmarks.png").read_bytes().startswith(b"\x89PNG")


MEASURE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch, worker

def one_after_the_other():  # 80 MB each: above what an allocator keeps for later
    for _ in range(3):
        torch.ones(20_000_000)

def at_once():
    return [torch.ones(20_000_000) for _ in range(3)]

print(*(worker.least_peak_bytes(call, "cpu") for call in (one_after_the_other, at_once)))
"""


def test_peak_memory_counts_what_lives_at_once() -> None:
    """In a process of its own, as in the benchmark: a long-lived one may have memory at hand that other tests freed."""
    command = [sys.executable, "-c", MEASURE, str(ROOT / "benchmarks")]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    printed = finished.stdout.split()
    if sys.platform != "linux":
        assert printed == ["None", "None"]  # it is read from Linux
        return
    single, several = map(int, printed)
    assert single == pytest.approx(80e6, rel=0.1)
    assert several == pytest.approx(240e6, rel=0.1)


def test_promises_are_judged_by_their_bounds(report: ModuleType) -> None:
    def judged(ours: float, peer: float) -> str:
        numbers = {"ours": {"seconds": ours, "peak_bytes": 10e6}, "peer": {"seconds": peer, "peak_bytes": 200e6}}
        return page(report, {"SmoothAP, pool 16384, classes 1, rate 0.1": numbers})

    where = "SmoothAP, pool 16,384, 1 class, 10 %"
    met = promise_of(judged(0.002, 0.06), where, "30x faster")
    assert met == ["2 ms", "peer: 60 ms", "30x", "30x faster", "met"]
    assert promise_of(judged(0.002, 0.03), where, "30x faster")[-1] == "**falls short 2x**"
    short = promise_of(judged(0.002, 0.06), where, "1/40")
    assert short == ["10 MB", "peer: 200 MB", "20x", "1/40", "**falls short 2x**"]
    assert promise_of(judged(0.002, 0.06), where, "at most 1.1x")[-1] == "not measured"


def test_bounds_from_above_and_compilations(report: ModuleType) -> None:
    million = {
        "ours": {"seconds": 0.4, "peak_bytes": 330e6},
        "compiled": {"seconds": 0.44, "first_call_seconds": 20},
        "sort": {"seconds": 0.1, "peak_bytes": 1},
    }
    key = "SmoothAP, pool 1048576, classes 1, rate 0.1"
    steps = {"ours": {"compilations": 1, "graph_breaks": 0}, "peer": {"compilations": 9, "graph_breaks": 2}}
    large = {"ours": {"seconds": 1, "peak_bytes": 30e6}, "peer": {"seconds": 5, "peak_bytes": 10e6}}
    text = page(
        report,
        {
            key: million,
            "recall, batch 32 + queue 1024, classes 1, rate 0.1, 1000 temperatures": steps,
            "recall, pool 262144, classes 10, rate 0.1": large,
        },
    )
    where = "SmoothAP, pool 1,048,576, 1 class, 10 %"
    assert promise_of(text, where, "at most 4x")[2:] == ["4x", "at most 4x", "met"]
    assert promise_of(text, where, "under 300 MB")[-1] == "**falls short 1.1x**"
    as_eager = promise_of(text, where, "at most 1.1x")
    assert as_eager == ["compiled: 440 ms", "400 ms", "1.1x", "at most 1.1x", "met"]
    first_call = promise_of(text, where, "under 10 s")
    assert first_call == ["compiled: 20 s", "", "", "under 10 s", "**falls short 2x**"]
    counted = promise_of(text, "recall, batch 32 + queue 1,024, 1 class, 10 %", "1, no graph break")
    assert counted == ["1, no graph break", "peer: 9, 2 graph breaks", "", "1, no graph break", "met"]
    hungry = promise_of(text, "recall, pool 262,144, 10 classes, 10 %", "at most 2x")
    assert hungry == ["30 MB", "peer: 10 MB", "3x", "at most 2x", "**falls short 1.5x**"]


def test_growth_is_judged_beside_the_smaller_pool(report: ModuleType) -> None:
    def judged(small: float, large: float) -> list[str]:
        key, numbers = "pAUC, dro, pool {}, classes 1, rate 0.1", ({"ours": {"seconds": s}} for s in (small, large))
        cells = dict(zip((key.format(pool) for pool in (16_384, 262_144)), numbers, strict=True))
        return promise_of(page(report, cells), "pAUC, dro, pool 262,144, 1 class, 10 %", "at most 24x")

    assert judged(0.001, 0.024) == ["24 ms", "pool 16,384: 1 ms", "24x", "at most 24x", "met"]
    assert judged(0.001, 0.048)[-1] == "**falls short 2x**"

    key = "retrieval AP, batch 32 + queue 65536, classes 16, rate 0.1, embedding size 64"
    where = "retrieval AP, batch 32 + queue 65,536, 16 classes, 6.25 %, embedding size 64"
    alone = promise_of(page(report, {key: {"ours": {"seconds": 0.5}}}), where, "at most 12x")
    assert alone == ["500 ms", "batch 32 + queue 8,192: -", "-", "at most 12x", "not measured"]


def test_losses_that_the_peer_lacks_have_a_table(report: ModuleType) -> None:
    numbers = {
        "ours": {"seconds": 0.004, "peak_bytes": 2e6},
        "compiled": {"seconds": 0.002, "first_call_seconds": 3},
        "plain": {"seconds": 0.4, "peak_bytes": 800e6},
    }
    key = "retrieval AP, batch 32 + queue 1024, classes 16, rate 0.1, embedding size 64"
    sorted_too = {"ours": {"seconds": 0.001, "peak_bytes": 1e6}, "sort": {"seconds": 0.002, "peak_bytes": 1e6}}
    text = page(report, {key: numbers, "soft F-beta, pool 262144, classes 1, rate 0.1": sorted_too})
    rows = [line for line in text.partition("## Losses that the peer does not have")[2].splitlines() if "|" in line]
    assert rows == [
        "| loss | inputs | ours | compiled | first call | sort | plain "
        "| ours / compiled | ours / sort | plain / ours | ours MB | plain MB |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        "| retrieval AP | batch 32 + queue 1,024, 16 classes, 6.25 %, embedding size 64 "
        "| 4 ms | 2 ms | 3 s | - | 400 ms | 2x | - | 100x | 2 | 800 |",
        "| soft F-beta | pool 262,144, 1 class, 10 % | 1 ms | - | - | 2 ms | - | - | 0.5x | - | 1 | - |",
    ]


def test_ensembles_are_judged_beside_a_loop(report: ModuleType) -> None:
    times = {"vmap": {"seconds": 0.004}, "loop": {"seconds": 0.008}, "compiled vmap": {"seconds": 0.001}}
    text = page(report, {f"recall, batch 32 + queue 1024, classes {c}, rate 0.1, 8 states": times for c in (1, 10)})
    met = promise_of(text, "recall, batch 32 + queue 1,024, 1 class, 10 %, 8 states", "2x faster")
    assert met == ["vmap: 4 ms", "loop: 8 ms", "2x", "2x faster", "met"]
    shown = "| recall | batch 32 + queue 1,024, 10 classes, 10 %, 8 states | 4 ms | 1 ms | - | 8 ms | 2x | 8x |"
    assert shown in text.splitlines()


@pytest.mark.parametrize(
    ("ours", "shown", "verdict"),
    [
        ({"operators": 9, "host_reads": 0}, "9, no host read", "met"),
        ({"operators": 10, "host_reads": 0}, "10, no host read", "**missed**"),
        ({"operators": 9, "host_reads": 1}, "9, 1 host read", "**missed**"),
        ({"fails": "RuntimeError: no data"}, "fails on `meta`", "**missed**"),
        ({"skipped": "the abacus is at the cleaner's"}, "-", "not measured"),
    ],
)
def test_operators_are_to_be_fewer_and_none_to_read(
    report: ModuleType, ours: dict[str, Any], shown: str, verdict: str
) -> None:
    counts = {"ours": ours, "peer": {"operators": 10, "host_reads": 3}}
    text = page(report, {"recall, batch 32 + queue 1024, classes 1, rate 0.1, operators": counts})
    row = promise_of(text, "recall, batch 32 + queue 1,024, 1 class, 10 %", "fewer, no host read")
    assert (row[0], row[1], row[-1]) == (shown, "peer: 10, 3 host reads", verdict)


def takes_composites_apart(x: torch.Tensor) -> torch.Tensor:
    """Views, composite operators, and two copies from the host's memory."""
    scale = torch.tensor(2.0, device=x.device) + torch.zeros(()).to(x.device)
    return torch.where(x > 0, x.T.reshape(x.shape).softmax(-1) @ x, 0.0).double() * scale


def test_operators_are_counted_inside_the_packages_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import operators

    x = torch.empty(4, 4, device="meta")
    plain = operators.count_operators(lambda: takes_composites_apart(x))
    assert plain[0]["aten.mm.default"] == 1
    assert "aten.view.default" not in plain[0]
    assert plain[1].total() == 2
    with torch.library._scoped_library("imbalanced_losses", "FRAGMENT") as library:
        library.define("counted_inner(Tensor x) -> Tensor")
        library.define("counted_outer(Tensor x) -> Tensor")
        library.impl("counted_inner", takes_composites_apart, "CompositeExplicitAutograd")
        library.impl(
            "counted_outer", lambda x: torch.ops.imbalanced_losses.counted_inner(x), "CompositeExplicitAutograd"
        )
        assert operators.count_operators(lambda: torch.ops.imbalanced_losses.counted_outer(x)) == plain


def test_reads_of_the_device_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import operators

    x = torch.arange(4.0)
    mask, rows = x > 1, torch.tensor([0, 2])

    def reads(call: Callable[[], object]) -> int:
        count: int = operators.count_operators(call)[1].total()
        return count

    assert reads(lambda: x.sum().item()) == 1
    assert reads(lambda: mask.nonzero()) == 1
    assert reads(lambda: x[mask]) == 1
    assert reads(lambda: x[rows]) == 0
    assert reads(lambda: x.masked_fill(mask, 0.0).to(torch.float64)) == 0


@pytest.mark.parametrize(
    ("loss", "most"), [("SmoothAP", 87), ("recall", 73), ("pAUC, trapezoid", 104), ("pAUC, pairwise", 118)]
)
def test_an_accelerators_step_stays_as_short_as_it_is(loss: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound on our own step: each operator costs an accelerator's host about as much as a small kernel takes."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cells
    import operators
    import steps

    step = steps.build(cells.Cell(loss, batch=32, queue=1024).work("ours"), "meta")
    step()
    counted, host_reads = operators.count_operators(step)
    assert counted.total() <= most
    assert host_reads.total() == 0


def test_ensemble_takes_the_same_steps_mapped_and_looped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cells
    import steps

    cell = cells.Cell("recall", batch=8, queue=24, classes=2, rate=0.3, states=3)
    looped, mapped = (steps.build(cell.work(series), "cpu") for series in ("loop", "vmap"))
    for _ in range(5):  # round the queue and beyond
        torch.testing.assert_close(torch.stack([gradient for (gradient,) in looped()]), mapped())


@pytest.mark.parametrize("loss", ["retrieval AP", "retrieval recall@k"])
def test_plain_retrieval_takes_the_same_steps(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cells
    import steps

    cell = cells.Cell(loss, batch=4, queue=20, classes=3, rate=1 / 3, embedding_size=8)
    ours, plain = (steps.build(cell.work(series), "cpu") for series in ("ours", "plain"))
    for _ in range(7):  # round the memory and beyond
        torch.testing.assert_close(ours(), plain())


@pytest.mark.exhaustive
def test_workers_measure_every_loss_that_the_peer_lacks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cells of ``make bench`` with a small queue, in eager mode, and beside them the sort or the plain formula."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import cells
    import processes

    losses = {*cells.WITHOUT_PEER, *cells.RETRIEVAL}
    rows = {c: c.series for c in cells.select("promises", 1056, quick=False) if c.loss in losses}
    assert {cell.loss for cell in rows} == losses
    worker = processes.Worker(sys.executable, "time", "cpu", "1", str(1 << 32))
    try:
        for cell, series in rows.items():
            assert set(series) == {"ours", "compiled", "plain" if cell.embedding_size else "sort"}
            for one in set(series) - {"compiled"}:
                work = dataclasses.replace(cell, queue=64).work(one)
                assert worker.ask(120, do="prepare", work=work, cache=str(tmp_path))["seconds"] > 0
                assert worker.ask(120, do="time", seconds=1e-6)["seconds"] > 0
                assert "bytes" in worker.ask(120, do="memory", work=work, cache=str(tmp_path))
    finally:
        worker.stop()


def test_page_says_where_ours_is_worse_and_what_is_missing(report: ModuleType) -> None:
    slower = {"ours": {"seconds": 2.0, "peak_bytes": 4e6}, "peer": {"seconds": 1.0, "peak_bytes": 3.5e6}}
    hungry = {"ours": {"seconds": 1.0, "peak_bytes": 9e6}, "peer": {"seconds": 0.99, "peak_bytes": 3e6}}
    absent = {"ours": {"seconds": 1.0}, "peer": {"skipped": "lost its beads"}}
    sizes = {4096: slower, 16384: hungry, 65536: absent}
    text = page(report, {f"recall, pool {pool}, classes 1, rate 0.1": numbers for pool, numbers in sizes.items()})
    assert "- recall, slower: pool 4,096, 1 class, 10 % (2x)." in text.splitlines()
    assert "- recall, more memory: pool 16,384, 1 class, 10 % (3x)." in text.splitlines()
    assert text.endswith("The reasons in this run:\n\n- lost its beads\n")

"""The page on several processes is what its numbers say, and the numbers come from real processes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
OURS = {"package": "1", "torch": "2.8", "python": "3.10"}


@pytest.fixture
def distributed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import distributed

    return distributed


def page(distributed: ModuleType, steps: dict[str, Any], costs: dict[str, Any]) -> list[str]:
    series = {"ours": {**OURS, "steps": {"Loss()": steps}, "costs": {"Loss()": costs}}}
    text: str = distributed.page({"date": "2000-01-01", "machine": "abacus", "series": series})
    return text.splitlines()


def test_page_is_what_its_numbers_say(distributed: ModuleType) -> None:
    data = json.loads((ROOT / "docs" / "distributed.json").read_text(encoding="utf-8"))
    assert (ROOT / "docs" / "distributed.md").read_text(encoding="utf-8") == distributed.page(data)


def test_our_published_steps_are_exact() -> None:
    """On even, uneven and empty shards, by two processes and by four; with at most two collectives."""
    ours = json.loads((ROOT / "docs" / "distributed.json").read_text(encoding="utf-8"))["series"]["ours"]
    steps = [step for case in ours["steps"].values() for step in case.values()]
    assert len(steps) == 6 * len(ours["steps"]) > 50
    assert all(step["distance"] <= 1e-5 for step in steps)
    assert all(1 <= cost["collectives"] <= 2 for cost in ours["costs"].values())


def test_half_steps_other_directions_and_errors_show(distributed: ModuleType) -> None:
    steps = {
        "even 2": {"ratio": 1.0, "distance": 1e-7},
        "even 4": {"ratio": 0.5, "distance": 0.5},
        "uneven 2": {"ratio": 1.0, "distance": 1.2},
        "uneven 4": {"error": "RuntimeError: lost its beads"},
        "empty 2": {"error": "RuntimeError: lost its beads"},
    }
    lines = page(distributed, steps, {"collectives": 2, "bytes": 1234})
    cells = "1.000 | 0.500 (0.50) | 1.000 (1.20) | error 1 | error 1 | -"
    assert f"| `Loss()` | {cells} |" in lines
    assert "1. RuntimeError: lost its beads" in lines
    assert "| Ours | `Loss()` | 2 | 1,234 |" in lines


@pytest.mark.exhaustive
def test_two_processes_are_measured(distributed: ModuleType) -> None:
    found = distributed.measure("ours", sys.executable, 2, "even")
    assert list(found["steps"]) == found["cases"]
    assert all(step["distance"] <= 1e-5 for step in found["steps"].values())
    smooth_ap, focal = (
        found["costs"][case]
        for case in ("SmoothAPLoss(temperature=0.1), 1 class", "SigmoidFocalLoss(reduction='mean'), 1 class")
    )
    assert smooth_ap == {"collectives": 2, "bytes": 120 + 32 * (4 + 1)}  # sizes; logits and labels
    assert focal == {"collectives": 1, "bytes": 120}


def test_a_process_that_dies_is_a_result_and_the_next_loss_is_measured(
    distributed: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {**OURS, "cases": ["a", "b", "c"], "costs": {}}
    launches = iter(
        [
            ({**about, "steps": {"a": {"ratio": 1.0}}}, True),  # b kills it
            ({**about, "steps": {"c": {"error": "closed"}}}, True),  # c kills the other rank
        ]
    )
    monkeypatch.setattr(distributed, "start", lambda *_: next(launches))
    found = distributed.measure("ours", "python", 2, "even")
    assert found["steps"] == {"a": {"ratio": 1.0}, "b": {"error": "a process dies"}, "c": {"error": "closed"}}

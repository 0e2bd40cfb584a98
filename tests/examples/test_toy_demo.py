"""The demo runs as a user runs it, and what it prints comes from the run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "toy_demo.py"
QUICK = ("--total-epochs", "4", "--warmup-epochs", "2", "--blend-epochs", "1", "--queue-size", "128")


def run_demo(*flags: str) -> str:
    finished = subprocess.run(
        [sys.executable, str(DEMO), *QUICK, *flags], capture_output=True, text=True, check=False, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def table_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if re.match(r"^\s+\d+  ", line)]


@pytest.mark.parametrize("loss", ["smooth-ap", "recall", "pauc", "focal", "bce"])
def test_every_loss_trains_through_the_phases(loss: str) -> None:
    output = run_demo("--loss", loss)
    table = table_of(output)
    assert [row[1] for row in table] == ["warm-up", "warm-up", "blend", "main"]
    assert [float(row[2]) for row in table] == [0, 0, 0.5, 1]
    first, last = float(table[0][-1]), float(table[-1][-1])
    assert last > first > 0.03  # better than at the start, which is better than chance: 3 percent are positive
    assert f"final test AUCPR {last:.4f}" in output


def test_temperature_decays_from_start_to_end_after_the_warm_up() -> None:
    table = table_of(run_demo("--temp-start", "0.4", "--temp-end", "0.2"))
    temperatures = [float(row[3]) for row in table]
    assert temperatures[:2] == [0.4, 0.4]
    assert 0.4 > temperatures[2] > temperatures[3] > 0.2


def test_generated_data_and_picture(tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    output = run_demo("--data", "generated", "--loss", "bce", "--pos-rate", "0.02", "--plot", str(picture))
    assert f"saved {picture}" in output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_same_seed_same_table_other_seed_another() -> None:
    tables = [table_of(run_demo("--loss", "focal", "--seed", seed)) for seed in ("1", "1", "2")]
    assert tables[0] == tables[1] != tables[2]


def test_impossible_positive_rate_says_what_is_there() -> None:
    finished = subprocess.run(
        [sys.executable, str(DEMO), "--pos-rate", "0.9"], capture_output=True, text=True, check=False, timeout=120
    )
    assert finished.returncode != 0
    assert "--pos-rate 0.9 needs" in finished.stderr

"""The example runs, and what it prints comes from the run."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "trainer_per_class.py"
QUICK = (
    "--total-epochs",
    "4",
    "--warmup-epochs",
    "2",
    "--blend-epochs",
    "1",
    "--rare-rows",
    "6",
    "--queue-size",
    "512",
)


class Run(NamedTuple):
    history: list[dict[str, float]]
    output: str


def rows_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if re.match(r"^\s+\d  ", line)]


@pytest.fixture(scope="module")
def run() -> Run:
    from trainer_per_class import main

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        history = main(QUICK)
    return Run(history, printed.getvalue())


@pytest.mark.exhaustive
def test_the_command_prints_the_same(run: Run) -> None:
    command = [sys.executable, str(EXAMPLE), *QUICK]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert "100%" in finished.stderr  # the bar
    assert finished.stdout == run.output


def test_epochs_tell_the_schedule_and_the_exact_metric(run: Run) -> None:
    epochs = rows_of(run.output)[:4]
    assert [row[1] for row in epochs] == ["0.00", "0.00", "0.50", "1.00"]
    assert [row[2] for row in epochs[:2]] == ["1.0000"] * 2
    assert 1 > float(epochs[2][2]) > float(epochs[3][2]) == 0.5
    assert [row[3] for row in epochs] == ["-", "-", "1.00", "1.00"]  # the queue is first filled after the warm-up
    common = [float(row[5]) for row in epochs]
    assert 0.1 < common[0] < common[3]  # chance is 0.1


def test_classes_tell_the_loss_and_the_exact_metric(run: Run) -> None:
    classes = rows_of(run.output)[4:]
    assert [row[0] for row in classes] == [str(digit) for digit in range(10)]
    assert [row[0] for row in classes if row[-1] == "rare"] == ["3", "5", "8"]
    assert [int(row[1]) for row in classes if row[-1] == "rare"] == [6, 6, 6]
    assert all(int(row[1]) > 90 for row in classes if row[-1] != "rare")
    assert all(row[2] == "yes" for row in classes)
    for digit in (3, 5, 8):
        assert float(classes[digit][3]) > float(classes[0][3])  # the loss of a rare digit is the larger one


def test_the_tables_print_what_was_logged(run: Run) -> None:
    """The records, rounded, are the numbers in the tables."""
    history, epochs, classes = run.history, rows_of(run.output)[:4], rows_of(run.output)[4:]
    assert [row[4] for row in epochs] == [f"{epoch['loss']:.4f}" for epoch in history]
    for digit, row in enumerate(classes):
        names = [f"loss/{digit}", f"gap/{digit}"]
        assert row[3:5] == [f"{history[-1][name]:.4f}" for name in names]
        exact = [epoch[f"eval_average_precision/{digit}"] for epoch in (history[1], history[-1])]
        assert row[5:7] == [f"{precision:.4f}" for precision in exact]


def test_help_and_bad_flags(capsys: pytest.CaptureFixture[str]) -> None:
    from trainer_per_class import parse_args

    for flags, code, message in (
        (["--help"], 0, "python examples/trainer_per_class.py"),
        (["--rare-rows", "0"], 2, "--rare-rows: expected an integer of at least 1, got 0"),
        (["--blend-epochs", "-1"], 2, "--blend-epochs: expected an integer of at least 0, got -1"),
        (["--temp-end", "nan"], 2, "--temp-end: expected a number above 0 and finite, got nan"),
    ):
        with pytest.raises(SystemExit, match=str(code)):
            parse_args(flags)
        printed = capsys.readouterr()
        assert message in printed.out + printed.err

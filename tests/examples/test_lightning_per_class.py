"""The example of per-class logging runs, and what it prints and writes comes from the run."""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import re
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from sklearn.metrics import average_precision_score

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ("--total-epochs", "4", "--warmup-epochs", "2", "--blend-epochs", "1", "--queue-size", "256")


class Run(NamedTuple):
    model: Any
    output: str
    log: list[dict[str, str]]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    return importlib.import_module("lightning_per_class")


@pytest.fixture(scope="module")
def run(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Run:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        model = example.main([*QUICK, "--log-dir", str(tmp_path_factory.mktemp("logs"))])
    saved = re.search(r"^saved (.*metrics\.csv)$", output.getvalue(), re.M)
    assert saved is not None
    with Path(saved[1]).open() as file:
        return Run(model, output.getvalue(), list(csv.DictReader(file)))


def test_a_line_for_every_epoch(run: Run) -> None:
    lines = [line.split() for line in run.output.splitlines() if re.match(r" +\d  (warm-up|blend|main) ", line)]
    assert [line[1] for line in lines] == ["warm-up", "warm-up", "blend", "main"]
    assert [float(line[2]) for line in lines] == [0, 0, 0.5, 1]
    assert float(lines[0][3]) == float(lines[1][3]) == 1 > float(lines[2][3]) > float(lines[3][3]) == 0.5
    for line, epoch in zip(lines, run.model.history, strict=True):
        common, rare = epoch.precision[[0, 1, 2, 4, 6, 7, 9]], epoch.precision[[3, 5, 8]]
        assert line[4:] == [f"{value:.4f}" for value in (epoch.loss, common.mean(), rare.mean())]
    assert float(lines[-1][-1]) > float(lines[0][-1]) > 0.1  # chance


def test_a_line_for_every_class(run: Run, example: ModuleType) -> None:
    """Its metric is scikit-learn's, of the model that came out; its loss is that of the last step."""
    lines = [line.split() for line in run.output.splitlines() if re.match(r" +\d +\d+ ", line)]
    assert [int(line[0]) for line in lines] == list(range(10))
    assert [line[-1] == "rare" for line in lines] == [digit in (3, 5, 8) for digit in range(10)]
    data = example.load_data(rare_rows=12, seed=0)
    digits = data.test_digits
    scores = run.model.net(data.test_pixels).detach()
    warm, last = run.model.history[1], run.model.history[-1]
    for digit, line in enumerate(lines):
        rows, live, loss, gap, before, after = line[1:7]
        assert int(rows) == int((data.train_digits == digit).sum())
        assert int(live) == int(last.diagnostics["live_positives"][digit])
        assert float(after) == pytest.approx(average_precision_score(digits == digit, scores[:, digit]), abs=1e-4)
        assert before == f"{warm.precision[digit]:.4f}"
        assert [loss, gap] == [f"{last.diagnostics[name][digit]:.4f}" for name in ("loss", "gap")]
    assert [int(line[1]) for line in lines if line[-1] == "rare"] == [12] * 3


def test_all_of_it_is_logged(run: Run) -> None:
    rows = [{name: float(value) for name, value in row.items() if value} for row in run.log]
    steps = [row for row in rows if "main_weight" in row]
    by_epoch = [{row["main_weight"] for row in steps if row["epoch"] == epoch} for epoch in range(4)]
    assert by_epoch == [{0}, {0}, {0.5}, {1}]
    assert [steps[0]["temperature"], steps[-1]["temperature"]] == [1, 0.5]
    for number, epoch in enumerate(run.model.history):
        row = {name: value for row in rows if row["epoch"] == number for name, value in row.items()}
        for digit in range(10):
            assert row[f"test_average_precision/{digit}"] == pytest.approx(float(epoch.precision[digit]))
            for name, values in epoch.diagnostics.items():
                if values.dim():
                    assert row[f"{name}/{digit}"] == pytest.approx(float(values[digit]))
        assert ("queue_fill" in row) == ("gap/3" in row) == (number >= 2)  # not in the warm-up
    assert row["queue_fill"] == 1


@pytest.mark.exhaustive
def test_the_seed_decides(example: ModuleType, run: Run) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        same, other = (example.main([*QUICK, "--seed", seed]) for seed in ("0", "1"))
    losses = [[epoch.loss for epoch in model.history] for model in (run.model, same, other)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--total-epochs", "0"), "--total-epochs: expected an integer of at least 1, got 0"),
        (("--rare-rows", "few"), "--rare-rows: expected an integer of at least 1, got few"),
        (("--warmup-epochs", "-1"), "--warmup-epochs: expected an integer of at least 0, got -1"),
        (("--temp-end", "0"), "--temp-end: expected a number above 0 and finite, got 0"),
        (("--lr", "nan"), "--lr: expected a number above 0 and finite, got nan"),
    ],
)
def test_bad_flags_say_what_was_expected(
    example: ModuleType, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        example.parse_args(flags)
    assert message in capsys.readouterr().err


def test_help_and_more_rows_than_there_are(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        example.parse_args(["--help"])
    assert "--rare-rows" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="--rare-rows 1000: the digit 3 has 110 training rows"):
        example.main(["--rare-rows", "1000"])

"""The demo prints what its run gives, as a command too."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = ("--total-epochs", "4", "--warmup-epochs", "2", "--blend-epochs", "1", "--queue-size", "128")


def run_demo(*flags: str) -> str:
    """Run the demo in this process and return what it prints: starting a process takes longer than training."""
    from toy_demo import main

    with contextlib.redirect_stdout(io.StringIO()) as output:
        main([*QUICK, *flags])
    return output.getvalue()


def table_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if re.match(r"^\s+\d+  ", line)]


@pytest.mark.parametrize("loss", ["smooth-ap", "recall", "pauc", "focal", "bce"])
def test_every_loss_trains_through_the_phases(loss: str) -> None:
    output = run_demo("--loss", loss)
    table = table_of(output)
    assert [row[1] for row in table] == ["warm-up", "warm-up", "blend", "main"]
    assert [float(row[2]) for row in table] == [0, 0, 0.5, 1]
    first, warmed_up, last = (float(table[epoch][-1]) for epoch in (0, 1, -1))
    assert last > first > 0.03  # better than at the start, which is better than chance: 3 percent are positive
    assert f"test AUCPR after the warm-up {warmed_up:.4f}\nfinal test AUCPR {last:.4f}" in output


@pytest.mark.exhaustive  # .ci/run calls `make demo`
def test_the_command_prints_the_same() -> None:
    command = [sys.executable, str(Path(__file__).parents[2] / "examples" / "toy_demo.py"), *QUICK]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == run_demo()


def test_temperature_decays_from_start_to_end_after_the_warm_up() -> None:
    table = table_of(run_demo("--temp-start", "0.4", "--temp-end", "0.2"))
    temperatures = [float(row[3]) for row in table]
    assert temperatures[:2] == [0.4, 0.4]
    assert 0.4 > temperatures[2] > temperatures[3] == 0.2


def test_without_warm_up_only_the_final_score_is_printed() -> None:
    output = run_demo("--warmup-epochs", "0", "--total-epochs", "2")
    assert "after the warm-up" not in output
    assert f"final test AUCPR {table_of(output)[-1][-1]}" in output


def test_generated_data_and_picture(tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    output = run_demo("--data", "generated", "--loss", "bce", "--pos-rate", "0.02", "--plot", str(picture))
    assert f"saved {picture}" in output
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_generated_data_with_a_ranking_loss() -> None:
    output = run_demo("--data", "generated", "--loss", "recall")
    assert "generated: " in output
    table = table_of(output)
    assert [row[1] for row in table] == ["warm-up", "warm-up", "blend", "main"]
    assert float(table[-1][-1]) > 0.1  # chance is 0.03


@pytest.mark.exhaustive
def test_same_seed_same_table_other_seed_another() -> None:
    tables = [table_of(run_demo("--loss", "focal", "--seed", seed)) for seed in ("1", "1", "2")]
    assert tables[0] == tables[1] != tables[2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--total-epochs", "0"), "expected --total-epochs of at least 1, got 0"),
        (("--warmup-epochs", "-1"), "expected --warmup-epochs of at least 0, got -1"),
        (("--blend-epochs", "-2"), "expected --blend-epochs of at least 0, got -2"),
        (("--batch-size", "0"), "expected --batch-size of at least 1, got 0"),
        (("--queue-size", "-1"), "expected --queue-size of at least 0, got -1"),
        (("--seed", "-1"), "expected --seed of at least 0, got -1"),
        (("--temp-start", "0"), "expected --temp-start above 0 and finite, got 0.0"),
        (("--temp-end", "nan"), "expected --temp-end above 0 and finite, got nan"),
        (("--lr", "inf"), "expected --lr above 0 and finite, got inf"),
        (("--weight-decay", "-0.1"), "expected --weight-decay of at least 0, got -0.1"),
        (("--pos-rate", "1"), "expected --pos-rate between 0 and 1, got 1.0"),
        (("--plot", "demo.jpeg2"), "expected --plot to end in .png, got demo.jpeg2"),
        (("--plot", "no/such/folder/demo.png"), "expected --plot in a folder that exists, got no/such/folder/demo.png"),
    ],
)
def test_bad_flags_say_what_was_expected(
    flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from toy_demo import parse_args

    with pytest.raises(SystemExit, match="2"):
        parse_args([*QUICK, *flags])
    assert message in capsys.readouterr().err


def test_a_bad_flag_stops_before_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    from toy_demo import main

    with pytest.raises(SystemExit, match="2"):
        main([*QUICK, "--batch-size", "0"])
    printed = capsys.readouterr()
    assert "expected --batch-size of at least 1" in printed.err
    assert not printed.out


def test_impossible_positive_rate_says_what_is_there() -> None:
    with pytest.raises(SystemExit, match=r"--pos-rate 0\.9 needs"):
        run_demo("--pos-rate", "0.9")

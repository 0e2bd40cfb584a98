"""The demos of several processes run as a user runs them, and train what one process trains."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
QUICK = ("--total-epochs", "4", "--warmup-epochs", "2", "--blend-epochs", "1", "--queue-size", "128")


def run(*command: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, timeout=300, env=environment
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def run_processes(size: int, *flags: str) -> str:
    start = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size))
    return run(*start, str(EXAMPLES / "ddp_demo.py"), *QUICK, *flags)


def table_of(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines() if re.match(r"^\s+\d+  ", line)]


@pytest.mark.parametrize(
    ("size", "flags"), [(2, ("--loss", "smooth-ap")), (3, ("--loss", "pauc", "--batch-size", "50"))]
)
def test_processes_train_what_one_trains(size: int, flags: tuple[str, ...]) -> None:
    """The batches of 50 rows give the ranks 17, 17 and 16, and there are queue, warm-up and blend."""
    output = run_processes(size, *flags, "--compare")
    table = table_of(output)
    assert [row[1] for row in table] == ["warm-up", "warm-up", "blend", "main"]  # once: one rank prints
    last = table[-1][-1]
    assert float(last) > float(table[0][-1]) > 0.03  # chance
    assert f"final test AUCPR {last} with {size} processes on " in output
    alone = re.search(r"^final test AUCPR ([\d.]+) with 1 process$", output, re.M)
    assert alone is not None
    assert float(alone[1]) == pytest.approx(float(last), abs=2e-4)
    apart = re.search(r"^largest relative difference of the parameters (\S+)$", output, re.M)
    assert apart is not None
    assert 0 < float(apart[1]) <= 1e-12  # 0 would be the model compared with itself


@pytest.mark.exhaustive
def test_one_process_has_the_same_table() -> None:
    alone = run(str(EXAMPLES / "ddp_demo.py"), *QUICK)
    tables = [table_of(output) for output in (alone, run_processes(2))]
    assert len(tables[0]) == 4
    for one, two in zip(*tables, strict=True):
        assert one[:4] == two[:4]
        for figure, other in zip(one[4:], two[4:], strict=True):
            assert float(figure) == pytest.approx(float(other), abs=2e-4)


def test_flags_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    from ddp_demo import parse_args

    assert parse_args([*QUICK, "--compare"]).compare
    with pytest.raises(SystemExit, match="2"):
        parse_args(["--batch-size", "0"])
    assert "expected --batch-size of at least 1, got 0" in capsys.readouterr().err


@pytest.mark.exhaustive
def test_lightning_trains_through_the_phases() -> None:
    output = run(str(EXAMPLES / "lightning_ddp.py"), *QUICK)
    table = table_of(output)
    assert [row[1] for row in table] == ["warm-up", "warm-up", "blend", "main"]
    assert float(table[-1][-1]) > 0.1  # chance is 0.03
    assert f"final test AUCPR {table[-1][-1]} with 2 processes" in output

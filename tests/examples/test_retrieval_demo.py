"""The demo runs as a user runs it, compares every loss with the pixels, and shows that training helps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "examples" / "retrieval_demo.py"
NAMES = (
    "pixels",
    "network, not trained",
    "triplet",
    "normalised softmax",
    "RetrievalAPLoss",
    'RetrievalAPLoss, "sup", calibrated',
    "RecallAtKLoss",
)


def start_demo(*flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(DEMO), *flags], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.exhaustive
def test_every_loss_is_in_the_table(tmp_path: Path) -> None:
    picture = tmp_path / "demo.png"
    finished = start_demo("--seeds", "1", "--epochs", "2", "--plot", str(picture))
    assert finished.returncode == 0, finished.stderr
    lines = [line for line in finished.stdout.splitlines() if line[36:40].strip()[:2] == "0." or "0." in line[36:44]]
    table = {line[:36].strip(): [float(number) for number in line[36:62].split()] for line in lines}
    assert tuple(table) == NAMES
    for scores in table.values():
        # three classes; MAP@R is the stricter of the two means
        assert 0.1 < scores[2] < scores[0] < 1
        assert 1 / 3 < scores[1] <= 1
    assert table["RetrievalAPLoss"][0] > max(table[name][0] for name in NAMES[:2])
    assert f"saved {picture}" in finished.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--seeds", "0"), "expected --seeds of at least 1, got 0"),
        (("--batch-size", "1"), "expected --batch-size of at least 2, got 1"),
        (("--temperature", "0"), "expected --temperature above 0 and finite, got 0.0"),
        (("--plot", "picture.pdf"), "expected --plot FILE.png in a folder that exists, got picture.pdf"),
    ],
)
def test_bad_flags(flags: tuple[str, str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from retrieval_demo import main

    with pytest.raises(SystemExit, match="2"):
        main(flags)
    assert message in capsys.readouterr().err

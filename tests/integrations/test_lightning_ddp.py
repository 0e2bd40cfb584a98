"""Two processes of Lightning train what one trains on the concatenated batches."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from tests.integrations.lightning_runs import IN_EPOCHS, make_loss, train

SCRIPT = Path(__file__).with_name("lightning_ddp.py")


def test_two_processes_train_what_one_trains(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    alone = train(make_loss(**IN_EPOCHS))
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for rank in ranks:
        assert rank["stands"] == alone.stands
        torch.testing.assert_close(rank["losses"], torch.stack(alone.losses), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(rank["state"], alone.state_dict(), rtol=1e-4, atol=1e-5)
    for name, value in ranks[0]["state"].items():
        assert torch.equal(value, ranks[1]["state"][name]), name

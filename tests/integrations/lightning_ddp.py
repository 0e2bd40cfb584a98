"""Trains by two processes of Lightning's DDP strategy, each of which runs this file, and saves what they saw."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[2]))  # for the tests; the package is the installed one

from tests.integrations.lightning_runs import IN_EPOCHS, Batches, Ranker, make_loss, make_trainer

PROCESSES = 2


class Sharded(Ranker):
    """Takes this process's rows of every batch."""

    def train_dataloader(self) -> Batches:
        return Batches(self.global_rank, self.trainer.world_size)


def main(folder: str) -> None:
    torch.set_num_threads(1)
    model = Sharded(make_loss(**IN_EPOCHS))
    make_trainer(strategy="ddp", devices=PROCESSES).fit(model)
    seen = {"losses": torch.stack(model.losses), "stands": model.stands, "state": model.state_dict()}
    torch.save(seen, Path(folder, f"{model.global_rank}.pt"))


if __name__ == "__main__":
    main(sys.argv[1])

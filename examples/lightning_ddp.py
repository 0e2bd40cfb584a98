"""Train the toy demo in two processes with Lightning's DDP strategy, on the CPU.

    python examples/lightning_ddp.py

The losses find Lightning's process group by themselves, and a callback calls their schedule's hooks. The module needs
no code for either. Needs the extras ``demo`` and ``lightning``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toy_demo import Epoch, Split, add_flags, build_loss, check_args, load_data, phase_name, print_table, test_aucpr

from imbalanced_losses.integrations.lightning import LossWarmupCallback

PROCESSES = 2


class Ranker(L.LightningModule):  # type: ignore[misc, unused-ignore]
    """A small network that trains with the demo's schedule, and records the table's lines."""

    def __init__(self, data: Split, args: argparse.Namespace) -> None:
        super().__init__()
        n_train, n_features = data.train_features.shape
        self.net = nn.Sequential(nn.Linear(n_features, 64), nn.ReLU(), nn.Linear(64, 1))
        self.loss_fn = build_loss(args, steps_per_epoch=-(-n_train // args.batch_size))
        self.data, self.args = data, args
        self.history: list[Epoch] = []
        self.losses: list[Tensor] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of all processes' rows, given this process's."""
        features, labels = batch
        loss: Tensor = self.loss_fn(self.net(features), labels[:, None])
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        """Record a line of the table."""
        loss_fn = self.loss_fn
        phase = phase_name(loss_fn)
        loss, aucpr = torch.stack(self.losses).mean().item(), test_aucpr(self.net, self.data)
        self.net.train()
        self.losses.clear()
        self.history.append(Epoch(phase, loss_fn.main_weight, loss_fn.current_temperature, loss, aucpr))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Use AdamW, as in the demo."""
        return torch.optim.AdamW(self.net.parameters(), lr=self.args.lr, weight_decay=self.args.weight_decay)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; Lightning starts the second process, which also runs this file."""
    args = parse_args(argv)
    L.seed_everything(args.seed, verbose=False)
    data = load_data(args.data, args.pos_rate, args.seed)
    rows = TensorDataset(data.train_features, data.train_labels)
    per_process = max(1, args.batch_size // PROCESSES)
    model = Ranker(data, args)
    trainer = L.Trainer(
        accelerator="cpu",
        strategy="ddp",
        devices=PROCESSES,
        max_epochs=args.total_epochs,
        callbacks=[LossWarmupCallback()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(rows, per_process, shuffle=True))  # Lightning adds the DistributedSampler
    if trainer.is_global_zero:
        print_table(model.history)
        print(f"\nfinal test AUCPR {model.history[-1].aucpr:.4f} with {trainer.world_size} processes")


if __name__ == "__main__":
    main()

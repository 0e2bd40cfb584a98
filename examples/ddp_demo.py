"""Train the toy demo in several processes with DistributedDataParallel, and show that the result is the same.

    torchrun --nproc-per-node 2 examples/ddp_demo.py --compare
    python examples/ddp_demo.py

Every process computes its share of a batch. The losses gather the other shares by themselves, so the training loop does
not change. ``--compare`` trains again in one process, on whole batches, and prints the distance between the two models.
The model is in float64: in float32 the distance would be the rounding of sums in another order, amplified by training.
The processes use gloo on the CPU, or NCCL if there is a GPU for each.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from toy_demo import Epoch, Split, add_flags, build_loss, check_args, load_data, phase_name, print_table, test_aucpr
from tqdm import tqdm


def start_processes() -> torch.device:
    """Join the process group, if torchrun started this process, and choose its device."""
    if "LOCAL_RANK" not in os.environ:
        return torch.device("cpu")
    enough_gpus = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if enough_gpus else torch.device("cpu")
    if enough_gpus:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if enough_gpus else "gloo")
    return device


def rank_and_size() -> tuple[int, int]:
    """Return this process's rank and the world size; 0 and 1 without a group."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def own_batches(data: Split, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's share of each batch of an epoch. Shares may differ by one row, or be empty.

    A ``DistributedSampler`` would also work, but this splits the same batches that a single process trains on.
    """
    rank, size = rank_and_size()
    order = torch.randperm(len(data.train_labels), generator=torch.Generator().manual_seed(seed))
    for batch in torch.split(order, batch_size):
        rows = batch.tensor_split(size)[rank]
        yield data.train_features[rows], data.train_labels[rows]


def train(data: Split, args: argparse.Namespace, device: torch.device) -> tuple[nn.Module, list[Epoch]]:
    """Train a model that is the same on all ranks; return one record per epoch."""
    rank, size = rank_and_size()
    n_train, n_features = data.train_features.shape
    torch.manual_seed(args.seed)
    model = nn.Sequential(nn.Linear(n_features, 64), nn.ReLU(), nn.Linear(64, 1)).to(device, torch.float64)
    replica = DistributedDataParallel(model) if size > 1 else model
    n_steps = -(-n_train // args.batch_size)
    loss_fn = build_loss(args, n_steps).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    history: list[Epoch] = []
    description = f"{size} process{'es' * (size > 1)}"
    for epoch in tqdm(range(args.total_epochs), desc=description, unit="epoch", disable=rank > 0):
        model.train()
        loss_fn.on_train_epoch_start(epoch)
        total = 0.0
        for step, (features, labels) in enumerate(own_batches(data, args.batch_size, args.seed + epoch)):
            loss_fn.on_train_batch_start(epoch * n_steps + step)
            loss = loss_fn(replica(features.to(device, torch.float64)), labels[:, None].to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()  # the loss of all processes' rows, the same on each
        phase = phase_name(loss_fn)
        aucpr = test_aucpr(deepcopy(model).float().cpu(), data)
        history.append(Epoch(phase, loss_fn.main_weight, loss_fn.current_temperature, total / n_steps, aucpr))
    return model.cpu(), history


@torch.no_grad()
def difference(model: nn.Module, other: nn.Module) -> float:
    """Return the largest distance between two models' parameter tensors, relative to their norm."""
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return max(float((one - two).norm() / two.norm()) for one, two in pairs)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--compare", action="store_true", help="train in one process, too, and compare the models")
    args = parser.parse_args(argv)
    check_args(parser, args)
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; only rank 0 prints."""
    args = parse_args(argv)
    device = start_processes()
    rank, size = rank_and_size()
    data = load_data(args.data, args.pos_rate, args.seed)
    model, history = train(data, args, device)
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank > 0:
        return
    print_table(history)
    print(f"\nfinal test AUCPR {history[-1].aucpr:.4f} with {size} process{'es' * (size > 1)} on {device.type}")
    if args.compare:  # without a group the same code trains in this process alone
        alone, history_alone = train(data, args, device)
        print(f"final test AUCPR {history_alone[-1].aucpr:.4f} with 1 process")
        print(f"largest relative difference of the parameters {difference(model, alone):.1e}")


if __name__ == "__main__":
    main()

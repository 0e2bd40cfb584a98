"""Train a small classifier on real, imbalanced data: BCE warm-up, blend, then a ranking loss.

    python examples/toy_demo.py --plot toy_demo.png

The data are scikit-learn's handwritten digits, one digit against the rest, thinned until it is rare. With ``--data
generated`` they are a ``make_classification`` problem. A table shows what the schedule does in every epoch.

The task is small and BCE alone (``--loss bce``) does about as well on it, so the demo shows how the phases work, not
that a ranking loss wins. The defaults were chosen on seeds 100 to 107.
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits, make_classification
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from tqdm import tqdm

from imbalanced_losses import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
)
from imbalanced_losses.metrics import average_precision
from imbalanced_losses.plots import plot_precision_recall

RARE_DIGIT = 8


@dataclass(frozen=True)
class Split:
    """Features [N, D] and labels [N] in {0, 1} of a training and a held-out set."""

    train_features: Tensor
    train_labels: Tensor
    test_features: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Epoch:
    """One line of the table."""

    phase: str
    main_weight: float
    temperature: float | None
    loss: float
    aucpr: float


def load_data(name: str, positive_rate: float, seed: int) -> Split:
    """Load the data, thin the positives to ``positive_rate``, and hold out 40 percent."""
    if name == "digits":
        features, digits = load_digits(return_X_y=True)
        labels = (digits == RARE_DIGIT).astype(int)
    else:
        features, labels = make_classification(
            n_samples=6000, n_features=20, n_informative=6, weights=[0.8], flip_y=0.01, class_sep=0.8, random_state=seed
        )
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    n_kept = round(len(negatives) * positive_rate / (1 - positive_rate))
    if not 4 <= n_kept <= len(positives):
        raise SystemExit(f"--pos-rate {positive_rate} needs {n_kept} positives; the data allow 4 to {len(positives)}")
    kept = np.concatenate([negatives, np.random.default_rng(seed).choice(positives, n_kept, replace=False)])
    train_x, test_x, train_y, test_y = train_test_split(
        features[kept], labels[kept], test_size=0.4, stratify=labels[kept], random_state=seed
    )
    scaler = StandardScaler().fit(train_x)
    train_x, test_x = (torch.tensor(scaler.transform(rows), dtype=torch.float32) for rows in (train_x, test_x))
    return Split(train_x, torch.tensor(train_y), test_x, torch.tensor(test_y))


def describe(name: str, data: Split) -> str:
    """Describe the sizes of the data in one line."""
    return (
        f"{name}: {len(data.train_labels)} training rows, {int(data.train_labels.sum())} positive; "
        f"{len(data.test_labels)} held out, {int(data.test_labels.sum())} positive"
    )


def make_model(data: Split) -> nn.Module:
    """Make a network with one hidden layer and one logit; torch's seed determines the weights."""
    return nn.Sequential(nn.Linear(data.train_features.shape[1], 64), nn.ReLU(), nn.Linear(64, 1))


def batches_per_epoch(data: Split, args: argparse.Namespace) -> int:
    """Return the number of batches per epoch; the last may be smaller."""
    return -(-len(data.train_labels) // int(args.batch_size))


def build_loss(args: argparse.Namespace, steps_per_epoch: int) -> LossWarmupWrapper:
    """Build the loss: BCE first, then the loss of ``--loss``."""
    common = {"num_classes": 1, "queue_size": args.queue_size}
    main_losses: dict[str, Callable[[], nn.Module]] = {
        "smooth-ap": lambda: SmoothAPLoss(**common),
        "recall": lambda: RecallAtQuantileLoss(**common, quantile=args.pos_rate, threshold_gradient="implicit"),
        "pauc": lambda: PAUCAtBudgetLoss(**common, beta=args.pos_rate, surrogate="pairwise"),
        "focal": SigmoidFocalLoss,
        "bce": binary_cross_entropy,
    }
    return warm_up(binary_cross_entropy(), main_losses[args.loss](), args, steps_per_epoch)


def warm_up(
    warmup_loss: nn.Module, main_loss: nn.Module, args: argparse.Namespace, steps_per_epoch: int
) -> LossWarmupWrapper:
    """Wrap two losses, with the schedule of the flags."""
    main_steps = (args.total_epochs - args.warmup_epochs) * steps_per_epoch
    with warnings.catch_warnings():
        # focal and BCE have neither temperature nor queue: nothing for the schedule to drive
        warnings.filterwarnings("ignore", ".* has no .*: the schedule goes without", UserWarning)
        return LossWarmupWrapper(
            warmup_loss,
            main_loss,
            warmup_epochs=args.warmup_epochs,
            blend_epochs=args.blend_epochs,
            temp_start=args.temp_start,
            temp_end=args.temp_end,
            temp_decay_steps=max(1, main_steps - 1),  # the last step, not the one after it, has temp_end
        )


def binary_cross_entropy() -> SigmoidFocalLoss:
    """Return a focal loss that equals BCE; unlike torch's, it takes integer labels as the ranking losses do."""
    return SigmoidFocalLoss(alpha=-1, gamma=0)


@torch.no_grad()
def test_aucpr(model: nn.Module, data: Split) -> float:
    """Compute the area under the precision-recall curve (average precision) on the held-out set."""
    return average_precision(model.eval()(data.test_features)[:, 0], data.test_labels).item()


def train(model: nn.Module, loss_fn: LossWarmupWrapper, data: Split, args: argparse.Namespace) -> list[Epoch]:
    """Train all epochs with a progress bar; return one record per epoch."""
    epochs = train_epochs(model, loss_fn, data, args)
    return list(tqdm(epochs, total=args.total_epochs, desc=f"BCE -> {args.loss}", unit="epoch"))


def train_epochs(
    model: nn.Module, loss_fn: LossWarmupWrapper, data: Split, args: argparse.Namespace
) -> Iterator[Epoch]:
    """Run the usual training loop with the schedule's two hooks; yield a record after each epoch."""
    batches = shuffled_batches(data, args)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    step = 0
    for epoch in range(args.total_epochs):
        model.train()
        loss_fn.on_train_epoch_start(epoch)
        total = 0.0
        for features, labels in batches:
            loss_fn.on_train_batch_start(step)
            loss = loss_fn(model(features), labels[:, None])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            total += loss.item()
        phase = phase_name(loss_fn)
        mean_loss = total / len(batches)
        yield Epoch(phase, loss_fn.main_weight, loss_fn.current_temperature, mean_loss, test_aucpr(model, data))


def shuffled_batches(data: Split, args: argparse.Namespace) -> DataLoader[tuple[Tensor, ...]]:
    """Yield batches of the training rows, in an order that depends on the seed and the epoch."""
    rows = TensorDataset(data.train_features, data.train_labels)
    generator = torch.Generator().manual_seed(args.seed)
    # one look-up for all rows of a batch: row by row, loading takes longer than training
    sampler = BatchSampler(RandomSampler(rows, generator=generator), args.batch_size, drop_last=False)
    return DataLoader(rows, sampler=sampler, batch_size=None, generator=generator)


def phase_name(loss_fn: LossWarmupWrapper) -> str:
    """Return the name of the current phase."""
    return "warm-up" if loss_fn.in_warmup else "blend" if loss_fn.in_blend else "main"


def print_table(history: Sequence[Epoch]) -> None:
    """Print one line per epoch."""
    print(f"\n{'epoch':>5}  {'phase':<8}{'main weight':>12}{'temperature':>13}{'loss':>9}{'test AUCPR':>12}")
    for number, epoch in enumerate(history):
        temperature = "-" if epoch.temperature is None else f"{epoch.temperature:.4f}"
        line = f"{number:>5}  {epoch.phase:<8}{epoch.main_weight:>12.2f}{temperature:>13}"
        print(line + f"{epoch.loss:>9.4f}{epoch.aucpr:>12.4f}")


def save_plot(path: Path, history: Sequence[Epoch], scores: Tensor, data: Split) -> None:
    """Plot AUCPR and main weight by epoch, and the final precision-recall curve on the held-out set."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    epochs = range(len(history))
    left.plot(epochs, [epoch.aucpr for epoch in history], marker=".", label="test AUCPR")
    weights = [epoch.main_weight for epoch in history]
    left.step(epochs, weights, where="mid", linestyle="--", color="gray", label="main-loss weight")
    left.set(xlabel="epoch", ylim=(0, 1.05), title="Training")
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend(loc="lower right")
    plot_precision_recall(scores, data.test_labels, ax=right).set(title="Held-out set")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_flags(parser)
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="save a picture")
    args = parser.parse_args(argv)
    check_args(parser, args)
    check_plot(parser, args)
    return args


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of data, loss, schedule and training, which other demos share."""
    losses = ["smooth-ap", "recall", "pauc", "focal", "bce"]
    parser.add_argument("--loss", choices=losses, default=losses[0], help="main loss (default %(default)s)")
    add_data_flag(parser)
    add_training_flags(parser)


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag that selects the data of :func:`load_data`."""
    data = ["digits", "generated"]
    parser.add_argument("--data", choices=data, default=data[0], help="real or generated (default %(default)s)")


def add_training_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of schedule and training, for any data and losses."""
    parser.add_argument("--pos-rate", type=float, default=0.03, help="share of positives (default %(default)s)")
    parser.add_argument("--warmup-epochs", type=int, default=4, help="epochs of warm-up (default %(default)s)")
    parser.add_argument("--blend-epochs", type=int, default=3, help="epochs of blending (default %(default)s)")
    parser.add_argument("--total-epochs", type=int, default=20, help="all epochs (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="rows in a step (default %(default)s)")
    parser.add_argument("--queue-size", type=int, default=1024, help="past rows in the pool (default %(default)s)")
    parser.add_argument("--temp-start", type=float, default=2.0, help="temperature at the switch (default %(default)s)")
    parser.add_argument(
        "--temp-end", type=float, default=1.0, help="temperature at the last step (default %(default)s)"
    )
    parser.add_argument("--lr", type=float, default=1e-2, help="learning rate of AdamW (default %(default)s)")
    parser.add_argument("--weight-decay", type=float, default=0.01, help="weight decay of AdamW (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of split, model and batches (default %(default)s)")


def check_args(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error if a flag's value is invalid."""
    at_least = {"warmup_epochs": 0, "blend_epochs": 0, "total_epochs": 1, "batch_size": 1, "queue_size": 0, "seed": 0}
    for name, minimum in at_least.items():
        if getattr(args, name) < minimum:
            parser.error(f"expected --{name.replace('_', '-')} of at least {minimum}, got {getattr(args, name)}")
    for name in ("temp_start", "temp_end", "lr"):
        if not 0 < getattr(args, name) < math.inf:
            parser.error(f"expected --{name.replace('_', '-')} above 0 and finite, got {getattr(args, name)}")
    if not 0 <= args.weight_decay < math.inf:
        parser.error(f"expected --weight-decay of at least 0, got {args.weight_decay}")
    if not 0 < args.pos_rate < 1:
        parser.error(f"expected --pos-rate between 0 and 1, got {args.pos_rate}")


def check_plot(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error if the plot cannot be saved."""
    if args.plot and not args.plot.parent.is_dir():
        parser.error(f"expected --plot in a folder that exists, got {args.plot}")
    if args.plot and args.plot.suffix != ".png":
        parser.error(f"expected --plot to end in .png, got {args.plot}")


def main(argv: Sequence[str] | None = None) -> list[Epoch]:
    """Run the demo and return its table."""
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    data = load_data(args.data, args.pos_rate, args.seed)
    print(describe(args.data, data))
    model = make_model(data)
    loss_fn = build_loss(args, batches_per_epoch(data, args))
    history = train(model, loss_fn, data, args)
    print_table(history)
    print()
    warmup = [epoch for epoch in history if epoch.phase == "warm-up"]
    if warmup:
        print(f"test AUCPR after the warm-up {warmup[-1].aucpr:.4f}")
    print(f"final test AUCPR {history[-1].aucpr:.4f}")
    if args.plot:
        with torch.no_grad():
            save_plot(args.plot, history, model.eval()(data.test_features)[:, 0], data)
        print(f"saved {args.plot}")
    return history


if __name__ == "__main__":
    main()

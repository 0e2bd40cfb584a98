"""Shared code of the per-class examples: ten digits, three of them rare, a loss with its schedule, and flags."""

from __future__ import annotations

import argparse
import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from imbalanced_losses import LossWarmupWrapper, SmoothAPLoss, SoftmaxFocalLoss

CLASSES = 10
RARE_DIGITS = (3, 5, 8)
T = TypeVar("T")


class Digits(NamedTuple):
    """Pixels [N, 64] and digits [N] of a training and a held-out set."""

    train_pixels: Tensor
    train_digits: Tensor
    test_pixels: Tensor
    test_digits: Tensor


def load_data(rare_rows: int, seed: int) -> Digits:
    """Split scikit-learn's handwritten digits; the rare digits are rare only in the training rows."""
    pixels, digits = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels, digits, test_size=0.4, stratify=digits, random_state=seed
    )
    kept = [np.flatnonzero(train_y == digit) for digit in range(CLASSES)]
    for digit in RARE_DIGITS:
        if rare_rows > len(kept[digit]):
            raise SystemExit(f"--rare-rows {rare_rows}: the digit {digit} has {len(kept[digit])} training rows")
        kept[digit] = kept[digit][:rare_rows]  # the split has shuffled them
    rows = np.concatenate(kept)
    scaler = StandardScaler().fit(train_x[rows])
    train_x, test_x = (torch.tensor(scaler.transform(x), dtype=torch.float32) for x in (train_x[rows], test_x))
    return Digits(train_x, torch.tensor(train_y[rows]), test_x, torch.tensor(test_y))


def build_loss(args: argparse.Namespace, steps_per_epoch: int) -> LossWarmupWrapper:
    """Build a loss: cross-entropy first, then Smooth-AP of each class against the rest."""
    main_steps = (args.total_epochs - args.warmup_epochs) * steps_per_epoch
    return LossWarmupWrapper(
        SoftmaxFocalLoss(gamma=0),  # cross-entropy
        SmoothAPLoss(num_classes=CLASSES, queue_size=args.queue_size),
        warmup_epochs=args.warmup_epochs,
        blend_epochs=args.blend_epochs,
        temp_start=args.temp_start,
        temp_end=args.temp_end,
        temp_decay_steps=max(1, main_steps - 1),  # the last step, not the one after it, has temp_end
    )


def per_class(name: str, values: Iterable[T]) -> dict[str, T]:
    """Return the values by metric and class, such as ``loss/0`` to ``loss/9``."""
    return {f"{name}/{digit}": value for digit, value in enumerate(values)}


def print_classes(columns: Mapping[str, Sequence[float] | None]) -> None:
    """Print a line for each digit, with its values in columns; ``None`` is a column without values."""
    print("\ndigit" + "".join(f"{title:>{len(title) + 3}}" for title in columns))
    for digit in range(CLASSES):
        cells = ("-" if values is None else _tell(values[digit]) for values in columns.values())
        line = "".join(f"{cell:>{len(title) + 3}}" for title, cell in zip(columns, cells, strict=True))
        print(f"{digit:>5}{line}" + ("   rare" if digit in RARE_DIGITS else ""))


def _tell(value: float) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser with the flags of data, schedule and training."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, minimum, default, text in (
        ("--rare-rows", 1, 12, "training rows of each rare digit"),
        ("--warmup-epochs", 0, 5, "epochs of cross-entropy"),
        ("--blend-epochs", 0, 3, "epochs of blending"),
        ("--total-epochs", 1, 20, "all epochs"),
        ("--batch-size", 1, 64, "rows in a step"),
        ("--queue-size", 0, 1024, "past rows in the pool"),
        ("--seed", 0, 0, "seed of split, network and batches"),
    ):
        kind = functools.partial(integer, minimum=minimum)
        parser.add_argument(flag, type=kind, default=default, help=f"{text} (default %(default)s)")
    for flag, size, text in (
        ("--temp-start", 1.0, "temperature at the switch"),
        ("--temp-end", 0.5, "temperature at the last step"),
        ("--lr", 1e-2, "learning rate of AdamW"),
    ):
        parser.add_argument(flag, type=positive, default=size, help=f"{text} (default %(default)s)")
    return parser


def integer(text: str, minimum: int) -> int:
    """A flag's value."""
    try:
        value = int(text)
    except ValueError:
        value = minimum - 1
    if value < minimum:
        raise argparse.ArgumentTypeError(f"expected an integer of at least {minimum}, got {text}")
    return value


def positive(text: str) -> float:
    """A flag's value."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0 and finite, got {text}")
    return value

"""Log diagnostics and the exact metric of each of ten classes, some of them rare, with the Hugging Face Trainer.

    python examples/trainer_per_class.py

The data are scikit-learn's handwritten digits; three of them keep only a few training rows. A small network warms up on
cross-entropy, then Smooth-AP ranks every class against the rest. ``LossWarmupCallback`` drives and logs the schedule,
another callback logs ``loss_fn.diagnostics()``, tensors of the last step, and ``compute_metrics`` the exact average
precision of every class on the held-out rows. All values are in ``trainer.state.log_history``, from which the tables
are printed. Needs the extras ``demo`` and ``transformers``; nothing is downloaded.

It shows how to log, not that a ranking loss wins: cross-entropy for all 20 epochs (``--warmup-epochs 20``) ranks the
rare digits as well, with a mean average precision of 0.86 either way on seeds 0 to 3.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from rare_digits import CLASSES, RARE_DIGITS, Digits, build_loss, load_data, make_parser, per_class, print_classes
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from imbalanced_losses import LossWarmupWrapper
from imbalanced_losses.integrations.transformers import LossWarmupCallback, compute_loss_func
from imbalanced_losses.metrics import average_precision

Logs = dict[str, Any]


class Rows(Dataset[dict[str, Tensor]]):
    """A data set of rows in the Trainer's format."""

    def __init__(self, pixels: Tensor, digits: Tensor) -> None:
        self.pixels, self.digits = pixels, digits

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"pixels": self.pixels[index], "labels": self.digits[index]}


class Network(PreTrainedModel):  # type: ignore[no-untyped-call, unused-ignore]
    """A network that returns only logits; the Trainer computes the loss."""

    layers: nn.Sequential

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
        self.post_init()  # type: ignore[no-untyped-call, unused-ignore]

    def forward(self, pixels: Tensor) -> SequenceClassifierOutput:
        """Score each class."""
        return SequenceClassifierOutput(logits=self.layers(pixels))


class Diagnostics(TrainerCallback):
    """Adds the diagnostics of the last step to the logs, class by class."""

    def __init__(self, loss_fn: LossWarmupWrapper) -> None:
        self.loss_fn = loss_fn

    def on_log(self, args: Any, state: TrainerState, control: Any, logs: Logs | None = None, **_: Any) -> None:
        """Read the tensors, and so wait for the device, only when something is logged."""
        if logs is None or "loss" not in logs:
            return
        values = {name: value.tolist() for name, value in self.loss_fn.diagnostics().items()}
        for name, value in values.items():
            told = per_class(name, value) if isinstance(value, list) else {name: value}
            logs.update(told)
            state.log_history[-1].update(told)


class Progress(ProgressCallback):
    """The Trainer's progress bar without a line per log, because tables are printed at the end."""

    def on_log(self, *_: Any, **__: Any) -> None:
        """Print nothing."""


def exact_metrics(evaluated: EvalPrediction) -> dict[str, float]:
    """Compute the average precision of each class, over all held-out rows at once."""
    scores, digits = torch.as_tensor(evaluated.predictions), torch.as_tensor(evaluated.label_ids)
    return per_class("average_precision", average_precision(scores, digits).tolist())


def train(args: argparse.Namespace, data: Digits) -> list[Logs]:
    """Train; return one record per epoch, with the logs of training and of evaluation."""
    loss_fn = build_loss(args, steps_per_epoch=-(-len(data.train_digits) // args.batch_size))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            Network(PreTrainedConfig()),
            TrainingArguments(
                output_dir=folder,
                num_train_epochs=args.total_epochs,
                per_device_train_batch_size=args.batch_size,
                per_device_eval_batch_size=256,
                learning_rate=args.lr,
                logging_strategy="epoch",
                eval_strategy="epoch",
                save_strategy="no",
                label_names=["labels"],  # they are kept although the network's forward does not take them
                report_to="none",
                disable_tqdm=True,  # Progress has a bar
                use_cpu=True,
                dataloader_pin_memory=False,
                seed=args.seed,
            ),
            train_dataset=Rows(data.train_pixels, data.train_digits),
            eval_dataset=Rows(data.test_pixels, data.test_digits),
            compute_loss_func=compute_loss_func(loss_fn),
            compute_metrics=exact_metrics,
            callbacks=[LossWarmupCallback(loss_fn), Diagnostics(loss_fn), Progress()],
        )
        trainer.remove_callback(PrinterCallback)  # it prints what is in the tables
        trainer.train()
    epochs: dict[float, Logs] = {}
    for logs in trainer.state.log_history:
        epochs.setdefault(logs["epoch"], {}).update(logs)
    return list(epochs.values())


def precision_of(epoch: Logs, digits: Sequence[int]) -> float:
    """Return the mean of the exact average precision over some classes."""
    values: list[float] = [epoch[f"eval_average_precision/{digit}"] for digit in digits]
    return sum(values) / len(values)


def print_epochs(history: Sequence[Logs]) -> None:
    """Print one line per epoch."""
    common = [digit for digit in range(CLASSES) if digit not in RARE_DIGITS]
    print(f"\n{'epoch':>5}{'main weight':>13}{'temperature':>13}{'queue fill':>12}{'loss':>9}", end="")
    print(f"{'test AP, common':>17}{'rare':>9}")
    for number, epoch in enumerate(history):
        fill = f"{epoch['queue_fill']:.2f}" if "queue_fill" in epoch else "-"
        line = f"{number:>5}{epoch['main_weight']:>13.2f}{epoch['temperature']:>13.4f}{fill:>12}{epoch['loss']:>9.4f}"
        print(line + f"{precision_of(epoch, common):>17.4f}{precision_of(epoch, RARE_DIGITS):>9.4f}")


def columns_of(train_digits: Tensor, history: Sequence[Logs], warmup_epochs: int) -> dict[str, list[float] | None]:
    """Return each class's number of training rows, diagnostics of the last step and exact metric."""
    last = history[-1]
    before = history[warmup_epochs - 1] if 0 < warmup_epochs <= len(history) else {}
    return {
        "training rows": train_digits.bincount(minlength=CLASSES).tolist(),
        "valid": of_classes(last, "valid"),  # absent during the warm-up
        "Smooth-AP loss": of_classes(last, "loss"),
        "gap to exact": of_classes(last, "gap"),
        "test AP, warm-up": of_classes(before, "eval_average_precision"),
        "test AP, end": of_classes(last, "eval_average_precision"),
    }


def of_classes(epoch: Logs, name: str) -> list[float] | None:
    """Return a value for each class, or None if the epoch has none."""
    names = [f"{name}/{digit}" for digit in range(CLASSES)]
    return [epoch[name] for name in names] if names[0] in epoch else None


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    return make_parser(__doc__).parse_args(argv)


def main(argv: Sequence[str] | None = None) -> list[Logs]:
    """Run the example and return its records."""
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    data = load_data(args.rare_rows, args.seed)
    history = train(args, data)
    print_epochs(history)
    print_classes(columns_of(data.train_digits, history, args.warmup_epochs))
    return history


if __name__ == "__main__":
    main()

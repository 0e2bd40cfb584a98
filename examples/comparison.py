"""Shared code of the demos that compare losses: runs over seeds, tables, paired differences, a plot.

All contenders of a seed start from the same weights and see the same batches, so that their differences are paired. The
code treats all contenders alike.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from scipy import stats  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from toy_demo import (
    Epoch,
    Split,
    add_training_flags,
    batches_per_epoch,
    check_args,
    check_plot,
    describe,
    load_data,
    make_model,
    train_epochs,
    warm_up,
)
from tqdm import tqdm

from imbalanced_losses import LossWarmupWrapper
from imbalanced_losses.plots import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONFIDENCE = 0.95

Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contender:
    """A loss to compare: its name, and a function that builds it."""

    name: str
    build: Callable[[argparse.Namespace, Split], LossWarmupWrapper]


def after_warm_up(
    warmup: Callable[[Split], nn.Module], name: str, main: Callable[[argparse.Namespace, Split], nn.Module]
) -> Contender:
    """Return a contender that trains with a loss, after a warm-up on another if the flags set one."""

    def build(args: argparse.Namespace, data: Split) -> LossWarmupWrapper:
        return warm_up(warmup(data), main(args, data), args, batches_per_epoch(data, args))

    return Contender(name, build)


@dataclass(frozen=True)
class Run:
    """One contender on one seed: its epochs, and the value of every metric on the held-out set after each."""

    contender: str
    seed: int
    history: list[Epoch]
    figures: dict[str, list[float]]


@dataclass(frozen=True)
class Summary:
    """A contender's metric after the last epoch, over the seeds; the first contender is the baseline of the others.

    ``margin`` is half the width of the interval (Student's t) of the mean paired ``difference`` from the baseline. It
    and the ``deviation`` are ``nan`` with one seed.
    """

    contender: str
    mean: float
    deviation: float
    difference: float
    margin: float


def run_demo(
    name: str,
    load: Callable[[argparse.Namespace], Split],
    contenders: Sequence[Contender],
    args: argparse.Namespace,
    metrics: Mapping[str, Metric],
) -> list[Run]:
    """Compare the contenders by AUCPR and ``metrics``; show tables, a summary in words and optionally a plot."""
    torch.set_num_threads(1)  # the steps are too small to share: threads would wait for each other
    print(describe(name, load(args)))
    runs = compare(load, contenders, args, metrics)
    metric_names = ["AUCPR", *metrics]
    for metric in metric_names:
        print_epochs(runs, metric)
    for metric in metric_names:
        print_summary(runs, metric)
    if args.plot:
        save_plot(args.plot, runs, metric_names)
        print(f"\nsaved {args.plot}")
    return runs


def load_as_asked(args: argparse.Namespace) -> Split:
    """Load toy_demo.py's data, thinned and split by the seed."""
    return load_data(args.data, args.pos_rate, args.seed)


def compare(
    load: Callable[[argparse.Namespace], Split],
    contenders: Sequence[Contender],
    args: argparse.Namespace,
    metrics: Mapping[str, Metric],
) -> list[Run]:
    """Train every contender on every seed."""
    runs = []
    with tqdm(total=args.seeds * len(contenders) * args.total_epochs, unit="epoch") as bar:
        for seed in range(args.seed, args.seed + args.seeds):
            seeded = argparse.Namespace(**{**vars(args), "seed": seed})
            data = load(seeded)
            for contender in contenders:
                bar.set_description(f"seed {seed}, {contender.name}")
                runs.append(train_one(contender, data, seeded, metrics, bar))
    return runs


def train_one(
    contender: Contender, data: Split, args: argparse.Namespace, metrics: Mapping[str, Metric], bar: tqdm[None]
) -> Run:
    """Train one contender; the seed determines initial weights and batches."""
    torch.manual_seed(args.seed)
    model = make_model(data)
    history: list[Epoch] = []
    figures: dict[str, list[float]] = {name: [] for name in ("AUCPR", *metrics)}
    for epoch in train_epochs(model, contender.build(args, data), data, args):
        history.append(epoch)
        figures["AUCPR"].append(epoch.aucpr)
        for name, metric in metrics.items():
            figures[name].append(metric(held_out_scores(model, data), data.test_labels).item())
        bar.update()
    return Run(contender.name, args.seed, history, figures)


@torch.no_grad()
def held_out_scores(model: nn.Module, data: Split) -> Tensor:
    """Compute the logits [N] of the held-out rows."""
    scores: Tensor = model.eval()(data.test_features)[:, 0]
    return scores


class WeightedBCE(nn.Module):
    """Binary cross-entropy on integer labels, in which positives have the same total weight as negatives."""

    pos_weight: Tensor

    def __init__(self, data: Split) -> None:
        super().__init__()
        positives = data.train_labels.sum()
        self.register_buffer("pos_weight", (len(data.train_labels) - positives) / positives)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over all elements."""
        return binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), pos_weight=self.pos_weight)


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return the contenders in the order of the runs; the first is the baseline."""
    return list(dict.fromkeys(run.contender for run in runs))


def seeds_of(runs: Sequence[Run]) -> list[int]:
    """Return the seeds in the order of the runs."""
    return list(dict.fromkeys(run.seed for run in runs))


def values_of(runs: Sequence[Run], contender: str, metric: str) -> Tensor:
    """Return one contender's values of a metric: [seeds, epochs]."""
    values = [run.figures[metric] for run in runs if run.contender == contender]
    return torch.tensor(values, dtype=torch.float64)


def differences(runs: Sequence[Run], contender: str, metric: str) -> Tensor:
    """Return one contender's metric after the last epoch minus the baseline's: [seeds]."""
    return (values_of(runs, contender, metric) - values_of(runs, names_of(runs)[0], metric))[:, -1]


def summarise(runs: Sequence[Run], metric: str) -> list[Summary]:
    """Compute mean and deviation over the seeds, and the mean difference from the baseline with its interval."""
    n_seeds = len(seeds_of(runs))
    quantile = stats.t.ppf((1 + CONFIDENCE) / 2, n_seeds - 1)
    summaries = []
    for name in names_of(runs):
        mean, deviation = mean_and_deviation(values_of(runs, name, metric)[:, -1])
        difference, scatter = mean_and_deviation(differences(runs, name, metric))
        summaries.append(Summary(name, mean, deviation, difference, float(quantile) * scatter / math.sqrt(n_seeds)))
    return summaries


def mean_and_deviation(values: Tensor) -> tuple[float, float]:
    """Return mean and sample standard deviation of [seeds]; with one seed the deviation is ``nan``."""
    return values.mean().item(), values.std().item() if len(values) > 1 else math.nan


def print_epochs(runs: Sequence[Run], metric: str) -> None:
    """Print the contenders side by side, one line per epoch; the phase is that of the last contender."""
    names = names_of(runs)
    means = [values_of(runs, name, metric).mean(0).tolist() for name in names]
    print(f"\ntest {metric}, {over_seeds(runs)}")
    print(f"{'epoch':>5}  {'phase':<8}{in_columns(names, names)}")
    for number, (epoch, *row) in enumerate(zip(runs[-1].history, *means, strict=True)):
        print(f"{number:>5}  {epoch.phase:<8}{in_columns(names, [f'{value:.4f}' for value in row])}")


def in_columns(names: Sequence[str], cells: Sequence[str]) -> str:
    """Align cells with the names of their columns."""
    return "".join(f"{cell:>{2 + max(len(name), 6)}}" for name, cell in zip(names, cells, strict=True))


def over_seeds(runs: Sequence[Run]) -> str:
    """Describe the seeds that a number is the mean of."""
    first, *others = seeds_of(runs)
    return f"mean over the {1 + len(others)} seeds {first} to {others[-1]}" if others else f"seed {first}"


def print_summary(runs: Sequence[Run], metric: str) -> None:
    """Print mean and standard deviation after the last epoch, and in words how each contender compares to the first."""
    baseline, *others = summaries = summarise(runs, metric)
    n_seeds = len(seeds_of(runs))
    title = f"final test {metric}"
    width = 2 + max(len(title), *(len(summary.contender) for summary in summaries))
    print(f"\n{title:<{width}}{'mean':>8}{'sd':>8}")
    for summary in summaries:
        deviation = "-" if n_seeds == 1 else f"{summary.deviation:.4f}"
        print(f"{summary.contender:<{width}}{summary.mean:>8.4f}{deviation:>8}")
    for summary in others:
        print(f"{summary.contender} - {baseline.contender}: {in_words(summary, n_seeds)}")
    if n_seeds > 1:
        print(f"(±: {CONFIDENCE:.0%} interval of the mean difference, each on its own)")


def in_words(summary: Summary, n_seeds: int) -> str:
    """Describe a difference: a contender is better or worse only if the whole interval is above or below 0."""
    if math.isnan(summary.difference):
        return "nan: a run has diverged"
    if n_seeds == 1:
        return f"{summary.difference:+.4f} on one seed, which cannot show how much of it is chance"
    if summary.difference > summary.margin:
        verdict = "higher"
    elif summary.difference < -summary.margin:
        verdict = "lower"
    else:
        verdict = "no difference that these seeds can show"
    return f"{summary.difference:+.4f} ± {summary.margin:.4f} over {n_seeds} seeds: {verdict}"


def save_plot(path: Path, runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """Plot a row for each metric: its mean by epoch, and the differences from the baseline after the last."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    size = (11, 4.2 * len(metrics))
    figure, rows = plt.subplots(len(metrics), 2, figsize=size, layout="constrained", squeeze=False)
    for metric, (left, right) in zip(metrics, rows, strict=True):
        for name, color in zip(names_of(runs), ("black", *COLORS), strict=False):
            left.plot(values_of(runs, name, metric).mean(0), color=color, marker=".", label=name)
        left.set(xlabel="epoch", ylabel=f"test {metric}", title=over_seeds(runs).capitalize())
        left.xaxis.get_major_locator().set_params(integer=True)
        left.legend()
        draw_differences(right, runs, metric)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_differences(axes: Axes, runs: Sequence[Run], metric: str) -> None:
    """Draw each contender's mean difference from the baseline with its interval, and a dot per seed above it."""
    baseline, *others = summarise(runs, metric)
    for place, (summary, color) in enumerate(zip(others, COLORS, strict=False)):
        values = differences(runs, summary.contender, metric)
        axes.plot(values, [place - 0.15] * len(values), "o", color=color, alpha=0.5, markersize=6, markeredgewidth=0)
        axes.errorbar(summary.difference, place, xerr=summary.margin, color=color, marker="D", capsize=4)
    axes.axvline(0, color="black", linewidth=1)
    axes.set_yticks(range(len(others)), [summary.contender for summary in others])
    axes.set(ylim=(len(others) - 0.5, -0.5), xlabel=f"difference of the final test {metric}")
    axes.set_title(f"Minus {baseline.contender}: each seed, mean, {CONFIDENCE:.0%} interval")


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser with the flags of every comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_flags(parser)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from --seed on (default %(default)s)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="save a picture")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the flags, and exit with an error if a value is invalid."""
    args = parser.parse_args(argv)
    check_args(parser, args)
    check_plot(parser, args)
    if args.seeds < 1:
        parser.error(f"expected --seeds of at least 1, got {args.seeds}")
    return args

"""How the figures look: each function draws the numbers of the function of the same name in ``computed``."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from imbalanced_losses.plots import BLUE, GREEN, ORANGE, PURPLE

__all__ = ["DRAWN"]

Numbers = dict[str, Tensor]
GREY = "0.45"
COLORS = (BLUE, ORANGE, GREEN, PURPLE)
SIZE, WIDE, TALL = (6, 3.4), (6.4, 3.2), (6.4, 5.2)


def where_losses_push(numbers: Numbers) -> Figure:
    """Four panels: push over score."""
    figure, axes = plt.subplots(2, 2, figsize=TALL, sharex=True, sharey=True)
    positive = numbers["targets"] == 1
    names = [name for name in numbers if name not in ("scores", "targets")]
    for ax, name in zip(axes.flat, names, strict=True):
        ax.axhline(0, color="0.8", linewidth=0.8)
        for mask, color, label in ((~positive, GREY, "negative"), (positive, ORANGE, "positive")):
            ax.plot(numbers["scores"][mask], numbers[name][mask], ".", color=color, label=label)
        ax.set_title(name, fontsize=11)
    axes[0, 0].legend(loc="lower left", fontsize=10, handletextpad=0.2)
    for ax in axes[1]:
        ax.set_xlabel("score")
    figure.supylabel("push up or down, share of the largest", fontsize=11)
    return figure


def smooth_ap_steps(numbers: Numbers) -> Figure:
    """Loss and slope over the position of the positive."""
    figure, (above, below) = plt.subplots(2, 1, figsize=TALL, sharex=True)
    above.plot(numbers["position"], numbers["exact"], color="black", label="exact")
    for name, color in zip((key for key in numbers if key.startswith("loss")), COLORS, strict=False):
        temperature = name.removeprefix("loss ")
        above.plot(numbers["position"], numbers[name], color=color, label=f"temperature {temperature}")
        below.plot(numbers["position"], -numbers[f"slope {temperature}"], color=color)
    above.set_ylabel("1 - AP")
    above.legend(loc="upper right", fontsize=10)
    below.set(xlabel="score of the positive (negatives at -2, -1, 0, 1, 2)", ylabel="push upwards", ylim=(0, 1.2))
    return figure


def rows_with_gradient(numbers: Numbers) -> Figure:
    """Two panels over temperature."""
    figure, (left, right) = plt.subplots(1, 2, figsize=WIDE)
    left.plot(numbers["temperature"], numbers["rows"], color=BLUE)
    left.set(xscale="log", yscale="log", xlabel="temperature", ylabel="rows that share the gradient")
    right.plot(numbers["temperature"], numbers["gap"], color=ORANGE)
    right.axhline(0, color="0.8", linewidth=0.8)
    right.set(xscale="log", xlabel="temperature", ylabel="loss - (1 - AP)")
    return figure


def threshold_drift(numbers: Numbers) -> Figure:
    """Mean score and recall over steps."""
    figure, (left, right) = plt.subplots(1, 2, figsize=WIDE)
    for mode, color in (("stop", ORANGE), ("implicit", BLUE)):
        left.plot(numbers["step"], numbers[f"mean {mode}"], color=color, label=f'"{mode}"')
        right.plot(numbers["step"], numbers[f"recall {mode}"], color=color)
    left.set(xlabel="step", ylabel="mean score")
    left.legend(fontsize=10)
    right.set(xlabel="step", ylabel="recall at 5 %", ylim=(0, 1))
    return figure


def batch_bias(numbers: Numbers) -> Figure:
    """Mean and spread over pool size."""
    figure, ax = plt.subplots(figsize=SIZE)
    mean, spread = numbers["mean"], numbers["spread"]
    ax.fill_between(
        numbers["size"], mean - spread, mean + spread, color=BLUE, alpha=0.2, linewidth=0, label="one deviation"
    )
    ax.plot(numbers["size"], mean, color=BLUE, marker="o", label="mean over pools")
    ax.axhline(numbers["all"].item(), color="black", linestyle="--", label="all 200,000 rows")
    ax.set(xscale="log", xlabel="rows of the pool", ylabel="average precision", ylim=(0, 1))
    ax.legend(fontsize=10)
    return figure


def staleness(numbers: Numbers) -> Figure:
    """Distance over age."""
    figure, ax = plt.subplots(figsize=SIZE)
    for name, color in zip((key for key in numbers if key != "age"), COLORS, strict=False):
        ax.plot(numbers["age"], 100 * numbers[name], color=color, marker="o", label=f"learning {name}")
    ax.set(xscale="symlog", xlabel="age of a stored score, steps", ylabel="pairs in another order, %")
    ax.set_xticks(numbers["age"].tolist(), [str(age) for age in numbers["age"].tolist()])
    ax.minorticks_off()
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=10)
    return figure


def subsampling(numbers: Numbers) -> Figure:
    """Estimates over the size of the sample."""
    figure, ax = plt.subplots(figsize=SIZE)
    low, high = numbers["corrected"] - numbers["spread"], numbers["corrected"] + numbers["spread"]
    ax.axhline(numbers["all"].item(), color="black", linestyle="--", label="all 8,192 rows")
    ax.fill_between(numbers["size"], low, high, color=BLUE, alpha=0.2, linewidth=0)
    ax.plot(numbers["size"], numbers["corrected"], color=BLUE, marker="o", label="max_pool_size")
    ax.plot(numbers["size"], numbers["naive"], color=ORANGE, marker="o", label="all positives, fewer negatives")
    ax.set(xscale="log", xlabel="rows of the sample", ylabel="Smooth-AP loss", ylim=(0, 1))
    ax.set_xticks(numbers["size"].tolist(), [str(size) for size in numbers["size"].tolist()])
    ax.minorticks_off()
    ax.legend(fontsize=10)
    return figure


def exponential_terms(numbers: Numbers) -> Figure:
    """Error over terms."""
    figure, ax = plt.subplots(figsize=SIZE)
    ax.plot(numbers["terms"], numbers["error"], color=BLUE, marker="o", label="best polynomial")
    point = numbers["library terms"].item(), numbers["library"].item()
    ax.scatter(*point, color=ORANGE, s=60, zorder=3, label="the library, float32")
    ax.axhline(2**-24, color="black", linestyle="--", label="rounding of float32")
    ax.set(yscale="log", xlabel="exponentials in the sum", ylabel="largest relative error")
    ax.legend(fontsize=10)
    return figure


def rank_accuracy(numbers: Numbers) -> Figure:
    """Error over rows."""
    figure, ax = plt.subplots(figsize=SIZE)
    for name, color in zip((key for key in numbers if key != "size"), COLORS, strict=False):
        ax.plot(numbers["size"], numbers[name], color=color, marker="o", label=name)
    ax.axhline(2**-24, color="black", linestyle="--", label="rounding of float32")
    ax.set(xscale="log", yscale="log", xlabel="rows", ylabel="largest relative error", ylim=(1e-8, 1e-5))
    ax.set_xticks(numbers["size"].tolist(), [f"{size:,}" for size in numbers["size"].tolist()])
    ax.minorticks_off()
    ax.legend(fontsize=10, ncols=2)
    return figure


def rank_times(numbers: Numbers) -> Figure:
    """Time over rows."""
    figure, ax = plt.subplots(figsize=SIZE)
    for name, color in (("all pairs", ORANGE), ("near-linear", BLUE)):
        ax.plot(numbers["size"], numbers[name], color=color, marker="o", label=name)
    ax.set(xscale="log", yscale="log", xlabel="rows", ylabel="forward + backward, ms")
    ax.set_xticks(numbers["size"].tolist(), [f"{int(size):,}" for size in numbers["size"].tolist()], rotation=30)
    ax.minorticks_off()
    ax.legend(fontsize=10)
    return figure


def label_noise(numbers: Numbers) -> Figure:
    """Share of the gradient over the score of the wrong label."""
    figure, ax = plt.subplots(figsize=SIZE)
    for name, color in zip((key for key in numbers if key != "position"), (GREY, ORANGE, BLUE), strict=True):
        ax.plot(numbers["position"], 100 * numbers[name], color=color, label=name)
    ax.set(xlabel="score of the wrong label", ylabel="its share of the gradient, %")
    ax.set_ylim(bottom=0)
    ax.legend(fontsize=10)
    return figure


DRAWN: dict[str, Callable[[Numbers], Figure]] = {
    function.__name__: function
    for function in (
        *(where_losses_push, smooth_ap_steps, rows_with_gradient, threshold_drift, batch_bias, staleness),
        *(subsampling, exponential_terms, rank_accuracy, rank_times, label_noise),
    )
}

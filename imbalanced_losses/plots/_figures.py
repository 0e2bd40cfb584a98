"""Figures of a schedule and of scores."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses.label_values import check_target_values
from imbalanced_losses.metrics import average_precision
from imbalanced_losses.schedule import PHASES, Preview
from imbalanced_losses.settings import check_ignore_index, check_number
from imbalanced_losses.validation import check_floating, check_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["binary_rows", "check_or_make_axes", "plot_precision_recall", "plot_schedule", "plot_scores"]

# of Okabe and Ito, which people with any colour vision tell apart
BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
COLORS = (BLUE, ORANGE, GREEN, PURPLE, SKY, AMBER)
SHADES = ("0.82", "0.9", "0.97")

N_BINS = 60
LOWEST = 0.6  # rows: a logarithmic axis starts below 1, so that a bin with one row shows

CURVE, CHANCE = "precision_recall", "chance"  # ids of lines


def plot_schedule(preview: Preview, *, ax: Axes | None = None) -> Axes:
    """Draw the main loss's weight and temperature over the steps, with the phases shaded and named.

    Parameters
    ----------
    preview : Preview
        From :func:`imbalanced_losses.schedule.preview`.
    ax : matplotlib.axes.Axes, optional
        A new figure's if left out.

    Returns
    -------
    matplotlib.axes.Axes
        With the weight; the temperature is on a twin of it, with a logarithmic axis.

    Raises
    ------
    TypeError, ValueError
        If ``preview`` is no preview or has no steps, or ``ax`` no Axes.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> from imbalanced_losses.schedule import ScheduleConfig, preview
    >>> cfg = ScheduleConfig(warmup_steps=20, blend_steps=10, temp_decay_steps=50)
    >>> ax = plot_schedule(preview(cfg, steps=100))
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('step', 'weight of the main loss')
    """
    if not isinstance(preview, Preview):
        raise TypeError(f"expected preview to be a schedule.Preview, got {type(preview).__name__}")
    if len(preview.step) == 0:
        raise ValueError("expected a preview of at least one step, got none")
    ax = check_or_make_axes(ax)
    _shade_phases(ax, preview.step, preview.phase)
    ax.plot(preview.step.tolist(), preview.main_weight.tolist(), color=BLUE, drawstyle="steps-post")
    ax.set(xlabel="step", ylim=_with_room(0, 1), yticks=(0, 0.25, 0.5, 0.75, 1))
    ax.set_ylabel("weight of the main loss", color=BLUE)
    _draw_temperature(ax, preview.step, preview.temperature)
    ax.legend(loc="upper center", ncols=len(PHASES))
    return ax


def plot_scores(
    scores: Tensor,
    targets: Tensor,
    *,
    threshold: float | Tensor | None = None,
    band: tuple[float | Tensor, float | Tensor] | None = None,
    ignore_index: int = -100,
    ax: Axes | None = None,
) -> Axes:
    """Draw how positives and negatives score, and where the alert threshold or the pAUC band lies among them.

    Both histograms count rows in the same bins on a logarithmic axis: a bin with a single positive shows beside one
    with a thousand negatives, and so does the thin tail of negatives that a threshold is about. A density would show
    neither how few positives there are nor how many of the rows above the threshold are negatives.

    Parameters
    ----------
    scores : Tensor [N] or [N, 1], any floating dtype
        Logits or probabilities. Binary: take one column of several.
    targets : Tensor [N] or [N, 1]
        Labels in {0, 1}.
    threshold : float or Tensor with one element, optional
        Rows that score at least this are alerts.
    band : (low, high), each a float or a Tensor with one element, optional
        The scores ``(t_beta, t_alpha)`` between which the partial AUC looks.
    ignore_index : int
        Rows with this target take no part.
    ax : matplotlib.axes.Axes, optional
        A new figure's if left out.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    TypeError, ValueError
        If a shape, dtype or device does not fit, a label is neither 0 nor 1, a score, ``threshold`` or end of ``band``
        is not finite, ``band`` is not in order, no row is left, or ``ax`` is no Axes. Nothing has been drawn then.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> targets = (torch.rand(10_000) < 0.01).long()
    >>> scores = torch.randn(10_000) + 3 * targets
    >>> ax = plot_scores(scores, targets, threshold=scores.quantile(0.995))
    >>> ax.get_ylabel()
    'rows per bin (log scale)'
    """
    scores, labels, _ = binary_rows(scores, targets, ignore_index)
    threshold = None if threshold is None else _finite_number("threshold", threshold)
    band = None if band is None else _interval("band", band)
    ax = check_or_make_axes(ax)
    highest = _draw_histograms(ax, {"negative": scores[~labels], "positive": scores[labels]})
    if band is not None:
        ax.axvspan(*band, color=AMBER, alpha=0.3, linewidth=0, zorder=0, label="pAUC band")
    if threshold is not None:
        ax.axvline(threshold, color="black", linestyle="--", label=f"threshold {threshold:.3g}")
    ax.set_yscale("log")
    # from below a single row, so that its bar shows, to a free strip for the legend above the highest bar
    ax.set(xlabel="score", ylabel="rows per bin (log scale)", ylim=(LOWEST, LOWEST * (highest / LOWEST) ** 1.35))
    ax.legend(loc="upper center", ncols=2, framealpha=1)
    return ax


def plot_precision_recall(
    scores: Tensor, targets: Tensor, *, label: str | None = None, ignore_index: int = -100, ax: Axes | None = None
) -> Axes:
    """Draw a precision-recall curve; call it again with its Axes to compare models, or a model before and after.

    The step-wise curve of scikit-learn's ``precision_recall_curve(drop_intermediate=True)``. The area under it is the
    average precision, which the legend shows.

    Parameters
    ----------
    scores : Tensor [N] or [N, 1], any floating dtype
        Logits or probabilities: only their order counts. Binary: take one column of several.
    targets : Tensor [N] or [N, 1]
        Labels in {0, 1}.
    label : str, optional
        Names the curve in the legend.
    ignore_index : int
        Rows with this target take no part.
    ax : matplotlib.axes.Axes, optional
        A new figure's if left out. One that has curves already gets one more, in another colour.

    Returns
    -------
    matplotlib.axes.Axes
        With the curve and the line of chance, drawn once for each share of positives.

    Raises
    ------
    TypeError, ValueError
        If a shape, dtype or device does not fit, a label is neither 0 nor 1, a score is not finite, there is no
        positive, or ``ax`` is no Axes. Nothing has been drawn then.
    ImportError
        If matplotlib is not installed.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> targets = torch.tensor([1, 0, 1, 0])
    >>> ax = plot_precision_recall(torch.tensor([0.9, 0.8, 0.4, 0.1]), targets, label="before")
    >>> ax = plot_precision_recall(torch.tensor([0.9, 0.3, 0.8, 0.1]), targets, label="after", ax=ax)
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['before, AP 0.833', 'after, AP 1.000', 'chance, AP 0.500']
    """
    scores, labels, _ = binary_rows(scores, targets, ignore_index)
    if not labels.any():
        raise ValueError(f"expected at least one positive, got none in {len(labels)} rows")
    ax = check_or_make_axes(ax)
    name = f"AP {average_precision(scores, labels).item():.3f}"
    n_curves = sum(line.get_gid() == CURVE for line in ax.lines)
    recall, precision = _precision_recall(scores, labels)
    ax.plot(
        recall.tolist(),
        precision.tolist(),
        color=COLORS[n_curves % len(COLORS)],
        drawstyle="steps-pre",  # up to each recall its own precision counts, as in the average precision
        gid=CURVE,
        label=name if label is None else f"{label}, {name}",
    )
    _draw_chance(ax, labels.double().mean().item())
    ax.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.05))
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(handles=sorted(handles, key=lambda handle: handle.get_gid() == CHANCE))
    return ax


def binary_rows(
    scores: Tensor, targets: Tensor, ignore_index: int, *, name: str = "scores"
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores [M] as float64 and labels [M] as bool of the rows that take part, on the CPU, and which do, [N]."""
    check_floating(name, scores)
    ignore_index = check_ignore_index("ignore_index", ignore_index)
    column = scores[:, None] if scores.dim() == 1 else scores
    if column.dim() != 2 or column.shape[1] != 1:
        raise ValueError(f"expected {name} of shape [N] or [N, 1], got {list(scores.shape)}")
    labels = check_targets(targets, column, multilabel=False)
    check_target_values(targets, 1, ignore_index, multilabel=False)
    kept = labels != ignore_index
    if not kept.any():
        raise ValueError(f"expected at least one row that is not ignored, got none of {len(kept)}")
    rows = column.detach()[kept, 0].cpu().double()
    if not rows.isfinite().all():
        raise ValueError(f"expected finite {name}, got {rows[~rows.isfinite()][0].item()}")
    return rows, labels[kept].cpu().bool(), kept


def _finite_number(name: str, value: float | Tensor) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise ValueError(f"expected {name} as a number or a tensor with one element, got shape {list(value.shape)}")
    number = value.item() if isinstance(value, Tensor) else value
    check_number(name, number)
    if not math.isfinite(number):
        raise ValueError(f"expected a finite {name}, got {number}")
    return number


def _interval(name: str, ends: tuple[float | Tensor, float | Tensor]) -> tuple[float, float]:
    if not isinstance(ends, tuple) or len(ends) != 2:
        raise TypeError(f"expected {name} as a tuple (low, high), got {ends!r}")
    low, high = (_finite_number(f"{name}[{i}]", end) for i, end in enumerate(ends))
    if low > high:
        raise ValueError(f"expected {name} as a tuple (low, high) with low <= high, got ({low}, {high})")
    return low, high


def check_or_make_axes(ax: Axes | None) -> Axes:
    """Return ``ax``, or the axes of a new figure if it is None."""
    try:
        import matplotlib.axes
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'imbalanced-losses[plots]'") from error
    if ax is None:
        # only here: a figure of the caller's may live without pyplot
        from matplotlib import pyplot

        return pyplot.subplots(layout="constrained")[1]
    if not isinstance(ax, matplotlib.axes.Axes):
        raise TypeError(f"expected ax to be a matplotlib Axes, got {type(ax).__name__}")
    return ax


def _shade_phases(ax: Axes, steps: Tensor, phases: Tensor) -> None:
    """A span for each phase that occurs, up to the first step of the next one."""
    for index, (name, shade) in enumerate(zip(PHASES, SHADES, strict=True)):
        inside = steps[phases == index]
        if len(inside) > 0:
            end = min(inside[-1].item() + 1, steps[-1].item())
            ax.axvspan(inside[0].item(), end, color=shade, linewidth=0, zorder=0, label=name)


def _draw_temperature(ax: Axes, steps: Tensor, temperature: Tensor) -> None:
    """On a twin of ``ax``, which stays its figure's current Axes."""
    from matplotlib.ticker import LogLocator

    current = ax.figure.gca()
    twin = ax.twinx()
    ax.figure.sca(current)
    twin.plot(steps.tolist(), temperature.tolist(), color=ORANGE, linestyle="--")
    twin.set_yscale("log")
    twin.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    twin.yaxis.set_major_formatter("{x:g}")
    twin.minorticks_off()
    low, high = temperature.log().aminmax()
    # wide enough for a tick, and a constant temperature looks constant although it is so only to rounding
    middle, half = (low + high).item() / 2, max((high - low).item(), math.log(3)) / 2
    twin.set_ylim(*map(math.exp, _with_room(middle - half, middle + half)))
    twin.set_ylabel("temperature (log scale)", color=ORANGE)


def _draw_histograms(ax: Axes, groups: dict[str, Tensor]) -> float:
    """Rows per bin of each group, in the same bins; returns the highest count."""
    _, edges = torch.histogram(torch.cat(list(groups.values())), N_BINS)
    counts = {f"{name} ({len(rows):,})": torch.histogram(rows, edges).hist for name, rows in groups.items()}
    for (label, heights), color in zip(counts.items(), COLORS, strict=False):
        ax.stairs(heights.tolist(), edges.tolist(), baseline=LOWEST, fill=True, color=color, alpha=0.55, label=label)
    return max(heights.max().item() for heights in counts.values())


def _precision_recall(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Recall and precision at each distinct score, the highest first, after the point (0, 1).

    Of scores with the same recall the first and the last are kept: the others lie on the line between them.
    """
    _, group = torch.unique(-scores, return_inverse=True)
    rows = group.bincount().cumsum(0)
    positives = group.bincount(weights=labels.double()).cumsum(0)
    outside = positives.new_tensor([-1])
    differs = positives.diff(prepend=outside, append=outside) != 0
    kept = differs[1:] | differs[:-1]
    recall, precision = positives[kept] / positives[-1], positives[kept] / rows[kept]
    return functional.pad(recall, (1, 0), value=0), functional.pad(precision, (1, 0), value=1)


def _draw_chance(ax: Axes, rate: float) -> None:
    label = f"chance, AP {rate:.3f}"
    if label not in [line.get_label() for line in ax.lines]:
        ax.axhline(rate, color="black", linestyle=":", linewidth=1, gid=CHANCE, label=label)


def _with_room(low: float, high: float) -> tuple[float, float]:
    """Limits of an axis with a free strip at the top, for a legend."""
    return low - 0.04 * (high - low), high + 0.16 * (high - low)

"""The reliability diagram: points and error are NumPy's and scikit-learn's, and nothing is drawn of what is wrong."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.calibration import calibration_curve
from torch import Tensor

from imbalanced_losses.plots import plot_reliability

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _no_figures() -> Iterator[None]:
    plt.close("all")  # doctests leave some
    yield
    plt.close("all")


def rows(n: int = 1000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Probabilities without ties that are too high, and labels."""
    generator = torch.Generator().manual_seed(seed)
    p = torch.rand(n, generator=generator, dtype=torch.float64)
    return p, (torch.rand(n, generator=generator) < p**2).long()


def curves_of(ax: Axes) -> list[Line2D]:
    return [line for line in ax.lines if line.get_marker() == "o"]


def points_of(ax: Axes) -> list[list[float]]:
    (line,) = curves_of(ax)
    return [list(data) for data in line.get_data()]


def legend_of(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def reference(p: list[float], y: list[int], w: list[float], n_bins: int) -> tuple[list[float], list[float], float]:
    """Bins between weighted quantiles, row by row. A row lies in the first bin whose upper edge it does not exceed."""
    counted = [row for row in sorted(zip(p, y, w, strict=True)) if row[2] > 0]
    total = sum(weight for _, _, weight in counted)
    edges = []
    for k in range(1, n_bins):
        upto = 0.0
        for value, _, weight in counted:
            upto += weight
            if upto >= k * total / n_bins:
                edges.append(value)
                break
    bins: list[list[tuple[float, int, float]]] = [[] for _ in range(n_bins)]
    for row in counted:
        bins[next((i for i, edge in enumerate(edges) if row[0] <= edge), n_bins - 1)].append(row)
    predicted, observed, error = [], [], 0.0
    for members in filter(None, bins):
        weight = sum(w for _, _, w in members)
        predicted.append(sum(w * value for value, _, w in members) / weight)
        observed.append(sum(w * label for _, label, w in members) / weight)
        error += weight / total * abs(observed[-1] - predicted[-1])
    return predicted, observed, error


@pytest.mark.parametrize("n_bins", [1, 5, 10, 20])
def test_points_are_scikit_learns(n_bins: int) -> None:
    p, y = rows()
    observed, predicted = calibration_curve(y.numpy(), p.numpy(), n_bins=n_bins, strategy="quantile")
    ax = plot_reliability(p, y, n_bins=n_bins)
    assert points_of(ax) == [pytest.approx(predicted.tolist()), pytest.approx(observed.tolist())]
    error = np.abs(observed - predicted).mean()  # bins of the same size
    assert legend_of(ax) == [f"ECE {error:.3f}", "calibrated"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted probability", "observed share of positives")


@given(
    data=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=25).filter(
        lambda data: any(weight for *_, weight in data)
    ),
    n_bins=st.integers(1, 7),
)
def test_ties_and_weights(data: list[tuple[int, int, int]], n_bins: int) -> None:
    p, y, w = ([row[i] for row in data] for i in range(3))
    p = [value / 8 for value in p]
    expected = reference(p, y, w, n_bins)
    plt.close("all")
    ax = plot_reliability(torch.tensor(p), torch.tensor(y), n_bins=n_bins, sample_weight=torch.tensor(w))
    assert points_of(ax) == [pytest.approx(expected[0]), pytest.approx(expected[1])]
    assert float(legend_of(ax)[0].removeprefix("ECE ")) == pytest.approx(expected[2], abs=0.00051)


def test_integer_weights_are_repetitions() -> None:
    p, y = rows(300)
    repeats = torch.randint(0, 4, (300,))
    repeated = points_of(plot_reliability(p.repeat_interleave(repeats), y.repeat_interleave(repeats)))
    for weights in (repeats, repeats[:, None].double()):
        assert points_of(plot_reliability(p, y, sample_weight=weights)) == [pytest.approx(data) for data in repeated]


def test_before_and_after_on_one_axes_with_one_diagonal() -> None:
    p, y = rows()
    ax = plot_reliability(p, y, label="before")
    assert plot_reliability(p**2, y, label="after", ax=ax) is ax
    assert plt.get_fignums() == [1]
    assert [entry.split(",")[0] for entry in legend_of(ax)] == ["before", "after", "calibrated"]
    before, after = (float(entry.split("ECE ")[1]) for entry in legend_of(ax)[:2])
    assert after < 0.05 < 0.15 < before
    first, second = curves_of(ax)
    assert not same_color(first.get_color(), second.get_color())
    (diagonal,) = [line for line in ax.lines if line.get_label() == "calibrated"]
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata())
    assert (diagonal.get_xdata()[0], diagonal.get_xdata()[-1]) == (0, 1)  # type: ignore[index]


def test_limits_that_were_set_stay_for_the_next_curve() -> None:
    p, y = rows()
    ax = plot_reliability(p, y)
    ax.set(xlim=(0, 0.1))
    plot_reliability(p, y, ax=ax)
    assert ax.get_xlim() == (0, 0.1)


def test_logarithmic_axes() -> None:
    ax = plot_reliability(*rows())
    ax.loglog()
    ax.figure.canvas.draw()
    assert len(ax.lines[1].get_xdata()) == 3  # type: ignore[arg-type] # without the middle point there is no diagonal


def test_inputs_stay_as_they_are_and_ignored_rows_take_no_part() -> None:
    p, y = rows()
    expected = points_of(plot_reliability(p, y))
    for ignore_index in (-100, 7):
        probabilities = torch.cat([torch.tensor([math.nan, 5.0]), p]).requires_grad_()
        targets = torch.cat([torch.tensor([ignore_index] * 2), y])
        weights = torch.ones(len(targets))
        before = probabilities.detach().clone(), targets.clone()
        ax = plot_reliability(probabilities, targets, ignore_index=ignore_index, sample_weight=weights)
        assert points_of(ax) == expected
        torch.testing.assert_close((probabilities.detach(), targets), before, equal_nan=True, rtol=0, atol=0)
        assert probabilities.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target_dtype", [torch.bool, torch.float32, torch.uint8])
def test_any_dtype_and_columns(dtype: torch.dtype, target_dtype: torch.dtype) -> None:
    p, y = rows()
    p = p.mul(64).round() / 64
    expected = points_of(plot_reliability(p, y))
    with torch.device("meta"):  # a default device is none of its business
        assert points_of(plot_reliability(p.to(dtype)[:, None], y.to(target_dtype)[:, None])) == expected


@pytest.mark.parametrize(
    ("p", "y", "options", "error", "message"),
    [
        ([0.5], torch.ones(1), {}, TypeError, "expected probabilities to be a Tensor, got list"),
        (torch.zeros(3).long(), torch.ones(3), {}, TypeError, "expected floating-point probabilities, got torch.int64"),
        (torch.zeros(3, 2), torch.ones(3), {}, ValueError, r"expected probabilities of shape \[N\] or \[N, 1\]"),
        (torch.zeros(3), torch.ones(2), {}, ValueError, r"expected targets of shape \[3\], got \[2\]"),
        (torch.zeros(2), torch.tensor([0, 2]), {}, ValueError, r"expected labels in \{0, 1\} or .*, got 2"),
        (torch.tensor([0, math.nan]), torch.ones(2), {}, ValueError, "expected finite probabilities, got nan"),
        (torch.tensor([0.5, 1.5]), torch.ones(2), {}, ValueError, r"got 1.5: for logits pass logits.sigmoid\(\)"),
        (torch.tensor([-0.5, 1]), torch.ones(2), {}, ValueError, r"expected probabilities in \[0, 1\], got -0.5"),
        (torch.zeros(0), torch.zeros(0), {}, ValueError, "expected at least one row .*, got none of 0"),
        (torch.zeros(2), torch.ones(2), {"n_bins": 0}, ValueError, "expected n_bins to be at least 1, got 0"),
        (torch.zeros(2), torch.ones(2), {"n_bins": 2.5}, TypeError, "expected n_bins to be an int"),
        (
            torch.zeros(2),
            torch.ones(2),
            {"sample_weight": torch.zeros(2)},
            ValueError,
            "expected at least one row of a weight above 0, got none of 2",
        ),
        (
            torch.zeros(2),
            torch.ones(2),
            {"sample_weight": torch.tensor([1.0, -1.0])},
            ValueError,
            "expected finite sample_weight >= 0, got -1.0",
        ),
        (
            torch.zeros(2),
            torch.ones(2),
            {"sample_weight": torch.ones(3)},
            ValueError,
            r"expected sample_weight of shape \[2\], got \[3\]",
        ),
    ],
)
def test_refuses_bad_rows_before_anything_is_drawn(
    p: Any, y: Tensor, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    ax = Figure().add_subplot()
    for axes in (None, ax):
        with pytest.raises(error, match=message):
            plot_reliability(p, y, ax=axes, **options)
    assert plt.get_fignums() == []
    assert not ax.has_data()

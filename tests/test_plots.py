"""Plots: what is drawn equals what was given, on the Axes that was given, and nothing is drawn of what is wrong."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

from imbalanced_losses import PAUCAtBudgetLoss, RecallAtQuantileLoss, metrics
from imbalanced_losses.plots import plot_precision_recall, plot_reliability, plot_schedule, plot_scores
from imbalanced_losses.schedule import Preview, ScheduleConfig, preview

mpl.use("Agg")

EPOCHWISE = ScheduleConfig(warmup_epochs=2, blend_epochs=3, temp_start=2.0, temp_end=0.5, temp_decay_steps=30)
SCHEDULE = preview(EPOCHWISE, 100, steps_per_epoch=10)


@pytest.fixture(autouse=True)
def _no_figures() -> Iterator[None]:
    plt.close("all")  # doctests leave some
    yield
    plt.close("all")


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    """Scores with ties, 2 % positives."""
    targets = (torch.arange(1000) % 50 == 0).long()
    return (torch.randn(1000) + 2 * targets).mul(4).round() / 4, targets


PLOTS: list[Callable[..., Axes]] = [
    lambda ax=None: plot_schedule(SCHEDULE, ax=ax),
    lambda ax=None: plot_scores(torch.randn(20), torch.arange(20) % 2, threshold=0.5, band=(0.0, 1.0), ax=ax),
    lambda ax=None: plot_precision_recall(torch.randn(20), torch.arange(20) % 2, ax=ax),
    lambda ax=None: plot_reliability(torch.rand(20), torch.arange(20) % 2, ax=ax),
]


def legend_of(ax: Axes) -> list[str]:
    legend = ax.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def line_of(ax: Axes, label: str) -> Line2D:
    (line,) = [line for line in ax.lines if str(line.get_label()).startswith(label)]
    return line


def data_of(line: Line2D) -> list[list[float]]:
    return [list(data) for data in line.get_data()]


def patch_of(ax: Axes, label: str) -> Patch:
    (patch,) = [patch for patch in ax.patches if str(patch.get_label()).startswith(label)]
    return patch


def span_of(ax: Axes, label: str) -> tuple[float, float]:
    patch = patch_of(ax, label)
    assert isinstance(patch, Rectangle)
    return patch.get_x(), patch.get_x() + patch.get_width()


def twin_of(ax: Axes) -> Axes:
    (twin,) = [other for other in ax.figure.axes if other is not ax]
    return twin


@pytest.mark.parametrize("plot", PLOTS)
def test_draws_on_the_axes_that_it_is_given(plot: Callable[..., Axes]) -> None:
    _, (left, right) = plt.subplots(1, 2)
    plt.sca(right)
    before = plt.get_fignums(), dict(mpl.rcParams)
    assert plot(ax=left) is left
    assert (plt.get_fignums(), dict(mpl.rcParams)) == before
    assert plt.gca() is right
    assert left.lines
    assert not right.lines
    assert left.get_title() == ""


@pytest.mark.parametrize("plot", PLOTS)
def test_makes_one_figure_if_no_axes_is_given(plot: Callable[..., Axes]) -> None:
    ax = plot()
    assert plt.get_fignums() == [1]
    assert ax.figure is plt.figure(1)
    assert plt.gca() is ax


@pytest.mark.parametrize("plot", PLOTS)
def test_draws_without_pyplot(plot: Callable[..., Axes]) -> None:
    figure = Figure()
    plot(ax=figure.add_subplot())
    figure.canvas.draw()
    assert plt.get_fignums() == []


@pytest.mark.parametrize("plot", PLOTS)
def test_refuses_what_is_no_axes(plot: Callable[..., Axes]) -> None:
    with pytest.raises(TypeError, match="expected ax to be a matplotlib Axes, got tuple"):
        plot(ax=plt.subplots())


@pytest.mark.parametrize("plot", PLOTS)
def test_says_how_to_get_matplotlib(plot: Callable[..., Axes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    with pytest.raises(ImportError, match=r"pip install 'imbalanced-losses\[plots\]'"):
        plot()


def test_importing_the_package_does_not_import_matplotlib() -> None:
    script = "import sys, imbalanced_losses.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


class TestSchedule:
    def test_lines_are_the_preview(self) -> None:
        ax = plot_schedule(SCHEDULE)
        (weight,), (temperature,) = ax.lines, twin_of(ax).lines
        assert data_of(weight) == [SCHEDULE.step.tolist(), SCHEDULE.main_weight.tolist()]
        assert data_of(temperature) == [SCHEDULE.step.tolist(), SCHEDULE.temperature.tolist()]
        assert twin_of(ax).get_yscale() == "log"

    def test_phases_are_named_and_shaded_where_they_are(self) -> None:
        ax = plot_schedule(SCHEDULE)
        assert legend_of(ax) == ["warmup", "blend", "main"]
        assert [span_of(ax, phase) for phase in legend_of(ax)] == [(0, 20), (20, 50), (50, 99)]

    def test_phases_that_do_not_occur_are_not_named(self) -> None:
        assert legend_of(plot_schedule(preview(ScheduleConfig(), 5))) == ["main"]
        assert legend_of(plot_schedule(preview(ScheduleConfig(warmup_steps=9), 5))) == ["warmup"]

    def test_axes_are_labelled_in_the_colour_of_their_line(self) -> None:
        ax = plot_schedule(SCHEDULE)
        assert ax.get_xlabel() == "step"
        for axes, label in ((ax, "weight of the main loss"), (twin_of(ax), "temperature (log scale)")):
            assert axes.get_ylabel() == label
            assert same_color(axes.yaxis.label.get_color(), axes.lines[0].get_color())

    @pytest.mark.parametrize("ends", [(0.1, 0.1), (0.1, 0.09), (1e-4, 1e3)])
    def test_temperature_stays_below_the_legend_and_its_axis_has_a_tick(self, ends: tuple[float, float]) -> None:
        cfg = ScheduleConfig(temp_start=ends[0], temp_end=ends[1], temp_decay_steps=50)
        twin = twin_of(plot_schedule(preview(cfg, 60)))
        low, high = twin.get_ylim()
        assert low < min(ends) <= max(ends) < high
        assert [tick for tick in twin.get_yticks() if low <= tick <= high]

    def test_a_single_step(self) -> None:
        plot_schedule(preview(ScheduleConfig(), 1)).figure.canvas.draw()

    @pytest.mark.parametrize(
        ("wrong", "error", "message"),
        [
            (EPOCHWISE, TypeError, r"expected preview to be a schedule\.Preview, got ScheduleConfig"),
            (Preview(*[torch.zeros(0)] * 5), ValueError, "expected a preview of at least one step, got none"),
        ],
    )
    def test_refuses_what_is_no_preview(self, wrong: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            plot_schedule(wrong)
        assert plt.get_fignums() == []


class TestScores:
    def test_bars_count_the_rows_of_each_class_in_the_same_bins(self, rows: tuple[Tensor, Tensor]) -> None:
        scores, targets = rows
        ax = plot_scores(scores, targets)
        _, edges = torch.histogram(scores.double(), 60)
        for label, name in ((0, "negative"), (1, "positive")):
            counts, _ = torch.histogram(scores[targets == label].double(), edges)
            heights, drawn_edges, _ = patch_of(ax, name).get_data()  # type: ignore[attr-defined]
            assert heights.tolist() == counts.tolist()
            assert drawn_edges.tolist() == edges.tolist()
        assert legend_of(ax) == ["negative (980)", "positive (20)"]

    def test_a_single_row_shows_and_the_legend_has_a_strip_of_its_own(self, rows: tuple[Tensor, Tensor]) -> None:
        ax = plot_scores(*rows)
        ax.figure.canvas.draw()
        assert ax.get_yscale() == "log"
        assert ax.get_ylim()[0] < 1
        legend = ax.get_legend()
        assert legend is not None
        bottom = ax.transData.inverted().transform(legend.get_window_extent())[0, 1]
        assert bottom > max(patch.get_data().values.max() for patch in ax.patches)  # type: ignore[attr-defined]

    @pytest.mark.parametrize(
        "as_given", [float, torch.tensor, lambda value: torch.tensor([value], dtype=torch.float64)]
    )
    def test_threshold_and_band_are_where_they_should_be(
        self, rows: tuple[Tensor, Tensor], as_given: Callable[[float], float | Tensor]
    ) -> None:
        ax = plot_scores(*rows, threshold=as_given(1.75), band=(as_given(0.5), as_given(2.5)))
        assert data_of(line_of(ax, "threshold"))[0] == [1.75, 1.75]
        assert span_of(ax, "pAUC band") == (0.5, 2.5)
        assert legend_of(ax) == ["negative (980)", "positive (20)", "pAUC band", "threshold 1.75"]

    def test_takes_what_the_losses_diagnostics_give(self, rows: tuple[Tensor, Tensor]) -> None:
        recall, pauc = RecallAtQuantileLoss(num_classes=1, quantile=0.1), PAUCAtBudgetLoss(num_classes=1, beta=0.1)
        for loss_fn in (recall, pauc):
            loss_fn(*rows)
        threshold, told = recall.diagnostics()["threshold"], pauc.diagnostics()
        ax = plot_scores(*rows, threshold=threshold, band=(told["t_beta"], told["t_alpha"]))
        assert data_of(line_of(ax, "threshold"))[0] == [threshold.item()] * 2
        assert span_of(ax, "pAUC band") == pytest.approx((told["t_beta"].item(), told["t_alpha"].item()))

    @pytest.mark.parametrize("label", [0, 1])
    def test_a_class_without_rows_has_no_bars(self, label: int) -> None:
        ax = plot_scores(torch.ones(3), torch.full((3,), label))
        ax.figure.canvas.draw()
        assert legend_of(ax) == [f"negative ({3 * (1 - label)})", f"positive ({3 * label})"]

    @pytest.mark.parametrize(
        ("marks", "error", "message"),
        [
            ({"threshold": torch.zeros(2)}, ValueError, r"expected threshold as a number or .*, got shape \[2\]"),
            ({"threshold": "high"}, TypeError, "expected threshold to be a number, got 'high'"),
            ({"threshold": torch.tensor(torch.nan)}, ValueError, "expected a finite threshold, got nan"),
            ({"band": (1.0, torch.inf)}, ValueError, r"expected a finite band\[1\], got inf"),
            ({"band": (1.0,)}, TypeError, r"expected band as a tuple \(low, high\), got \(1.0,\)"),
            ({"band": 1.0}, TypeError, r"expected band as a tuple \(low, high\), got 1.0"),
            ({"band": (2.0, 1.0)}, ValueError, r"with low <= high, got \(2.0, 1.0\)"),
        ],
    )
    def test_refuses_what_is_no_threshold_or_band(
        self, rows: tuple[Tensor, Tensor], marks: dict[str, Any], error: type[Exception], message: str
    ) -> None:
        ax = Figure().add_subplot()
        with pytest.raises(error, match=message):
            plot_scores(*rows, **marks, ax=ax)
        assert not ax.has_data()


class TestPrecisionRecall:
    @pytest.mark.parametrize("n", [1, 7, 1000])
    def test_curve_is_scikit_learns(self, rows: tuple[Tensor, Tensor], n: int) -> None:
        scores, targets = rows[0][:n], rows[1][:n]
        curve = line_of(plot_precision_recall(scores, targets), "AP")
        precision, recall, _ = precision_recall_curve(targets, scores, drop_intermediate=True)
        assert data_of(curve) == [pytest.approx(recall[::-1]), pytest.approx(precision[::-1])]

    def test_area_under_the_steps_is_the_average_precision_in_the_legend(self, rows: tuple[Tensor, Tensor]) -> None:
        ax = plot_precision_recall(*rows, label="BCE")
        expected = metrics.average_precision(*rows).item()
        assert legend_of(ax)[0] == f"BCE, AP {expected:.3f}"
        assert expected == pytest.approx(average_precision_score(*reversed(rows)))
        curve = line_of(ax, "BCE")
        recall, precision = map(torch.tensor, data_of(curve))
        assert curve.get_drawstyle() == "steps-pre"
        assert (recall.diff() * precision[1:]).sum().item() == pytest.approx(expected)

    def test_before_and_after_on_one_axes_with_chance_once(self, rows: tuple[Tensor, Tensor]) -> None:
        scores, targets = rows
        ax = plot_precision_recall(scores, targets, label="before")
        assert plot_precision_recall(scores + targets, targets, label="after", ax=ax) is ax
        assert plt.get_fignums() == [1]
        assert [entry.split(",")[0] for entry in legend_of(ax)] == ["before", "after", "chance"]
        assert not same_color(line_of(ax, "before").get_color(), line_of(ax, "after").get_color())
        assert data_of(line_of(ax, "chance"))[1] == [0.02, 0.02]

    def test_another_share_of_positives_has_another_chance(self, rows: tuple[Tensor, Tensor]) -> None:
        ax = plot_precision_recall(*rows)
        plot_precision_recall(rows[0][:100], rows[1][:100].clone().index_fill(0, torch.arange(5), 1), ax=ax)
        assert legend_of(ax)[2:] == ["chance, AP 0.020", "chance, AP 0.060"]

    def test_what_else_is_on_the_axes_keeps_its_place_in_the_legend(self, rows: tuple[Tensor, Tensor]) -> None:
        _, ax = plt.subplots()
        ax.plot([0, 1], [1, 0], label="target")
        plot_precision_recall(*rows, label="model", ax=ax)
        assert [entry.split(",")[0] for entry in legend_of(ax)] == ["target", "model", "chance"]

    def test_refuses_rows_without_positives(self) -> None:
        with pytest.raises(ValueError, match="expected at least one positive, got none in 3 rows"):
            plot_precision_recall(torch.randn(3), torch.zeros(3).long())
        assert plt.get_fignums() == []


@pytest.mark.parametrize("plot", [plot_scores, plot_precision_recall])
class TestRows:
    def test_inputs_stay_as_they_are(self, plot: Callable[..., Axes], rows: tuple[Tensor, Tensor]) -> None:
        scores, targets = rows[0].requires_grad_(), rows[1]
        before = scores.clone(), targets.clone()
        plot(scores, targets)
        assert torch.equal(scores, before[0])
        assert torch.equal(targets, before[1])
        assert scores.grad is None

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("target_dtype", [torch.bool, torch.float32, torch.uint8])
    def test_any_dtype_and_columns(
        self, plot: Callable[..., Axes], rows: tuple[Tensor, Tensor], dtype: torch.dtype, target_dtype: torch.dtype
    ) -> None:
        expected = drawing(plot(*rows))
        assert drawing(plot(rows[0].to(dtype)[:, None], rows[1].to(target_dtype)[:, None])) == expected

    def test_a_default_device_is_none_of_its_business(
        self, plot: Callable[..., Axes], rows: tuple[Tensor, Tensor]
    ) -> None:
        expected = drawing(plot(*rows))
        with torch.device("meta"):
            assert drawing(plot(*rows)) == expected

    def test_ignored_rows_take_no_part(self, plot: Callable[..., Axes], rows: tuple[Tensor, Tensor]) -> None:
        expected = drawing(plot(*rows))
        scores = torch.cat([torch.tensor([torch.nan, 1e6]), rows[0]])
        for ignore_index in (-100, 7):
            targets = torch.cat([torch.tensor([ignore_index] * 2), rows[1]])
            assert drawing(plot(scores, targets, ignore_index=ignore_index)) == expected

    @pytest.mark.parametrize(
        ("scores", "targets", "error", "message"),
        [
            ([0.5], torch.tensor([1]), TypeError, "expected scores to be a Tensor, got list"),
            (torch.zeros(3).long(), torch.ones(3), TypeError, "expected floating-point scores, got torch.int64"),
            (torch.zeros(3, 2), torch.ones(3), ValueError, r"expected scores of shape \[N\] or \[N, 1\], got \[3, 2\]"),
            (torch.tensor(0.5), torch.ones(1), ValueError, r"expected scores of shape \[N\] or \[N, 1\], got \[\]"),
            (torch.zeros(3), torch.ones(2), ValueError, r"expected targets of shape \[3\], got \[2\]"),
            (torch.zeros(3), torch.tensor([0, 1, 2]), ValueError, r"expected labels in \{0, 1\} or .*, got 2"),
            (torch.zeros(2), torch.tensor([0.5, 1]), ValueError, r"expected labels in \{0, 1\} or .*, got 0.5"),
            (torch.tensor([0, torch.inf]), torch.ones(2), ValueError, "expected finite scores, got inf"),
            (torch.zeros(0), torch.zeros(0), ValueError, "expected at least one row .*, got none of 0"),
            (torch.zeros(2), torch.tensor([-100, -100]), ValueError, "expected at least one row .*, got none of 2"),
        ],
    )
    def test_refuses_bad_rows_before_anything_is_drawn(
        self, plot: Callable[..., Axes], scores: Any, targets: Tensor, error: type[Exception], message: str
    ) -> None:
        ax = Figure().add_subplot()
        for axes in (None, ax):
            with pytest.raises(error, match=message):
                plot(scores, targets, ax=axes)
        assert plt.get_fignums() == []
        assert not ax.has_data()


def drawing(ax: Axes) -> list[Any]:
    """All numbers and texts on the Axes."""
    bars = [[data.tolist() for data in patch.get_data()[:2]] for patch in ax.patches]  # type: ignore[attr-defined]
    return [[data_of(line) for line in ax.lines], bars, legend_of(ax)]

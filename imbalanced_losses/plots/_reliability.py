"""The reliability diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.label_values import check_weight_values
from imbalanced_losses.plots._figures import COLORS, binary_rows, check_or_make_axes
from imbalanced_losses.settings import check_integer
from imbalanced_losses.validation import check_row_weights

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["plot_reliability"]

CURVE, DIAGONAL = "reliability", "calibrated"  # ids of lines
STRAIGHT = (0, 1e-9, 1)  # points of the diagonal: a straight line on linear and on logarithmic axes


class _Bins(NamedTuple):
    """Of B bins of rows: mean probability, share of positives and share of the weight, ``[B]``."""

    predicted: Tensor
    observed: Tensor
    share: Tensor

    @property
    def calibration_error(self) -> float:
        return float((self.share * (self.observed - self.predicted).abs()).sum())


def plot_reliability(
    probabilities: Tensor,
    targets: Tensor,
    *,
    n_bins: int = 10,
    label: str | None = None,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
    ax: Axes | None = None,
) -> Axes:
    r"""Draw a reliability diagram: how often a row is positive, by its predicted probability.

    Call it again with its Axes to compare models, or a model before and after calibration. Rows are put into bins of
    about equal weight by the quantiles of their probabilities. A point is the mean probability of a bin and its share
    of positives; if the probabilities are calibrated, it is near the diagonal. The legend has the expected calibration
    error (ECE), :math:`\sum_b \frac{W_b}{W} |\mathrm{observed}_b - \mathrm{predicted}_b|`.

    Parameters
    ----------
    probabilities : Tensor [N] or [N, 1], any floating dtype
        In [0, 1]: ``logits.sigmoid()``. Binary: take one column of several.
    targets : Tensor [N] or [N, 1]
        Labels in {0, 1}.
    n_bins : int
        At least 1. There are fewer if rows are tied, which stay together, or if there are few rows.
    label : str, optional
        Names the curve in the legend.
    ignore_index : int
        Rows with this target take no part.
    sample_weight : Tensor [N] or [N, 1], optional
        Non-negative, finite: for how many rows each stands.
    ax : matplotlib.axes.Axes, optional
        A new figure's if left out. One that has curves already gets one more, in another colour. With few positives all
        points are near 0: logarithmic axes, ``ax.loglog()``, pull them apart, but leave out bins without positives.

    Returns
    -------
    matplotlib.axes.Axes
        With the curve and, once, the diagonal.

    Raises
    ------
    TypeError, ValueError
        If a shape, dtype or device does not fit, a label is neither 0 nor 1, a probability is not in [0, 1], no row is
        left, or ``ax`` is no Axes. Nothing has been drawn then.
    ImportError
        If matplotlib is not installed.

    References
    ----------
    Naeini, Cooper, Hauskrecht. Obtaining Well Calibrated Probabilities Using Bayesian Binning. AAAI 2015: the error.
    Nixon, Dusenberry, Jerfel, Nguyen, Liu, Zhang, Tran. Measuring Calibration in Deep Learning. CVPR workshops 2019:
    bins of equal weight.

    Examples
    --------
    >>> import matplotlib
    >>> matplotlib.use("Agg")
    >>> targets = torch.tensor([1, 0, 1, 0])
    >>> ax = plot_reliability(torch.tensor([0.9, 0.3, 0.6, 0.2]), targets, n_bins=2, label="model")
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['model, ECE 0.250', 'calibrated']
    """
    n_bins = check_integer("n_bins", n_bins, minimum=1)
    p, labels, kept = binary_rows(probabilities, targets, ignore_index, name="probabilities")
    if p.amin() < 0 or p.amax() > 1:
        wrong = p[(p < 0) | (p > 1)][0].item()
        raise ValueError(f"expected probabilities in [0, 1], got {wrong}: for logits pass logits.sigmoid()")
    bins = _bins(p, labels, _weights(sample_weight, probabilities, kept), n_bins)
    ax = check_or_make_axes(ax)
    name = f"ECE {bins.calibration_error:.3f}"
    n_curves = sum(line.get_gid() == CURVE for line in ax.lines)
    ax.plot(
        bins.predicted.tolist(),
        bins.observed.tolist(),
        color=COLORS[n_curves % len(COLORS)],
        marker="o",
        gid=CURVE,
        label=name if label is None else f"{label}, {name}",
    )
    if n_curves == 0:
        ax.plot(STRAIGHT, STRAIGHT, color="black", linestyle=":", linewidth=1, gid=DIAGONAL, label="calibrated")
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    ax.set(xlabel="predicted probability", ylabel="observed share of positives")
    handles, _ = ax.get_legend_handles_labels()
    ax.legend(handles=sorted(handles, key=lambda handle: handle.get_gid() == DIAGONAL))
    return ax


def _weights(sample_weight: Tensor | None, probabilities: Tensor, kept: Tensor) -> Tensor:
    """Weights [M] as float64 of the rows that take part, on the CPU."""
    if sample_weight is None:
        return torch.ones(int(kept.sum()), dtype=torch.float64, device="cpu")
    given = check_row_weights("sample_weight", sample_weight, probabilities.reshape(-1, 1))
    check_weight_values(given)
    weights = given[kept].cpu().double()
    if not weights.any():
        raise ValueError(f"expected at least one row of a weight above 0, got none of {len(weights)}")
    return weights


def _bins(p: Tensor, labels: Tensor, weights: Tensor, n_bins: int) -> _Bins:
    """Bins between the quantiles of ``p``: the smallest values up to which at least k / B of the weight lies."""
    ordered, order = p.sort()
    upto = weights[order].cumsum(0)
    levels = upto[-1] * torch.arange(1, n_bins, dtype=torch.float64, device="cpu") / n_bins
    edges = ordered[torch.searchsorted(upto, levels).clamp_max(len(p) - 1)]
    bin_of = torch.searchsorted(edges, p)
    total, predicted, observed = (
        torch.bincount(bin_of, weights * values, minlength=n_bins)
        for values in (torch.ones_like(p), p, labels.double())
    )
    filled = total > 0
    total = total[filled]
    return _Bins(predicted[filled] / total, observed[filled] / total, total / total.sum())

"""The threshold that meets a goal, what it reaches, and how far resampled rows move both."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from imbalanced_losses.settings import check_fields, check_integer, check_open_fraction
from imbalanced_losses.thresholds._ranking import Curves, Ranking

__all__ = ["MIN_POSITIVES", "Goal", "OperatingPoint", "Resampling", "operating_point"]

Goal = Callable[[Curves], tuple[Tensor, Tensor]]
"""Index of the best set of alerts along the last axis of the curves, and whether it meets the goal."""

MIN_POSITIVES = 20
"""Below this, even a held-out recall of 1 is compatible with a recall of 0.85 on new rows (at 95 %, by 3 / n)."""

CHUNK_ELEMENTS = 2**18  # what fits in a cache takes half the time


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OperatingPoint:
    """Thresholds, and what they reach on the rows that they were chosen on.

    Tensors are 0-dim for one column of scores, ``[C]`` for more of them or if ``multilabel``. Rates and costs are
    float64, and 0 where there is nothing to divide by.

    Attributes
    ----------
    threshold : Tensor, of the scores' dtype
        Alert if ``score >= threshold``. ``inf`` (no alerts) for a class without held-out positives.
    recall : Tensor
        Share of the positives that are alerts.
    precision : Tensor
        Share of the alerts that are positives.
    alert_rate : Tensor
        Share of the rows that are alerts.
    false_positive_rate : Tensor
        Share of the negatives that are alerts.
    cost : Tensor, optional
        Mean cost per row; of :func:`for_expected_cost` only.
    n_positive : Tensor, int64
        Held-out positives, not weighted.
    few_positives : Tensor, bool
        Whether these are fewer than 20. The threshold then rests on little evidence.
    reached : Tensor, bool
        Whether the goal is met. False for a class without positives.
    intervals : dict of str to Tensor [2] or [2, C]
        Lower and upper end by name, empty without bootstrap. Those of the rates and of ``cost`` are for this threshold
        on new rows. That of ``threshold`` is of thresholds chosen on other rows.
    """

    threshold: Tensor
    recall: Tensor
    precision: Tensor
    alert_rate: Tensor
    false_positive_rate: Tensor
    cost: Tensor | None = None
    n_positive: Tensor
    few_positives: Tensor
    reached: Tensor
    intervals: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Resampling:
    """How to bootstrap; checked."""

    n_bootstrap: int
    confidence: float
    generator: torch.Generator | None

    def __post_init__(self) -> None:
        check_fields(self, n_bootstrap=_check_count, confidence=_check_confidence)


def _check_count(name: str, value: object) -> int:
    return check_integer(name, value, minimum=0)


def _check_confidence(name: str, value: object) -> float:
    return check_open_fraction(name, value, "0.95 leaves out 2.5 % at either end")


def operating_point(ranking: Ranking, goal: Goal, resampling: Resampling) -> OperatingPoint:
    """Choose, measure and bootstrap."""
    curves = ranking.curves()
    index, reached = _choose(goal, curves)
    at = index[:, None]
    n_positive = (ranking.positive_weight > 0).sum(-1)
    values = {
        "threshold": ranking.thresholds.gather(-1, at)[:, 0],
        **{name: rate[:, 0] for name, rate in curves.rates_at(at).items()},
        "n_positive": n_positive,
        "few_positives": n_positive < MIN_POSITIVES,
        "reached": reached,
    }
    intervals = _intervals(ranking, curves, goal, index, resampling) if resampling.n_bootstrap else {}
    if ranking.is_column:
        values, intervals = ({name: value[..., 0] for name, value in d.items()} for d in (values, intervals))
    return OperatingPoint(**values, intervals=intervals)


def _choose(goal: Goal, curves: Curves) -> tuple[Tensor, Tensor]:
    """As the goal says, but no alerts for a class without positives: nothing shows what its scores are worth."""
    index, reached = goal(curves)
    has_positives = curves.true_positives[..., -1] > 0
    return torch.where(has_positives, index, 0), reached & has_positives


def _intervals(
    ranking: Ranking, curves: Curves, goal: Goal, index: Tensor, resampling: Resampling
) -> dict[str, Tensor]:
    """Ends ``[2, C]`` of the percentile intervals; those of rates are shifted by the mean optimism.

    The optimism of a rate is what it is for the threshold chosen on a resample: there, minus on the original rows.
    """
    thresholds, rates, optimism = [], [], []
    for multiplicity in _multiplicities(ranking, resampling):
        resampled = ranking.curves(multiplicity)
        chosen, _ = _choose(goal, resampled)
        thresholds.append(ranking.thresholds.gather(-1, chosen))
        pairs = resampled.rates_at(torch.stack([index[:, None].expand_as(chosen), chosen], -1))
        original = curves.rates_at(chosen)
        rates.append({name: pair[..., 0] for name, pair in pairs.items()})
        optimism.append({name: pair[..., 1] - original[name] for name, pair in pairs.items()})
    confidence = resampling.confidence
    intervals = {"threshold": _percentiles(torch.cat(thresholds, 1), confidence)}
    for name in rates[0]:
        of_resamples, excess = (torch.cat([chunk[name] for chunk in chunks], 1) for chunks in (rates, optimism))
        ends = _percentiles(of_resamples, confidence) - excess.mean(1)
        intervals[name] = ends.clamp(0, None if name == "cost" else 1)
    return intervals


def _percentiles(values: Tensor, confidence: float) -> Tensor:
    """``[2, C]`` of ``[C, B]``: values of whole ranks, because thresholds may be infinite."""
    tail = (1 - confidence) / 2
    highest = values.shape[1] - 1
    return values.sort(1).values[:, [math.floor(tail * highest), math.ceil((1 - tail) * highest)]].mT


def _multiplicities(ranking: Ranking, resampling: Resampling) -> Iterator[Tensor]:
    """``[b, M]``, some resamples at a time: how often each rank is drawn, in M draws with replacement.

    The same for all classes, whatever their order: only the intervals of each class are reported.
    """
    n_classes, n_rows = ranking.positive_weight.shape
    device, n = ranking.positive_weight.device, resampling.n_bootstrap
    size = max(1, CHUNK_ELEMENTS // (n_classes * n_rows))
    for start in range(0, n, size):
        shape = (min(size, n - start), n_rows)
        drawn = torch.randint(n_rows, shape, generator=resampling.generator, device=device)
        times = torch.zeros(shape, dtype=torch.float32, device=device)
        yield times.scatter_add_(1, drawn, times.new_ones(()).expand(shape))

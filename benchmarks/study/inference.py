"""From differences to what they say: intervals over splits and over tables, and the price of looking at many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Difference", "holm", "over_splits", "over_tables"]

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """A mean of paired differences, half the width of its 95 % interval, and the two-sided p-value of zero."""

    mean: float
    half: float
    p: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


def over_splits(ours: Sequence[float], theirs: Sequence[float], test_to_training: float) -> Difference:
    """Mean of ``ours - theirs`` over the splits of a table.

    The splits share rows, so that their differences vary less than those of new tables would: the variance of the mean
    is widened by the ratio of test to training rows. Nadeau, Bengio. Machine Learning 52, 2003, corrected resampled
    t-test.
    """
    return _student(np.subtract(ours, theirs), test_to_training)


def over_tables(differences: Sequence[float]) -> Difference:
    """Mean over tables, each of which counts the same, with Student's interval of the mean."""
    return _student(np.asarray(differences, dtype=float), 0.0)


def _student(differences: np.ndarray[tuple[int], np.dtype[np.float64]], shared: float) -> Difference:
    n = len(differences)
    mean = float(differences.mean()) if n else math.nan
    if n < 2 or math.isnan(mean):
        return Difference(mean, math.inf, math.nan)
    error = float(differences.std(ddof=1)) * math.sqrt(1 / n + shared)
    if error == 0:
        return Difference(mean, 0.0, 1.0 if mean == 0 else 0.0)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * error
    return Difference(mean, half, 2 * float(stats.t.sf(abs(mean) / error, n - 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of a family (Holm, 1979); those that are not numbers stay out of it."""
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted, least = [math.nan] * len(p_values), 0.0
    for place, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(known) - place) * p_values[i]))
        adjusted[i] = least
    return adjusted

"""Choosing a setting, and comparing two contenders seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Difference", "best_setting", "paired", "verdict"]

CONFIDENCE = 0.95


class Difference(NamedTuple):
    """A mean of paired differences and half the width of its interval."""

    mean: float
    half: float

    @property
    def low(self) -> float:
        """Lower end."""
        return self.mean - self.half

    @property
    def high(self) -> float:
        """Upper end."""
        return self.mean + self.half


def best_setting(*validation: Sequence[Sequence[float]]) -> int:
    """Index of the setting whose scores ``[settings][seeds]`` have the highest mean; the first one of equals.

    Further scores decide between equals. A setting with a score that is not a number, from a run that diverged, is
    chosen only if all have one.
    """

    def mean(scores: Sequence[float]) -> float:
        found = sum(scores) / len(scores)
        return -math.inf if math.isnan(found) else found

    return max(range(len(validation[0])), key=lambda i: tuple(mean(scores[i]) for scores in validation))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """Mean of ``ours - theirs`` over seeds, with Student's t interval of 95 %."""
    differences = np.subtract(ours, theirs)
    n = len(differences)
    if n < 2:
        return Difference(float(differences.mean()), math.inf)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Difference(float(differences.mean()), quantile * float(differences.std(ddof=1)) / math.sqrt(n))


def verdict(difference: Difference, *, lower_is_better: bool = False) -> str:
    """``"win"`` or ``"loss"`` if the interval leaves out zero, else ``"tie"``; no number, of a diverged run: a loss."""
    if math.isnan(difference.mean):
        return "loss"
    if difference.low <= 0 <= difference.high:
        return "tie"
    return "win" if (difference.mean > 0) != lower_is_better else "loss"

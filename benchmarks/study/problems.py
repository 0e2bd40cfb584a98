"""The problems of the study: real tables and three older tasks, each a function of the number of a split.

Splits are stratified: 60 % training, 20 % validation, 20 % test. Features are standardised on the training rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from study.parts import RawPart, Sets, standardised
from study.tables import TABLES, Columns, Half, Table, split_rows
from study.tasks import digits, digits_long_tail, generated

__all__ = ["BINS", "PROBLEMS", "Problem", "bin_of", "from_columns"]

Array = np.ndarray[Any, Any]
Kind = Literal["binary", "multiclass"]

FEW_POSITIVES = 150
SPLITS, SPLITS_OF_FEW = 3, 5  # with few positives the test set decides less, so that more of them are drawn
TEST_TO_TRAINING = 0.2 / 0.6  # rows of a split; 0 if splits share none


@dataclass(frozen=True)
class Problem:
    """A problem: how its splits are made, the half that it belongs to, and its size.

    ``positives`` are those of the whole table (of classes: rows of the rarest one in training); they give the number of
    ``splits`` and the row of the decision table. ``budget`` is the share of rows that get an alert. Splits share rows,
    ``test_to_training`` says how many.
    """

    name: str
    half: Half
    make: Callable[[int], Sets]
    budget: float
    positives: int
    kind: Kind = "binary"
    n_classes: int = 1
    has_costs: bool = False
    source: str = ""
    test_to_training: float = TEST_TO_TRAINING

    @property
    def splits(self) -> int:
        """How many splits are drawn."""
        return SPLITS_OF_FEW if self.positives < FEW_POSITIVES else SPLITS


BINS = ("under 150 positives", "150 positives or more", "several classes")


def bin_of(problem: Problem) -> str:
    """The row of the decision table that a problem belongs to."""
    return BINS[2] if problem.kind == "multiclass" else BINS[problem.positives >= FEW_POSITIVES]


def from_columns(columns: Columns, split: int) -> Sets:
    """The three sets of a table."""

    def part(rows: Array) -> RawPart:
        costs = None if columns.costs is None else columns.costs[rows]
        return RawPart(columns.features[rows], columns.labels[rows], costs=costs)

    return standardised(*(part(rows) for rows in split_rows(columns.labels, split)))


@functools.lru_cache(maxsize=3)
def _columns(table: Table) -> Columns:
    return table.load()


# Rows and positives, known without reading the tables; a test sets them against the tables.
SIZES = {
    "credit": (150_000, 10_026),
    "bank marketing": (45_211, 5_289),
    "sylva": (13_086, 805),
    "letter A": (20_000, 789),
    "page blocks": (5_472, 559),
    "TV churn": (9_379, 449),
    "Caravan": (5_822, 348),
    "nursery": (12_960, 328),
    "hypothyroid": (3_163, 151),
    "hiva": (3_845, 135),
    "wine quality": (1_599, 53),
    "yeast": (1_484, 51),
    "abalone": (4_174, 32),
    "letters": (20_000, 734),
}


def _of_table(table: Table) -> Problem:
    rows, positives = SIZES[table.name]
    of_classes = table.n_classes > 1
    return Problem(
        table.name,
        table.half,
        lambda split: from_columns(_columns(table), split),
        1 / table.n_classes if of_classes else positives / rows,
        positives,
        "multiclass" if of_classes else "binary",
        table.n_classes,
        table.name == "TV churn",
        table.source,
    )


def _of_task(name: str, make: Callable[[int], Sets], budget: float, positives: int, **changes: Any) -> Problem:
    """One that losses were developed on, and so of the half that is chosen on."""
    source = "scikit-learn"
    return Problem(name, "chosen on", lambda split: make(1000 + split), budget, positives, source=source, **changes)


PROBLEMS = (
    *(_of_table(table) for table in TABLES),
    _of_task("digits 3 %", digits, 0.03, 33, test_to_training=0.4 / 0.4),
    _of_task("generated 1 %", generated, 0.01, 320, test_to_training=0.0),
    _of_task(
        "digits, long tail", digits_long_tail, 0.1, 3, kind="multiclass", n_classes=10, test_to_training=0.35 / 0.5
    ),
)

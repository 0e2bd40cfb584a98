"""The problems of the study: real tables and three older tasks, each a function of the number of a split.

Splits are stratified: 60 % training, 20 % validation, 20 % test. Features are standardised on the training rows, and
clipped, so that a rare indicator column or an outlier does not decide a linear model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from outcome.tables import TABLES, Columns, Half, Table, split_rows
from outcome.tasks import TASKS, Task
from torch import Tensor

__all__ = ["BINS", "CLIP", "PROBLEMS", "Part", "Problem", "Sets", "bin_of", "from_columns"]

Array = np.ndarray[Any, Any]
Kind = Literal["binary", "multiclass"]

CLIP = 10.0
FEW_POSITIVES = 150
SPLITS, SPLITS_OF_FEW = 3, 5  # with few positives the test set decides less, so that more of them are drawn
TEST_TO_TRAINING = 0.2 / 0.6  # rows of a split; 0 if splits share none
OLD_TASKS = ("digits 3 %", "generated 1 %", "digits, long tail")


class Part(NamedTuple):
    """Features ``[N, D]`` float32, targets ``[N]`` int64, groups ``[N]`` (-1: in every group), costs ``[N, 2]``."""

    features: Tensor
    targets: Tensor
    groups: Tensor
    costs: Tensor | None = None


class Sets(NamedTuple):
    """The three sets of a split."""

    train: Part
    validation: Part
    test: Part


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
    train, validation, test = split_rows(columns.labels, split)
    mean, deviation = columns.features[train].mean(0), columns.features[train].std(0)
    deviation[deviation < 1e-9] = 1

    def part(rows: Array) -> Part:
        scaled = ((columns.features[rows] - mean) / deviation).clip(-CLIP, CLIP)
        costs = None if columns.costs is None else torch.tensor(columns.costs[rows], dtype=torch.float64)
        targets = torch.tensor(columns.labels[rows])
        return Part(torch.tensor(scaled, dtype=torch.float32), targets, torch.full_like(targets, -1), costs)

    return Sets(part(train), part(validation), part(test))


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


# training positives of the three older tasks, the rarest class's for the long tail
OLD_POSITIVES = {"digits 3 %": 33, "generated 1 %": 320, "digits, long tail": 3}
OLD_SHARED = {"digits 3 %": 0.4 / 0.4, "generated 1 %": 0.0, "digits, long tail": 0.35 / 0.5}


def _of_task(task: Task) -> Problem:
    """One that losses were developed on, and so of the half that is chosen on."""

    def make(split: int) -> Sets:
        parts = (
            Part(part.features.clamp(-CLIP, CLIP), part.targets.long(), part.groups) for part in task.make(1000 + split)
        )
        return Sets(*parts)

    kind: Kind = "multiclass" if task.kind == "multiclass" else "binary"
    of_few = OLD_POSITIVES[task.name]
    return Problem(
        task.name,
        "chosen on",
        make,
        task.budget,
        of_few,
        kind,
        task.n_classes,
        source="scikit-learn",
        test_to_training=OLD_SHARED[task.name],
    )


PROBLEMS = (
    *(_of_table(table) for table in TABLES),
    *(_of_task(task) for task in TASKS if task.name in OLD_TASKS),
)

"""The numbers of a study by model, problem and contender, and what follows from them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from typing import Any

from study.contenders import BASELINE, CONTENDERS, Contender
from study.inference import Difference, holm, over_splits, over_tables
from study.measures import LOWER_IS_BETTER, TARGET
from study.problems import PROBLEMS, Kind, Problem

__all__ = ["HALVES", "Data", "Place", "Results", "dump", "with_sign"]

Data = dict[str, Any]
HALVES = ("chosen on", "held out")
OF_PROBLEM = {one.name: one for one in PROBLEMS}
OF_CONTENDER = {one.name: one for one in CONTENDERS}
Place = tuple[str, str]


class Results:
    """Measures by model, problem, contender and split, as differences to tuned cross-entropy.

    Differences are signed so that more is better. Trees are compared with the MLP's cross-entropy; an ensemble with a
    single model of its own loss.
    """

    def __init__(self, data: Data) -> None:
        self.cells: dict[str, dict[str, dict[str, Data]]] = data["cells"]
        self.models = [model for model in self.cells if any(self.contenders(model))]
        self.problems = [one for one in PROBLEMS if any(one.name in of_model for of_model in self.cells.values())]

    def has(self, model: str, problem: str, contender: str) -> bool:
        """Whether it was trained."""
        return "test" in self.cells.get(model, {}).get(problem, {}).get(contender, {})

    def contenders(self, model: str) -> list[Contender]:
        """Those that were trained on any problem, in the order of the list."""
        of_model = self.cells.get(model, {})
        return [one for one in CONTENDERS if any(self.has(model, problem, one.name) for problem in of_model)]

    def against(self, model: str, contender: str) -> Place:
        """Model and contender that it is compared with."""
        if model == "trees":
            return "MLP", BASELINE
        return ("MLP", contender) if model == "ensemble" else (model, BASELINE)

    def scores(self, model: str, problem: str, contender: str, measure: str) -> list[float]:
        """By split."""
        return [math.nan if one is None else one for one in self.cells[model][problem][contender]["test"][measure]]

    def seconds(self, model: str, problem: str, contender: str) -> float:
        """Of the processor, to train one model."""
        return float(self.cells[model][problem][contender]["seconds"])

    def difference(
        self, model: str, problem: str, contender: str, measure: str = TARGET, other: Place | None = None
    ) -> Difference:
        """Over splits, on one problem; to ``other``, a model and a contender, if it is given."""
        other = other or self.against(model, contender)
        ours, theirs = (self.scores(*place, measure) for place in ((model, problem, contender), _at(other, problem)))
        shared = min(len(ours), len(theirs))  # splits: an ensemble has fewer
        more, less = (theirs, ours) if measure in LOWER_IS_BETTER else (ours, theirs)
        return over_splits(more[:shared], less[:shared], OF_PROBLEM[problem].test_to_training)

    def problems_of(
        self, model: str, contender: str, measure: str, problems: Sequence[Problem], other: Place | None = None
    ) -> list[Problem]:
        """Those that both were trained on, and that have the measure."""
        other = other or self.against(model, contender)
        both = [one for one in problems if self.has(model, one.name, contender) and self.has(*_at(other, one.name))]
        return [one for one in both if not math.isnan(statistics.fmean(self.scores(*_at(other, one.name), measure)))]

    def is_whole(self, model: str, contender: str, problems: Sequence[Problem]) -> bool:
        """Whether it was trained on all of these problems that it takes part in, and what it is compared with, too."""
        other, takes = self.against(model, contender), OF_CONTENDER[contender].takes
        asked = [one.name for one in problems if takes(model, one.kind)]
        return all(self.has(model, name, contender) and self.has(*_at(other, name)) for name in asked)

    def overall(
        self, model: str, contender: str, measure: str, problems: Sequence[Problem], other: Place | None = None
    ) -> Difference:
        """Over problems, each of which counts the same."""
        return over_tables(self.means(model, contender, measure, problems, other))

    def means(
        self, model: str, contender: str, measure: str, problems: Sequence[Problem], other: Place | None = None
    ) -> list[float]:
        """By problem."""
        found = self.problems_of(model, contender, measure, problems, other)
        return [self.difference(model, one.name, contender, measure, other).mean for one in found]

    def counts(self, model: str, contender: str, measure: str, problems: Sequence[Problem]) -> tuple[int, int, int]:
        """Problems with the interval above zero, around it, and below."""
        found = [
            self.difference(model, one.name, contender, measure)
            for one in self.problems_of(model, contender, measure, problems)
        ]
        wins, losses = sum(one.low > 0 for one in found), sum(not one.high >= 0 for one in found)
        return wins, len(found) - wins - losses, losses

    def half(self, name: str, kind: Kind = "binary") -> list[Problem]:
        """The problems of a half, of one kind: few contenders take part in both."""
        return [one for one in self.problems if one.half == name and one.kind == kind]

    def adjusted(self, model: str, measure: str, problems: Sequence[Problem]) -> dict[str, float]:
        """Holm's p-values of the means over problems, by contender: the family is all that the page could pick."""
        names = [one.name for one in self.contenders(model) if one.name != BASELINE]
        p_values = [self.overall(model, name, measure, problems).p for name in names]
        return dict(zip(names, holm(p_values), strict=True))

    def best(self, model: str, measure: str, problems: Sequence[Problem], *, ours: bool = False) -> str | None:
        """Contender with the highest mean, of those that were trained on all problems that they take part in.

        Cross-entropy trained in another way is no contender here; with ``ours``, only our ranking losses are.
        """
        controls = {BASELINE, *(one.control for one in CONTENDERS)}
        names = [one for one in self.contenders(model) if one.name not in controls and (one.is_ranking or not ours)]
        means = {
            one.name: self.overall(model, one.name, measure, problems).mean
            for one in names
            if (one.series == "ours" or not ours) and self.is_whole(model, one.name, problems)
        }
        known = {name: mean for name, mean in means.items() if not math.isnan(mean)}
        return max(known, key=lambda name: known[name], default=None)

    def skipped(self) -> dict[str, list[str]]:
        """Cells by reason."""
        found: dict[str, list[str]] = {}
        for model, of_model in self.cells.items():
            for problem, of_problem in of_model.items():
                for contender, result in of_problem.items():
                    if "skipped" in result:
                        found.setdefault(result["skipped"], []).append(f"{contender}, {model}, {problem}")
        return found


def _at(other: tuple[str, str], problem: str) -> tuple[str, str, str]:
    return other[0], problem, other[1]


def with_sign(difference: Difference, scale: float = 100) -> str:
    """``+1.2 [+0.3, +2.1]``, in points."""
    if math.isnan(difference.mean):
        return "-"
    low, high = scale * difference.low, scale * difference.high
    interval = f" [{low:+.1f}, {high:+.1f}]" if math.isfinite(difference.half) else ""
    return f"{scale * difference.mean:+.1f}{interval}"


def dump(data: Data) -> str:
    """JSON, one line a contender, problem and model; what is not a number is null."""
    head = json.dumps({name: value for name, value in data.items() if name != "cells"}, indent=1)
    models = []
    for model, of_model in data["cells"].items():
        blocks = []
        for problem, of_problem in of_model.items():
            lines = [f"    {json.dumps(name)}: {json.dumps(_without_nan(one))}" for name, one in of_problem.items()]
            blocks.append(f"   {json.dumps(problem)}: {{\n" + ",\n".join(lines) + "\n   }")
        models.append(f"  {json.dumps(model)}: {{\n" + ",\n".join(blocks) + "\n  }")
    return head.removesuffix("\n}") + ',\n "cells": {\n' + ",\n".join(models) + "\n }\n}\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

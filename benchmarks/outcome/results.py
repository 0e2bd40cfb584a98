"""The numbers of a study by task and contender, and what follows from them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

from outcome.comparison import Difference, paired, verdict
from outcome.contenders import BASELINE, CONTENDERS, RECIPE, Contender, Setting, recipe_for
from outcome.tasks import TASKS

__all__ = ["Data", "Results", "dump", "in_turn", "with_sign"]

Data = dict[str, Any]
LOWER_IS_BETTER = {"ece"}


class Results:
    """Measures by task, contender and seed; ``"target"`` is the measure that a task is tuned for.

    A measure that a task's rows cannot give, such as 50 basis points of fewer than 200 rows, is not a number there, and
    the task is left out where that measure is averaged. :data:`RECIPE` stands for the contender that is recommended for
    a task.
    """

    def __init__(self, data: Data) -> None:
        self.cells: dict[str, dict[str, Data]] = {task: dict(of_task) for task, of_task in data["cells"].items()}
        for task in TASKS:
            of_task = self.cells.get(task.name, {})
            recommended = recipe_for(task.kind, task.budget)
            if recommended in of_task:
                of_task[RECIPE] = of_task[recommended]
        self.tasks = [task for task in TASKS if task.name in self.cells and self.has(task.name, BASELINE)]
        self.contenders = [one for one in CONTENDERS if any(self.has(task.name, one.name) for task in self.tasks)]
        self._measures = {task.name: task.target for task in TASKS}
        self._differences: dict[tuple[str, str, str, str], Difference] = {}

    def has(self, task: str, contender: str) -> bool:
        """Whether it was trained."""
        return "test" in self.cells.get(task, {}).get(contender, {})

    def scores(self, task: str, contender: str, measure: str) -> list[float]:
        """By seed."""
        name = self._measures[task] if measure == "target" else measure
        return [math.nan if value is None else value for value in self.cells[task][contender]["test"][name]]

    def mean(self, task: str, contender: str, measure: str) -> float:
        """Over seeds."""
        return statistics.fmean(self.scores(task, contender, measure))

    def difference(self, task: str, contender: str, measure: str = "target", other: str = BASELINE) -> Difference:
        """To another contender on the same seeds."""
        key = (task, contender, measure, other)
        if key not in self._differences:
            pair = (self.scores(task, name, measure) for name in (contender, other))
            self._differences[key] = paired(*pair)
        return self._differences[key]

    def verdict(self, task: str, contender: str, measure: str = "target", other: str = BASELINE) -> str:
        """Win, tie or loss against another contender."""
        lower = measure in LOWER_IS_BETTER
        return verdict(self.difference(task, contender, measure, other), lower_is_better=lower)

    def tasks_of(self, contender: str, other: str = BASELINE, measure: str = "target") -> list[str]:
        """Imbalanced tasks that both contenders were trained on and that have the measure, as the baseline shows."""
        names = [task.name for task in self.tasks if task.imbalanced]
        shared = [name for name in names if self.has(name, contender) and self.has(name, other)]
        return [name for name in shared if not math.isnan(self.mean(name, BASELINE, measure))]

    def by_verdict(self, contender: str, measure: str = "target", other: str = BASELINE) -> dict[str, list[str]]:
        """The tasks that it wins, ties and loses."""
        found: dict[str, list[str]] = {"win": [], "tie": [], "loss": []}
        for task in self.tasks_of(contender, other, measure):
            found[self.verdict(task, contender, measure, other)].append(task)
        return found

    def counts(self, contender: str, measure: str = "target", other: str = BASELINE) -> dict[str, int]:
        """How often it wins, ties and loses."""
        return {name: len(tasks) for name, tasks in self.by_verdict(contender, measure, other).items()}

    def over_tasks(self, contender: str, measure: str = "target", other: str = BASELINE) -> Difference:
        """Mean difference over the tasks; its interval is that of the seeds' means over tasks."""
        tasks = self.tasks_of(contender, other, measure)
        if not tasks:
            return Difference(math.nan, math.nan)
        by_seed = [
            [statistics.fmean(seed) for seed in zip(*(self.scores(task, one, measure) for task in tasks), strict=True)]
            for one in (contender, other)
        ]
        return paired(*by_seed)

    def ranked(self, measure: str = "target") -> list[Contender]:
        """Contenders, the best difference first; then those of few tasks, whose means are of another kind."""
        sign = -1 if measure in LOWER_IS_BETTER else 1

        def key(one: Contender) -> tuple[bool, float]:
            mean = sign * self.over_tasks(one.name, measure).mean
            return bool(one.tasks), math.inf if math.isnan(mean) else -mean

        return sorted(self.contenders, key=key)

    def chosen(self, task: str, contender: Contender) -> Setting:
        """The setting that validation chose."""
        return contender.grid[self.cells[task][contender.name]["chosen"]]

    def milliseconds(self, task: str, contender: str) -> float:
        """Of a step."""
        return float(self.cells[task][contender]["milliseconds"])

    def validation(self, task: str, contender: str) -> list[float]:
        """Mean scores of the settings in the target measure."""
        return [math.nan if score is None else score for score in self.cells[task][contender]["validation"]]

    def skipped(self) -> dict[str, str]:
        """Reasons, by contender and task."""
        found = {}
        for task, of_task in self.cells.items():
            for contender, result in of_task.items():
                if "skipped" in result and contender != RECIPE:
                    found[f"{contender}, {task}"] = result["skipped"]
        return found


def in_turn(counts: Mapping[str, int]) -> str:
    """``3/10/1``: wins, ties and losses."""
    return f"{counts['win']}/{counts['tie']}/{counts['loss']}"


def with_sign(difference: Difference) -> str:
    """``+0.012 [+0.003, +0.021]``."""
    if math.isnan(difference.mean):
        return "-"
    interval = f" [{difference.low:+.3f}, {difference.high:+.3f}]" if math.isfinite(difference.half) else ""
    return f"{difference.mean:+.3f}{interval}"


def dump(data: Data) -> str:
    """JSON, one line a contender and task; what is not a number is null."""
    head = json.dumps({name: value for name, value in data.items() if name != "cells"}, indent=1)
    blocks = []
    for task, of_task in data["cells"].items():
        lines = [f"   {json.dumps(name)}: {json.dumps(_without_nan(result))}" for name, result in of_task.items()]
        blocks.append(f"  {json.dumps(task)}: {{\n" + ",\n".join(lines) + "\n  }")
    return head.removesuffix("\n}") + ',\n "cells": {\n' + ",\n".join(blocks) + "\n }\n}\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value

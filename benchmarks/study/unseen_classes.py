"""The retrieval part of the study: classes are split into training, validation and test, and the last are ranked."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pages import rounded, table
from sklearn.datasets import load_digits

from imbalanced_losses.retrieval_metrics import mean_average_precision, recall_at_k
from study.contenders import Setting, grid
from study.inference import over_splits
from study.journal import Journal
from study.loop import Limits
from study.parts import RawPart, standardised
from study.pool import FAILURES, WorkerPool
from study.results import with_sign
from study.tables import TABLES

__all__ = [
    "LETTERS",
    "RETRIEVAL",
    "RETRIEVAL_DATA",
    "Retrieval",
    "RetrievalContender",
    "make_sets",
    "retrieval",
    "retrieval_page",
]

Array = np.ndarray[Any, Any]
Result = dict[str, Any]
SHARES = (0.5, 0.75)  # of the classes: training up to the first, validation up to the second
MOST_HELD_OUT = (600, 2_000)  # rows of validation and test, as a query is compared with all of them
SPLITS, TUNING_SPLITS = 5, 2
TEST_TO_TRAINING = 0.5  # classes
MEASURES = {"map": "mAP", "recall": "recall@1"}
LONGEST_RUN = 240.0
LIMITS = Limits(every=25, least=1_000, most=1_500)


@dataclass(frozen=True)
class RetrievalContender:
    """A loss of embeddings and four settings."""

    name: str
    loss: str
    grid: tuple[Setting, ...]
    series: str = "ours"
    options: dict[str, Any] = field(default_factory=dict)

    def spec(self) -> dict[str, Any]:
        """What the worker needs to know."""
        return {"loss": self.loss, "series": self.series, "options": self.options}


REFERENCE = "normalised softmax"
NO_QUEUE = {"queue_size": 0}  # as the others: with one, a step takes thirty times as long
RAW = "raw features"
RETRIEVAL = (
    RetrievalContender(REFERENCE, "NormalisedSoftmax", grid((1e-3, 3e-3), temperature=(0.05, 0.2))),
    RetrievalContender("triplet", "Triplet", grid((1e-3, 3e-3), margin=(0.1, 0.3))),
    RetrievalContender("supervised contrastive", "SupervisedContrastive", grid((1e-3, 3e-3), temperature=(0.05, 0.2))),
    RetrievalContender(
        "retrieval AP", "RetrievalAPLoss", grid((1e-3, 3e-3), temperature=(0.01, 0.1)), options=NO_QUEUE
    ),
    RetrievalContender(
        "retrieval AP, upper bound",
        "RetrievalAPLoss",
        grid((1e-3, 3e-3), calibration_weight=(0.0, 0.5)),
        options={"surrogate": "sup", **NO_QUEUE},
    ),
    RetrievalContender("recall at k", "RecallAtKLoss", grid((1e-3, 3e-3), temperature=(0.01, 0.1)), options=NO_QUEUE),
    RetrievalContender(
        "pytorch-metric-learning SmoothAP", "SmoothAPLoss", grid((1e-3, 3e-3), temperature=(0.01, 0.1)), "peer"
    ),
)


@functools.cache
def _letters() -> tuple[Array, Array]:
    features, labels, _ = next(one for one in TABLES if one.name == "letters").load()
    return features, labels


LETTERS = "letters"
RETRIEVAL_DATA: dict[str, Callable[[], tuple[Array, Array]]] = {
    "digits": lambda: load_digits(return_X_y=True),
    LETTERS: _letters,
}


def make_sets(load: Callable[[], tuple[Array, Array]], split: int) -> dict[str, torch.Tensor]:
    """Rows of three disjoint sets of classes; training classes are numbered from 0."""
    features, labels = load()
    generator = np.random.default_rng(split)
    classes = generator.permutation(np.unique(labels))
    ends = [round(share * len(classes)) for share in SHARES]
    parts = []
    for of_set, limit in zip(np.split(classes, ends), (len(labels), *MOST_HELD_OUT), strict=True):
        rows = generator.permutation(np.flatnonzero(np.isin(labels, of_set)))[:limit]
        places = {label: place for place, label in enumerate(of_set)}
        parts.append(RawPart(features[rows], np.array([places[label] for label in labels[rows]])))
    made: dict[str, torch.Tensor] = {}
    for name, part in standardised(*parts)._asdict().items():
        made |= {f"{name}_features": part.features, f"{name}_targets": part.targets}
    return made


def judge(embeddings: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """The measures of test embeddings."""
    found = mean_average_precision(embeddings, labels), recall_at_k(embeddings, labels, 1)
    return {"map": float(found[0]), "recall": float(found[1])}


class Retrieval:
    """The runs of the retrieval part."""

    def __init__(self, journal: Journal, folder: Path, pool: WorkerPool, end: float, *, quick: bool) -> None:
        self.journal, self.folder, self.pool, self.end = journal, folder, pool, end
        self.limits = Limits(every=10, patience=1, epochs=1, least=20, most=20) if quick else LIMITS
        self.splits, self.settings = (2, 1) if quick else (SPLITS, 4)

    def cell(self, data: str, contender: RetrievalContender) -> Result:
        """Tune on the validation classes of two splits, as three digits decide little; then all splits."""
        tried = [[self.run(data, contender, i, split) for split in range(TUNING_SPLITS)] for i in range(self.settings)]
        if failed := [one for of_setting in tried for one in of_setting if "skipped" in one]:
            return failed[0]
        chosen = max(range(len(tried)), key=lambda i: sum(one["best"] for one in tried[i]))
        runs = [self.run(data, contender, chosen, split) for split in range(self.splits)]
        if failed := [one for one in runs if "skipped" in one]:
            return failed[0]
        test = {name: [rounded(one["test"][name]) for one in runs] for name in MEASURES}
        seconds = rounded(float(np.median([one["seconds"] for one in runs])))
        return {"chosen": contender.grid[chosen], "seconds": seconds, "test": test}

    def run(self, data: str, contender: RetrievalContender, setting: int, split: int) -> Result:
        """One training run, now or in the journal."""
        key = json.dumps(["retrieval", data, contender.spec(), contender.grid[setting], split, asdict(self.limits)])
        if key not in self.journal.runs:
            if time.monotonic() > self.end:
                return {"skipped": "the run's time was spent"}
            try:
                self.journal.add(key, self._train(data, contender, setting, split))
            except FAILURES as error:
                self.journal.add(key, {"skipped": f"failed: {error}"})
        return self.journal.runs[key]

    def _train(self, data: str, contender: RetrievalContender, setting: int, split: int) -> Result:
        sets = make_sets(RETRIEVAL_DATA[data], split)
        name = threading.get_ident()
        path, output = self.folder / f"sets-{data}-{split}-{name}.pt", self.folder / f"embeddings-{name}.pt"
        if not path.exists():
            torch.save({key: value for key, value in sets.items() if key != "test_targets"}, path)
        answer = self.pool.ask(
            contender.series,
            LONGEST_RUN,
            do="retrieval",
            data=str(path),
            output=str(output),
            contender=contender.spec(),
            setting=contender.grid[setting],
            seed=split,
            limits=asdict(self.limits),
        )
        return {**answer, "test": judge(torch.load(output)["test"], sets["test_targets"])}

    def untrained(self, data: str) -> Result:
        """The features as they are: what training has to beat on classes that it never saw."""
        sets = [make_sets(RETRIEVAL_DATA[data], split) for split in range(self.splits)]
        found = [judge(one["test_features"], one["test_targets"]) for one in sets]
        test = {name: [rounded(one[name]) for one in found] for name in MEASURES}
        return {"chosen": {}, "seconds": 0.0, "test": test}


def retrieval(part: Retrieval, jobs: int, data_sets: Sequence[str] = tuple(RETRIEVAL_DATA)) -> dict[str, Result]:
    """Results by data set and contender."""
    cells = [(data, one) for data in data_sets for one in RETRIEVAL]
    with ThreadPoolExecutor(jobs) as threads:
        # the slowest loss is the last: it would run alone at the end
        results = list(threads.map(lambda cell: part.cell(*cell), cells[::-1]))[::-1]
    found: dict[str, Result] = {data: {RAW: part.untrained(data)} for data in data_sets}
    for (data, one), result in zip(cells, results, strict=True):
        found[data][one.name] = result
    return found


def retrieval_page(found: dict[str, Result]) -> str:
    """Markdown: a table for each data set, with paired differences to normalised softmax over the splits of classes."""
    parts = []
    for data, of_data in found.items():
        rows = []
        for name, result in of_data.items():
            if "skipped" in result:
                rows.append((name, result["skipped"], *[""] * 5))
                continue
            cells = []
            for measure in MEASURES:
                ours, theirs = (of_data[one].get("test", {}).get(measure) for one in (name, REFERENCE))
                is_compared = name != REFERENCE and theirs is not None
                compared = with_sign(over_splits(ours, theirs, TEST_TO_TRAINING)) if is_compared else ""
                cells += [f"{100 * float(np.mean(ours)):.1f}", compared]
            setting = ", ".join(f"{key} {value:g}" for key, value in result["chosen"].items())
            rows.append((name, setting, *cells, f"{result['seconds']:.2g}"))
        header = (
            "loss",
            "setting",
            *(cell for title in MEASURES.values() for cell in (title, "difference")),
            "seconds",
        )
        parts.append(f"### {data}\n\n{table(header, rows)}")
    return "\n\n".join(parts)

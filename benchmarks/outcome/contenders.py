"""Who takes part: losses with their options, and four settings each to tune over.

Every contender has the same tuning budget: four settings. Mostly what is its own to choose takes two values, at two
learning rates; what has nothing but the learning rate tries four, and two choices of its own leave it at one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "BASELINE",
    "CONTENDERS",
    "RANKING_LOSSES",
    "RECIPE",
    "RECIPES",
    "SCHEDULES",
    "SWEPT",
    "WIDE",
    "WIDE_ADJUSTED",
    "WIDE_MIX",
    "Contender",
    "Setting",
    "recipe_for",
]

Setting = dict[str, float]
ALL = ("binary", "multiclass", "multilabel")


@dataclass(frozen=True)
class Contender:
    """A row of the study.

    ``options`` go to the loss. ``schedule`` says how it takes over from cross-entropy: the shares ``warmup`` and
    ``blend`` of the steps, the ``final`` weight, the ends of the temperature, the logit ``adjustment``. ``why_not``
    says why it has no other ``kinds``, or no other ``tasks`` (none named: all).
    """

    name: str
    loss: str
    grid: tuple[Setting, ...]
    series: Literal["ours", "peer", "libauc"] = "ours"
    options: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, float] | None = None
    kinds: tuple[str, ...] = ALL
    tasks: tuple[str, ...] = ()
    why_not: str = ""

    def takes(self, kind: str, task: str) -> bool:
        """Whether it takes part in a task."""
        return kind in self.kinds and task in (self.tasks or (task,))

    def spec(self) -> dict[str, Any]:
        """What the worker needs to know."""
        return {"series": self.series, "loss": self.loss, "options": self.options, "schedule": self.schedule}

    def link(self, kind: str) -> str:
        """How its logits become probabilities: the way its loss reads them, or part of it that stays to the end."""
        of_classes = self.loss in ("CrossEntropy", "SoftmaxFocalLoss") or self.is_mixed
        return "softmax" if kind == "multiclass" and of_classes else "sigmoid"

    @property
    def is_ranking(self) -> bool:
        """Whether it is one of our ranking losses."""
        return self.series == "ours" and self.loss in {loss for _, loss, *_ in RANKING_LOSSES}

    @property
    def is_mixed(self) -> bool:
        """Whether cross-entropy keeps a part in it to the end."""
        return (self.schedule or {}).get("final", 1.0) < 1


def grid(lr: Sequence[float] = (3e-3, 1e-2), **own: Sequence[float]) -> tuple[Setting, ...]:
    """Every learning rate with every value of the contender's own."""
    names = ("lr", *own)
    return tuple(dict(zip(names, values, strict=True)) for values in itertools.product(lr, *own.values()))


FOUR_RATES = grid((1e-3, 3e-3, 1e-2, 3e-2))
BASELINE = "cross-entropy"
WIDE = "pAUC pairwise, wide band"
WIDE_MIX, WIDE_ADJUSTED = WIDE + " + half", WIDE + " + adjusted half"
RECIPE = "the recipe"
BATCH = 64
FEW_POSITIVES = 2

BLEND = {"warmup": 0.2, "blend": 0.2}  # then the ranking loss alone
MIX = {**BLEND, "final": 0.5}  # then half and half to the end
HALF = {"warmup": 0.0, "blend": 0.0, "final": 0.5}  # half and half from the first step
ADJUSTED_HALF = {**HALF, "adjustment": 1.0}
SCHEDULES: dict[str, dict[str, float] | None] = {"": None, " + warm-up": BLEND, " + mix": MIX}
IMPLICIT = {"threshold_gradient": "implicit"}
PAIRWISE = {"surrogate": "pairwise"}

# name, loss, options, temperatures: of Smooth-AP and recall in units of the logits, of pAUC of the negatives' spread
RANKING_LOSSES: tuple[tuple[str, str, dict[str, Any], tuple[float, ...]], ...] = (
    ("Smooth-AP", "SmoothAPLoss", {}, (0.5, 3.0)),
    ("recall, stop", "RecallAtQuantileLoss", {}, (0.5, 3.0)),
    ("recall, implicit", "RecallAtQuantileLoss", IMPLICIT, (0.5, 3.0)),
    ("pAUC trapezoid, stop", "PAUCAtBudgetLoss", {}, (0.1, 1.0)),
    ("pAUC trapezoid, implicit", "PAUCAtBudgetLoss", IMPLICIT, (0.1, 1.0)),
    ("pAUC pairwise", "PAUCAtBudgetLoss", PAIRWISE, (0.1, 1.0)),
)

# schedules that are tried everywhere; warm-up is tried with the other losses on a few tasks
SCHEDULED = {
    "": tuple(name for name, *_ in RANKING_LOSSES),
    " + warm-up": ("Smooth-AP", "recall, implicit", "pAUC pairwise"),
    " + mix": ("Smooth-AP", "pAUC pairwise"),
}
# where one choice alone is varied: the other schedules, queues, temperatures
SWEEP_TASKS = ("digits 1 %", "generated 1 %", "generated 0.3 %", "contested top 1 %")
SWEEP: dict[str, Any] = {"tasks": SWEEP_TASKS, "why_not": "a variant, tried on four tasks"}
SWEPT: dict[str, tuple[float, ...]] = {"Smooth-AP": (0.03, 0.3, 3.0, 10.0), "pAUC pairwise": (0.1, 0.3, 1.0, 3.0)}
QUEUES = (0, 8192)  # besides the default, 1,024
# the band is as many times the budget
WIDE_GRID = grid((1e-2,), temperature=(1.0, 3.0), band=(3.0, 10.0))


def _ours() -> list[Contender]:
    """Each loss with each schedule."""
    made = []
    for suffix, schedule in SCHEDULES.items():
        for name, loss, options, temperatures in RANKING_LOSSES:
            everywhere = name in SCHEDULED[suffix]
            if everywhere or schedule is BLEND:
                swept: dict[str, Any] = {} if everywhere else SWEEP
                settings = grid(temperature=temperatures)
                made.append(Contender(name + suffix, loss, settings, options=options, schedule=schedule, **swept))
    return made


def _sweeps() -> list[Contender]:
    made = []
    for name, loss, options, temperatures in RANKING_LOSSES:
        if name in SWEPT:
            for size in QUEUES:
                queue = {**options, "queue_size": size}
                made.append(
                    Contender(f"{name}, queue {size:,}", loss, grid(temperature=temperatures), options=queue, **SWEEP)
                )
            every = grid((1e-2,), temperature=SWEPT[name])
            made.append(Contender(f"{name}, temperatures", loss, every, options=options, **SWEEP))
    return made


def _defaults() -> list[Contender]:
    """Smooth-AP as it stands, alone and in the wrapper."""
    decay = {**BLEND, "temp_start": 0.05, "temp_end": 0.005}
    return [
        Contender("Smooth-AP, default temperature", "SmoothAPLoss", FOUR_RATES),
        Contender("Smooth-AP + warm-up, default decay", "SmoothAPLoss", FOUR_RATES, schedule=decay, **SWEEP),
    ]


def _peer() -> list[Contender]:
    names = {"recall, stop": "recall", "pAUC trapezoid, stop": "pAUC"}
    kinds, reason = ("binary",), "takes no multi-label targets, and too long with ten classes"
    return [
        Contender(f"0.6.0 {names.get(name, name)}", loss, grid(temperature=own), "peer", kinds=kinds, why_not=reason)
        for name, loss, options, own in RANKING_LOSSES
        if not options
    ]


def _libauc() -> list[Contender]:
    rows = (
        # PESG is a form of SGD, whose learning rates are larger than Adam's
        ("LibAUC AUCM, PESG", "AUCMLoss", grid((0.1, 0.3, 1.0, 3.0))),
        ("LibAUC AP, SOAP", "APLoss", grid(gamma=(0.1, 0.9))),
        ("LibAUC pAUC, SOPA", "pAUC_CVaR_Loss", grid(beta=(0.1, 0.3))),
    )
    reason = "a loss of one label, with a sampler of its positives"
    return [Contender(*row, "libauc", kinds=("binary",), why_not=reason) for row in rows]


# the contender that is recommended, and where: the ranking loss alone while batches have few positives
RECIPES = {
    WIDE: f"for one label with fewer than {FEW_POSITIVES} positives in a batch on average",
    WIDE_MIX: "for one label with more, and for several labels",
    WIDE_ADJUSTED: "for classes that exclude each other",
}


def recipe_for(kind: str, rate: float) -> str:
    """Which of :data:`RECIPES` is for a task."""
    if kind == "multiclass":
        return WIDE_ADJUSTED
    return WIDE if kind == "binary" and rate * BATCH < FEW_POSITIVES else WIDE_MIX


CONTENDERS = (
    Contender(BASELINE, "CrossEntropy", FOUR_RATES),
    Contender("weighted cross-entropy", "CrossEntropy", grid(weighting=(0.5, 1.0))),
    Contender("logit-adjusted", "CrossEntropy", grid(adjustment=(0.5, 1.0))),
    Contender("focal, sigmoid", "SigmoidFocalLoss", grid(alpha=(0.25, -1.0)), options={"gamma": 2.0}),
    Contender(
        "focal, softmax",
        "SoftmaxFocalLoss",
        grid(gamma=(1.0, 2.0)),
        kinds=("multiclass",),
        why_not="with one logit it is the sigmoid focal loss",
    ),
    Contender(WIDE, "PAUCAtBudgetLoss", WIDE_GRID, options=PAIRWISE),
    Contender(WIDE_MIX, "PAUCAtBudgetLoss", WIDE_GRID, options=PAIRWISE, schedule=HALF),
    Contender(
        WIDE_ADJUSTED,
        "PAUCAtBudgetLoss",
        WIDE_GRID,
        options=PAIRWISE,
        schedule=ADJUSTED_HALF,
        kinds=("multiclass",),
        why_not="tried where classes exclude each other",
    ),
    *_ours(),
    *_sweeps(),
    *_defaults(),
    *_peer(),
    *_libauc(),
)

"""Who takes part: losses with their options, and four settings each to tune over.

Every contender has the same tuning budget: four settings. What is its own to choose takes two values, at two learning
rates; plain cross-entropy has nothing but the learning rate and tries four.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BASELINE", "CONTENDERS", "DEFAULT_TEMPERATURE", "RECIPE", "Contender"]

Setting = dict[str, float]
ALL = ("binary", "multiclass", "multilabel")
SEVERAL_LABELS = "takes no multi-label targets"


@dataclass(frozen=True)
class Contender:
    """A row of the study.

    ``options`` go to the loss. ``schedule`` says how it takes over from cross-entropy: the shares ``warmup`` and
    ``blend`` of the steps, and the ``final`` weight. ``why_not`` says why it leaves out all ``kinds`` but its own.
    """

    name: str
    loss: str
    grid: tuple[Setting, ...]
    series: Literal["ours", "peer", "libauc"] = "ours"
    options: dict[str, Any] = field(default_factory=dict)
    schedule: dict[str, float] | None = None
    kinds: tuple[str, ...] = ALL
    why_not: str = ""

    def spec(self) -> dict[str, Any]:
        """What the worker needs to know."""
        return {"series": self.series, "loss": self.loss, "options": self.options, "schedule": self.schedule}

    def link(self, kind: str) -> str:
        """How its logits become probabilities: the way its loss reads them, or part of it that stays to the end."""
        of_classes = self.loss in ("CrossEntropy", "SoftmaxFocalLoss") or (self.schedule or {}).get("final", 1.0) < 1
        return "softmax" if kind == "multiclass" and of_classes else "sigmoid"

    @property
    def is_ranking(self) -> bool:
        """Whether it is one of our ranking losses."""
        return self.series == "ours" and self.loss in RANKING


RANKING = ("SmoothAPLoss", "RecallAtQuantileLoss", "PAUCAtBudgetLoss")


def grid(lr: Sequence[float] = (3e-3, 1e-2), **own: Sequence[float]) -> tuple[Setting, ...]:
    """Every learning rate with every value of the contender's own."""
    names = ("lr", *own)
    return tuple(dict(zip(names, values, strict=True)) for values in itertools.product(lr, *own.values()))


FOUR_RATES = grid((1e-3, 3e-3, 1e-2, 3e-2))
BLEND = {"warmup": 0.2, "blend": 0.2}  # then the ranking loss alone
MIX = {**BLEND, "final": 0.5}  # then half and half to the end
DEFAULT_TEMPERATURE = 0.01
IMPLICIT = {"threshold_gradient": "implicit"}
PAIRWISE = {"surrogate": "pairwise"}

# name, loss, options, temperatures: of Smooth-AP and recall in units of the logits, of pAUC of the negatives' spread
RANKING_LOSSES: tuple[tuple[str, str, dict[str, Any], tuple[float, ...]], ...] = (
    ("Smooth-AP", "SmoothAPLoss", {}, (0.5, 2.0)),
    ("recall, stop", "RecallAtQuantileLoss", {}, (0.5, 2.0)),
    ("recall, implicit", "RecallAtQuantileLoss", IMPLICIT, (0.5, 2.0)),
    ("pAUC trapezoid, stop", "PAUCAtBudgetLoss", {}, (0.1, 0.5)),
    ("pAUC trapezoid, implicit", "PAUCAtBudgetLoss", IMPLICIT, (0.1, 0.5)),
    ("pAUC pairwise", "PAUCAtBudgetLoss", PAIRWISE, (0.1, 0.5)),
)
SCHEDULES: dict[str, dict[str, float] | None] = {"": None, " + warm-up": BLEND, " + mix": MIX}
QUEUES = (0, 8192)  # besides the default, 1,024


def _ours() -> list[Contender]:
    return [
        Contender(name + suffix, loss, grid(temperature=temperatures), options=options, schedule=schedule)
        for suffix, schedule in SCHEDULES.items()
        for name, loss, options, temperatures in RANKING_LOSSES
        if suffix != " + mix" or not name.endswith("stop")
    ]


def _queues() -> list[Contender]:
    chosen = [row for row in RANKING_LOSSES if row[0] in ("Smooth-AP", "pAUC pairwise")]
    reason = "queue sizes are compared on binary tasks"
    return [
        Contender(
            f"{name}, queue {size:,}",
            loss,
            grid(temperature=temperatures),
            options={**options, "queue_size": size},
            kinds=("binary",),
            why_not=reason,
        )
        for name, loss, options, temperatures in chosen
        for size in QUEUES
    ]


def _peer() -> list[Contender]:
    rows = ((name, loss, temperatures) for name, loss, options, temperatures in RANKING_LOSSES if not options)
    names = {"recall, stop": "recall", "pAUC trapezoid, stop": "pAUC"}
    return [
        Contender(
            f"0.6.0 {names.get(name, name)}",
            loss,
            grid(temperature=temperatures),
            series="peer",
            kinds=("binary", "multiclass"),
            why_not=SEVERAL_LABELS,
        )
        for name, loss, temperatures in rows
    ]


def _libauc() -> list[Contender]:
    rows = (
        # PESG is a form of SGD, whose learning rates are larger than Adam's
        ("LibAUC AUCM, PESG", "AUCMLoss", grid((0.03, 0.1), margin=(0.5, 1.0))),
        ("LibAUC AP, SOAP", "APLoss", grid(gamma=(0.1, 0.9))),
        ("LibAUC pAUC, SOPA", "pAUC_CVaR_Loss", grid(margin=(0.5, 1.0))),
    )
    reason = "a loss of one label, with a sampler of its positives"
    return [Contender(*row, series="libauc", kinds=("binary",), why_not=reason) for row in rows]


BASELINE = "cross-entropy"
RECIPE = "Smooth-AP + mix"

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
    *_ours(),
    *_queues(),
    Contender(
        "Smooth-AP, default temperature",
        "SmoothAPLoss",
        FOUR_RATES,
        options={"temperature": DEFAULT_TEMPERATURE},
    ),
    *_peer(),
    *_libauc(),
)

"""Who takes part: one list of losses with their options, and four settings each to tune over.

Every contender has the same tuning budget, four settings, as more tries alone find higher validation scores.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BASELINE", "CONTENDERS", "ENSEMBLES", "MODELS", "Contender", "Setting", "grid"]

Setting = dict[str, float]
Series = Literal["ours", "peer", "libauc", "trees"]
# how a loss gets the model: from the first step; half of it, half cross-entropy; from the tuned cross-entropy's weights
Schedule = Literal["alone", "half", "tuned"]

Row = tuple[str, str, dict[str, Any], dict[str, tuple[float, ...]]]

MODELS = ("linear", "MLP", "head", "trees")
NETWORKS = ("linear", "MLP", "head")
BASELINE = "cross-entropy"
LINEAR_FACTOR = 3


@dataclass(frozen=True)
class Contender:
    """A row of the study: a loss, its ``options``, the ``grid`` to tune over, and where it takes part.

    ``start`` says whether the last layer's bias starts at the log odds of the training set, which is what unweighted
    cross-entropy ends at, or at zero. ``why_not`` says why it is not everywhere.
    """

    name: str
    loss: str
    grid: tuple[Setting, ...]
    series: Series = "ours"
    options: dict[str, Any] = field(default_factory=dict)
    schedule: Schedule = "alone"
    start: Literal["prior", "zero"] = "prior"
    models: tuple[str, ...] = NETWORKS
    kinds: tuple[str, ...] = ("binary", "multiclass")
    why_not: str = ""
    is_ranking: bool = False
    full_batch: bool = False

    def takes(self, model: str, kind: str) -> bool:
        """Whether it takes part."""
        return model in self.models and kind in self.kinds

    def settings(self, model: str) -> tuple[Setting, ...]:
        """The grid; with Adam, a linear model takes three times the learning rates, as nothing lies below its layer."""
        if model != "linear" or self.full_batch or self.series == "libauc":
            return self.grid
        return tuple({**setting, "lr": LINEAR_FACTOR * setting["lr"]} for setting in self.grid)

    def spec(self) -> dict[str, Any]:
        """What the worker needs to know."""
        names = ("loss", "series", "options", "schedule", "start", "full_batch")
        return {name: getattr(self, name) for name in names}

    def link(self, kind: str) -> str:
        """How its logits compare across rows: by log odds of the classes where softmax is in the loss."""
        of_classes = self.loss in SOFTMAX_LOSSES or self.schedule == "half"
        return "softmax" if kind == "multiclass" and of_classes else "sigmoid"


SOFTMAX_LOSSES = {"CrossEntropy", "LogitAdjustedLoss", "SoftmaxFocalLoss", "LDAMLoss", "GradientBoosting"}


def grid(lr: Sequence[float] = (3e-3, 1e-2), **own: Sequence[float]) -> tuple[Setting, ...]:
    """Every learning rate with every value of the contender's own."""
    names = ("lr", *own)
    return tuple(dict(zip(names, values, strict=True)) for values in itertools.product(lr, *own.values()))


RATES = grid((1e-3, 3e-3, 1e-2, 3e-2))
FINE_RATES = grid((3e-4, 1e-3, 3e-3, 1e-2))
BINARY_ONLY = "of one label; with many classes it would take as long as all the rest"


def _references() -> list[Contender]:
    return [
        Contender(BASELINE, "CrossEntropy", RATES),
        *(
            Contender(f"class weights, {scheme}", "CrossEntropy", RATES, options={"weights": scheme}, start="zero")
            for scheme in ("balanced", "sqrt", "effective")
        ),
        Contender("logit-adjusted", "LogitAdjustedLoss", grid(tau=(0.5, 1.0)), start="zero"),
        Contender("VS", "LogitAdjustedLoss", grid(gamma=(0.1, 0.3)), options={"tau": 1.0}, start="zero"),
        Contender("focal", "Focal", grid(gamma=(1.0, 2.0))),
        Contender("ASL", "AsymmetricLoss", grid(gamma_neg=(2.0, 4.0)), options={"gamma_pos": 0.0}),
        # the scale of the paper, 30, is for cosines; these are plain logits
        Contender("LDAM", "LDAMLoss", grid(max_margin=(0.5, 2.0)), options={"scale": 1.0}),
        Contender("soft F1", "SoftFBetaLoss", grid(temperature=(0.5, 1.0))),
    ]


IMPLICIT = {"threshold_gradient": "implicit"}
AT_HALF = {"temperature": 0.5}
STD = {"tau_scale": "std"}

# name, loss, options, own values of the grid. A name that the installed package lacks fails in its rows only.
RANKING: tuple[Row, ...] = (
    ("Smooth-AP 0.5", "SmoothAPLoss", AT_HALF, {}),
    ("Smooth-AP, scale-free", "SmoothAPLoss", STD, {"temperature": (0.25, 0.5)}),
    ("recall", "RecallAtQuantileLoss", IMPLICIT, {"temperature": (0.5, 2.0)}),
    ("pAUC pairwise, wide", "PAUCAtBudgetLoss", {"surrogate": "pairwise", "temperature": 1.0}, {"band": (3.0, 10.0)}),
    ("pAUC dro", "PAUCAtBudgetLoss", {"surrogate": "dro"}, {"temperature": (0.3, 1.0)}),
    ("precision at recall", "PrecisionAtRecallLoss", {}, {"temperature": (0.5, 2.0)}),
)
# one choice of Smooth-AP varied alone; the other loss at a recall
ALONE: tuple[Row, ...] = (
    ("Smooth-AP 0.1", "SmoothAPLoss", {"temperature": 0.1}, {}),
    ("Smooth-AP 1", "SmoothAPLoss", {"temperature": 1.0}, {}),
    ("FPR at recall", "FPRAtRecallLoss", {}, {"temperature": (0.5, 2.0)}),
)
# in a table of many classes a step costs ten times as much: these stand for the rest
OF_CLASSES = ("Smooth-AP 0.5", "pAUC pairwise, wide")
FINE_TUNED = ("Smooth-AP 0.5", "Smooth-AP, scale-free", "pAUC pairwise, wide")
NO_HEAD = "a head starts from these weights anyway"
SUFFIXES = {"alone": "", "half": " + half", "tuned": " after cross-entropy"}


def _ranking() -> list[Contender]:
    """Each alone and half and half; some from the weights of tuned cross-entropy."""
    made = [_one_ranking(row, "alone") for row in RANKING]
    made += [_one_ranking(row, "half") for row in RANKING]
    made += [_one_ranking(row, "tuned") for row in RANKING if row[0] in FINE_TUNED]
    return made + [_one_ranking(row, "alone") for row in ALONE]


def _one_ranking(row: Row, schedule: Schedule) -> Contender:
    name, loss, options, own = row
    tuned = schedule == "tuned"
    rates = (1e-3, 3e-3) if tuned else (3e-3, 1e-2)
    settings = grid(rates, **own) if own else (FINE_RATES if tuned else RATES)
    of_head = schedule == "alone" or (schedule == "half" and name in FINE_TUNED)
    of_classes = name in OF_CLASSES and not tuned
    reasons = ([] if of_head else [NO_HEAD]) + ([] if of_classes else [BINARY_ONLY])
    return Contender(
        name + SUFFIXES[schedule],
        loss,
        settings,
        options=options,
        schedule=schedule,
        models=NETWORKS if of_head else ("linear", "MLP"),
        kinds=("binary", "multiclass") if of_classes else ("binary",),
        why_not="; ".join(reasons),
        is_ranking=True,
    )


def _full_batch() -> list[Contender]:
    """L-BFGS on the whole training set, from the weights of tuned cross-entropy: Smooth-AP, and its control."""
    only: dict[str, Any] = {
        "schedule": "tuned",
        "full_batch": True,
        "models": ("linear",),
        "kinds": ("binary",),
        "why_not": "a linear model of one label: the whole training set is one pool",
    }
    decays = (0.0, 1e-5, 1e-4, 1e-3)
    return [
        Contender("cross-entropy, L-BFGS", "CrossEntropy", tuple({"decay": one} for one in decays), **only),
        Contender(
            "Smooth-AP, L-BFGS",
            "SmoothAPLoss",
            tuple({"decay": decay, "temperature": tau} for tau in (0.5, 1.0) for decay in (0.0, 1e-4)),
            options={"queue_size": 0},
            is_ranking=True,
            **only,
        ),
    ]


def _others() -> list[Contender]:
    only: dict[str, Any] = {"models": ("linear", "MLP"), "kinds": ("binary",), "start": "zero"}
    of_one = "a loss of one label, with a sampler of its positives"
    peer = "too long with many classes"
    trees: dict[str, Any] = {"models": ("trees",), "kinds": ("binary",), "why_not": BINARY_ONLY}
    forest = tuple({"lr": lr, "leaves": leaves} for lr in (0.03, 0.1) for leaves in (7, 31))
    return [
        # PESG is a form of SGD, whose learning rates are larger than Adam's
        Contender("LibAUC AUCM, PESG", "AUCMLoss", grid((0.03, 0.1, 0.3, 1.0)), "libauc", why_not=of_one, **only),
        Contender("LibAUC AP, SOAP", "APLoss", grid(gamma=(0.1, 0.9)), "libauc", why_not=of_one, **only),
        Contender("LibAUC pAUC, SOPA", "pAUC_CVaR_Loss", grid(beta=(0.1, 0.3)), "libauc", why_not=of_one, **only),
        Contender("0.6.0 Smooth-AP 0.5", "SmoothAPLoss", RATES, "peer", AT_HALF, why_not=peer, **only),
        Contender("0.6.0 recall", "RecallAtQuantileLoss", grid(temperature=(0.5, 2.0)), "peer", why_not=peer, **only),
        Contender("0.6.0 pAUC", "PAUCAtBudgetLoss", grid(temperature=(0.1, 1.0)), "peer", why_not=peer, **only),
        Contender("boosted trees", "GradientBoosting", forest, "trees", {"class_weight": None}, **trees),
        Contender(
            "boosted trees, balanced", "GradientBoosting", forest, "trees", {"class_weight": "balanced"}, **trees
        ),
    ]


# in the order in which they are trained: what time runs out for is at the end
CONTENDERS = (*_references(), *_ranking(), *_full_batch(), *_others())

# beside the single MLP with its chosen setting: eight members by one vmap
ENSEMBLES = (BASELINE, "Smooth-AP 0.5", "Smooth-AP 0.5 + half")
MEMBERS = 8

"""The contenders of the study: losses with their options and four settings each.

All have four, because more trials alone raise the best validation score.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["BASELINE", "CONTENDERS", "ENSEMBLES", "MODELS", "Contender", "Setting", "grid"]

Setting = dict[str, float]
Series = Literal["ours", "peer", "libauc", "trees"]
# how a loss gets the model: from the first step; half of it, half cross-entropy; both with gradients of one norm; from
# four times the temperature down to it; from the tuned cross-entropy's weights
Schedule = Literal["alone", "half", "balanced", "annealed", "tuned"]

Row = tuple[str, str, dict[str, Any], dict[str, tuple[float, ...]]]

MODELS = ("linear", "MLP", "head", "trees")
NETWORKS = ("linear", "MLP", "head")
BASELINE = "cross-entropy"
LINEAR_FACTOR = 3


@dataclass(frozen=True)
class Contender:
    """A row of the study: a loss, its ``options``, the ``grid`` to tune over, and where it takes part.

    ``start`` says whether the last layer's bias starts at the log odds of the training set, which is what unweighted
    cross-entropy ends at, or at zero. ``why_not`` says why it is not everywhere. ``control`` is cross-entropy that is
    trained in the same way; where there is one, only what beats it, too, can be recommended.
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
    control: str = ""
    is_ranking: bool = False
    full_batch: bool = False

    def takes(self, model: str, kind: str) -> bool:
        """Whether it takes part."""
        return model in self.models and kind in self.kinds

    def settings(self, model: str) -> tuple[Setting, ...]:
        """The grid; with Adam, a linear model takes three times the learning rates, as nothing lies below its layer."""
        if model != "linear" or self.full_batch:  # L-BFGS takes none
            return self.grid
        return tuple({**setting, "lr": LINEAR_FACTOR * setting["lr"]} for setting in self.grid)

    def spec(self) -> dict[str, Any]:
        """What the worker needs to know."""
        names = ("loss", "series", "options", "schedule", "start", "full_batch")
        return {name: getattr(self, name) for name in names}

    def link(self, kind: str) -> str:
        """How its logits compare across rows: by log odds of the classes where softmax is in the loss."""
        of_classes = self.loss in SOFTMAX_LOSSES or self.schedule in ("half", "balanced")
        return "softmax" if kind == "multiclass" and of_classes else "sigmoid"


SOFTMAX_LOSSES = {"CrossEntropy", "LogitAdjustedLoss", "Focal", "LDAMLoss", "GradientBoosting"}


def grid(lr: Sequence[float] = (3e-3, 1e-2), **own: Sequence[float]) -> tuple[Setting, ...]:
    """Every learning rate with every value of the contender's own."""
    names = ("lr", *own)
    return tuple(dict(zip(names, values, strict=True)) for values in itertools.product(lr, *own.values()))


RATES = grid((1e-3, 3e-3, 1e-2, 3e-2))
FINE_RATES = grid((3e-4, 1e-3, 3e-3, 1e-2))
BINARY_ONLY = "of one label; with many classes it would take as long as all the rest"
FINE_TUNED = "cross-entropy after cross-entropy"


def _references() -> list[Contender]:
    return [
        Contender(BASELINE, "CrossEntropy", RATES),
        *(
            Contender(f"class weights, {scheme}", "CrossEntropy", RATES, options={"weights": scheme}, start="zero")
            for scheme in ("balanced", "sqrt", "effective")
        ),
        Contender(
            "logit-adjusted",
            "LogitAdjustedLoss",
            grid(tau=(0.5, 1.0)),
            start="zero",
            kinds=("multiclass",),
            why_not="of one label it is cross-entropy that starts at the log odds, as the baseline does",
        ),
        Contender("VS", "LogitAdjustedLoss", grid(gamma=(0.1, 0.3)), options={"tau": 1.0}, start="zero"),
        Contender("focal", "Focal", grid(gamma=(1.0, 2.0))),
        Contender("ASL", "AsymmetricLoss", grid(gamma_neg=(2.0, 4.0)), options={"gamma_pos": 0.0}),
        # the scale of the paper, 30, is for cosines; these are plain logits
        Contender("LDAM", "LDAMLoss", grid(max_margin=(0.5, 2.0)), options={"scale": 1.0}),
        Contender("soft F1", "SoftFBetaLoss", grid(temperature=(0.5, 1.0))),
        Contender(
            FINE_TUNED,
            "CrossEntropy",
            FINE_RATES,
            schedule="tuned",
            models=("linear", "MLP"),
            kinds=("binary",),
            why_not="the control of the losses that start from these weights",
        ),
    ]


IMPLICIT = {"threshold_gradient": "implicit"}
AT_HALF = {"temperature": 0.5}
STD = {"tau_scale": "std"}

# name, loss, options, own values of the grid. A name that the installed package lacks fails in its rows only.
RANKING_ROWS: tuple[Row, ...] = (
    ("Smooth-AP 0.5", "SmoothAPLoss", AT_HALF, {}),
    ("Smooth-AP, scale-free", "SmoothAPLoss", STD, {"temperature": (0.25, 0.5)}),
    ("recall", "RecallAtQuantileLoss", IMPLICIT, {"temperature": (0.5, 2.0)}),
    ("pAUC pairwise, wide", "PAUCAtBudgetLoss", {"surrogate": "pairwise", "temperature": 1.0}, {"band": (3.0, 10.0)}),
    ("pAUC dro", "PAUCAtBudgetLoss", {"surrogate": "dro"}, {"temperature": (0.3, 1.0)}),
    ("precision at recall", "PrecisionAtRecallLoss", {}, {"temperature": (0.5, 2.0)}),
)
# Smooth-AP at other temperatures; FPR at recall; pAUC with a narrow band
ALONE: tuple[Row, ...] = (
    ("Smooth-AP 0.1", "SmoothAPLoss", {"temperature": 0.1}, {}),
    ("Smooth-AP 1", "SmoothAPLoss", {"temperature": 1.0}, {}),
    ("FPR at recall", "FPRAtRecallLoss", {}, {"temperature": (0.5, 2.0)}),
    (
        "pAUC pairwise, hard band",
        "PAUCAtBudgetLoss",
        {"surrogate": "pairwise", "temperature": 1.0},
        {"band": (0.5, 1.0)},
    ),
)
MIXED = ("Smooth-AP 0.5", "recall", "pAUC pairwise, wide")
VARIANT = "a variant, on the fastest model"
FROM_WEIGHTS = ("Smooth-AP 0.5", "pAUC pairwise, wide")
OF_CLASSES = ("Smooth-AP 0.5 + half",)
SUFFIXES = {
    "alone": "",
    "half": " + half",
    "balanced": " + balanced half",
    "annealed": ", annealed",
    "tuned": " after cross-entropy",
}


def _ranking() -> list[Contender]:
    """Each alone; three also half and half with cross-entropy, two also from the weights of tuned cross-entropy."""
    start = "a head starts from these weights anyway"
    return [
        *(_one_ranking(row, "alone", NETWORKS, "") for row in RANKING_ROWS),
        *(_one_ranking(row, "half", NETWORKS, "") for row in RANKING_ROWS if row[0] in MIXED),
        *(_one_ranking(row, "tuned", ("linear", "MLP"), start) for row in RANKING_ROWS if row[0] in FROM_WEIGHTS),
    ]


def _variants() -> list[Contender]:
    """Variants that change one choice, on the linear model only."""
    schedules: tuple[Schedule, ...] = ("annealed", "balanced")
    return [
        *(_one_ranking(row, "alone", ("linear",), VARIANT) for row in ALONE),
        *(_one_ranking(RANKING_ROWS[0], one, ("linear",), VARIANT) for one in schedules),
    ]


def _one_ranking(row: Row, schedule: Schedule, models: tuple[str, ...], why_not: str) -> Contender:
    name, loss, options, own = row
    tuned, name = schedule == "tuned", name + SUFFIXES[schedule]
    rates = (1e-3, 3e-3) if tuned else (3e-3, 1e-2)
    of_classes = name in OF_CLASSES
    return Contender(
        name,
        loss,
        grid(rates, **own) if own else (FINE_RATES if tuned else RATES),
        options=options,
        schedule=schedule,
        models=models,
        kinds=("binary", "multiclass") if of_classes else ("binary",),
        why_not="; ".join(reason for reason in (why_not, "" if of_classes else BINARY_ONLY) if reason),
        control=FINE_TUNED if tuned else "",
        is_ranking=True,
    )


def _full_batch() -> list[Contender]:
    """L-BFGS on the whole training set, from the weights of tuned cross-entropy: Smooth-AP, and its control."""
    only: dict[str, Any] = {
        "schedule": "tuned",
        "full_batch": True,
        "kinds": ("binary",),
        "why_not": BINARY_ONLY,
    }
    decays = (0.0, 1e-5, 1e-4, 1e-3)
    return [
        Contender("cross-entropy, L-BFGS", "CrossEntropy", tuple({"decay": one} for one in decays), **only),
        Contender(
            "Smooth-AP, L-BFGS",
            "SmoothAPLoss",
            tuple({"decay": decay, "temperature": tau} for tau in (0.5, 1.0) for decay in (0.0, 1e-4)),
            options={"queue_size": 0},
            control="cross-entropy, L-BFGS",
            is_ranking=True,
            **only,
        ),
    ]


def _trees() -> list[Contender]:
    forest = tuple({"lr": lr, "leaves": leaves} for lr in (0.03, 0.1) for leaves in (7, 31))
    only: dict[str, Any] = {"models": ("trees",), "kinds": ("binary",), "why_not": BINARY_ONLY}
    return [
        Contender("boosted trees", "GradientBoosting", forest, "trees", {"class_weight": None}, **only),
        Contender("boosted trees, balanced", "GradientBoosting", forest, "trees", {"class_weight": "balanced"}, **only),
    ]


def _packages() -> list[Contender]:
    only: dict[str, Any] = {"kinds": ("binary",), "start": "zero"}
    reason = "one model is enough to compare the packages"
    of_libauc: dict[str, Any] = {**only, "series": "libauc", "models": ("MLP",), "why_not": reason}
    of_peer: dict[str, Any] = {**only, "series": "peer", "models": ("MLP",), "why_not": reason}
    return [
        # PESG is a form of SGD, whose learning rates are larger than Adam's
        Contender("LibAUC AUCM, PESG", "AUCMLoss", grid((0.03, 0.1, 0.3, 1.0)), **of_libauc),
        Contender("LibAUC AP, SOAP", "APLoss", grid(gamma=(0.1, 0.9)), **of_libauc),
        Contender("LibAUC pAUC, SOPA", "pAUC_CVaR_Loss", grid(beta=(0.1, 0.3)), **of_libauc),
        Contender("0.6.0 Smooth-AP 0.5", "SmoothAPLoss", RATES, options=AT_HALF, **of_peer),
    ]


# in training order: if time runs out, the last ones are missing
CONTENDERS = (*_references(), *_trees(), *_full_batch(), *_ranking(), *_packages(), *_variants())

# eight members by one vmap, beside the single MLP with its chosen setting: our losses that it takes alone on one label
ENSEMBLES = (
    BASELINE,
    "class weights, balanced",
    "VS",
    "focal",
    "ASL",
    "LDAM",
    "soft F1",
    "Smooth-AP 0.5",
    "recall",
    "pAUC pairwise, wide",
    "pAUC dro",
    "precision at recall",
)
MEMBERS = 8

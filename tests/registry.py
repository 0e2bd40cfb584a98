"""Every loss of the package once: what belongs to it, and the configurations in which the tests run it.

The tests take their tables from ``RANKING`` and ``ELEMENTWISE``, so a loss that has an entry here is in all of them:
values against its reference, limits, invariance, weights, degenerate batches, errors, derivatives, transforms, compiled
code, modules and processes. docs/adding_a_loss.md says how to write an entry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    PAUCAtBudgetLoss,
    RecallAtQuantileConfig,
    RecallAtQuantileLoss,
    SmoothAPConfig,
    SmoothAPLoss,
    metrics,
    pauc_at_budget,
    pauc_at_budget_per_class,
    recall_at_quantile,
    recall_at_quantile_per_class,
    smooth_ap,
    smooth_ap_per_class,
)
from tests.parity import reference
from tests.parity.reference import Reference
from tests.strategies import KINDS

Options = Mapping[str, Any]
Bad = tuple[str, Any, type[Exception]]


# --- ranking losses ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """Options of a ranking loss that take a way of their own through its code.

    Every variant is in the eager contract. In the small pools of the tests (14 live rows and 12 in the queue; or 6 and
    8) every class must be valid, with a loss between 0.01 and 0.99 and a gradient.
    """

    options: Options = field(default_factory=dict)
    main: bool = False
    """Its modules are copied, cast, saved, checkpointed and asked for diagnostics."""
    traced: bool = False
    """It is mapped, differentiated, compiled, run on meta tensors, with every backend and on several threads."""
    processes: tuple[str, ...] = ()
    """Kinds of targets on which several processes train it as one process does."""
    compiled: tuple[str, ...] = ()
    """Cases of tests/compiled that are in the suite, without the variant's name; the others run by themselves."""


@dataclass(frozen=True, kw_only=True)
class RankingLoss:
    """What belongs to one ranking loss."""

    function: Callable[..., Any]
    per_class: Callable[..., Any]
    config: type
    shell: type[nn.Module]
    signature: str
    """Of the shell's constructor: order and defaults are public."""
    reference: Reference
    """The loss of one class, written from its paper in NumPy."""
    metric: Callable[..., Tensor]
    """``metric(cfg, scores, targets, **options_of_metrics)``: what ``diagnostics()`` compares the loss with."""
    limit: Options
    """Options at which the metric is 1 - loss, if there are no ties, as the temperature goes to 0."""
    variants: Mapping[str, Variant]
    other: Options
    """A value other than the default for each field that is not in ``RankingConfig``; numbers exact in float32."""
    bad: tuple[Bad, ...]
    """Values that the config and the shell refuse, with the error, of the same fields."""
    silent: frozenset[str] = frozenset()
    """Fields whose ``other`` value need not change the loss of eight rows."""
    diagnostics: frozenset[str] = frozenset()
    """Names in ``PerClass.diagnostics``, and of what the shell returns with ``return_diagnostics``."""
    reported: frozenset[str] = frozenset()
    """Names in the shell's ``diagnostics()`` besides those of every loss."""
    smooth: bool = False
    """It has no threshold: its derivatives of every order exist everywhere."""
    needs_negatives: bool = True
    """A class without negatives is invalid."""
    uses_iid_mask: bool = False
    weighs_terms: bool = True
    """The loss is one minus the weighted mean of a term of each positive."""
    away_from_switches: Callable[[Tensor], tuple[Tensor, Options]] = lambda logits: (logits, {})
    """Live logits (those in the queue are in (-1, 1)) and options at which gradients are compared to differences."""


def away_from_the_threshold(logits: Tensor) -> tuple[Tensor, Options]:
    """Live scores outside the range of the queue, on both sides, and a threshold in the queue."""
    return torch.where(logits.abs() < 1.2, 2.0, logits), {"quantile": 0.6}


POOL_ARGUMENTS = "reduction='mean', ignore_index=-100, update_queue_in_eval=False, gather_distributed=None"
TAIL_ARGUMENTS = "validate_targets=True, grad_reduction='mean', group=None"

BAD_RANKING: tuple[Bad, ...] = (
    ("num_classes", 0, ValueError),
    ("num_classes", -3, ValueError),
    ("num_classes", 1.5, TypeError),
    ("temperature", 0.0, ValueError),
    ("temperature", -0.1, ValueError),
    ("temperature", 1e-60, ValueError),
    ("temperature", float("nan"), ValueError),
    ("temperature", float("inf"), ValueError),
    ("reduction", "avg", ValueError),
    ("reduction", None, ValueError),
    ("ignore_index", 0.5, TypeError),
    ("max_pool_size", 0, ValueError),
    ("max_pool_size", -1, ValueError),
    ("max_pool_size", 2.5, TypeError),
)
"""Of the fields that every ranking loss has."""

BAD_THRESHOLD: tuple[Bad, ...] = (
    ("quantile_interpolation", "cubic", ValueError),
    ("threshold_gradient", "soft", ValueError),
)

PAIRWISE = {"surrogate": "pairwise", "beta": 0.6}
BAND = {"tau_scale": "band", "budget_basis": "population"}
OF_THE_BAND = frozenset({"t_alpha", "t_beta", "tau_eff", "pauc_var", "band_neg_count", "grad_pos_count"})

RANKING: dict[str, RankingLoss] = {
    "smooth_ap": RankingLoss(
        function=smooth_ap,
        per_class=smooth_ap_per_class,
        config=SmoothAPConfig,
        shell=SmoothAPLoss,
        signature=f"(num_classes, queue_size=1024, temperature=0.01, {POOL_ARGUMENTS}, max_pool_size=None, "
        f"multilabel=False, *, {TAIL_ARGUMENTS})",
        reference=reference.SMOOTH_AP,
        metric=lambda cfg, *rows, **options: metrics.average_precision(*rows, **options),
        limit={"temperature": 1e-3},
        variants={
            "smooth_ap": Variant(main=True, traced=True, processes=tuple(KINDS), compiled=("function C=2 16+40",)),
        },
        other={},
        bad=(),
        smooth=True,
    ),
    "recall": RankingLoss(
        function=recall_at_quantile,
        per_class=recall_at_quantile_per_class,
        config=RecallAtQuantileConfig,
        shell=RecallAtQuantileLoss,
        signature=f"(num_classes, quantile=0.005, queue_size=1024, temperature=0.01, {POOL_ARGUMENTS}, "
        "quantile_interpolation='higher', max_pool_size=None, multilabel=False, *, threshold_gradient='stop', "
        f"{TAIL_ARGUMENTS})",
        reference=reference.RECALL,
        metric=lambda cfg, *rows, **options: metrics.recall_at_quantile(
            *rows, cfg.quantile, cfg.quantile_interpolation, **options
        ),
        limit={"temperature": 1e-3, "quantile": 0.1, "quantile_interpolation": "midpoint"},
        variants={
            "recall": Variant(
                {"quantile": 0.3}, main=True, traced=True, processes=("binary",), compiled=("module C=3 16+40",)
            ),
            "recall_implicit": Variant(
                {"quantile": 0.3, "threshold_gradient": "implicit", "quantile_interpolation": "linear"},
                traced=True,
                processes=("multiclass",),
                compiled=("function C=3m 16+40",),
            ),
        },
        other={"quantile": 0.25, "quantile_interpolation": "linear", "threshold_gradient": "implicit"},
        bad=(
            *BAD_THRESHOLD,
            ("quantile", -0.1, ValueError),
            ("quantile", 0.0, ValueError),
            ("quantile", 1.0, ValueError),
            ("quantile", 1.1, ValueError),
            ("quantile", float("nan"), ValueError),
        ),
        silent=frozenset({"quantile_interpolation", "threshold_gradient"}),
        reported=frozenset({"threshold"}),
        needs_negatives=False,
        away_from_switches=away_from_the_threshold,
    ),
    "pauc": RankingLoss(
        function=pauc_at_budget,
        per_class=pauc_at_budget_per_class,
        config=PAUCAtBudgetConfig,
        shell=PAUCAtBudgetLoss,
        signature="(num_classes, alpha=0.0, beta=0.005, surrogate='trapezoid', n_knots=2, tau_scale='iqr', "
        f"pos_numerator='pool', budget_basis='fpr', queue_size=1024, temperature=0.1, {POOL_ARGUMENTS}, "
        "quantile_interpolation='higher', max_pool_size=None, multilabel=False, *, threshold_gradient='stop', "
        f"{TAIL_ARGUMENTS})",
        reference=reference.PAUC,
        metric=lambda cfg, *rows, **options: metrics.partial_auc(*rows, cfg.alpha, cfg.beta, **options),
        limit={"temperature": 1e-6, "beta": 1.0, "surrogate": "pairwise", "tau_scale": "band"},
        variants={
            "trapezoid": Variant(
                {"alpha": 0.1, "beta": 0.6, "n_knots": 3},
                main=True,
                traced=True,
                processes=("binary",),
                compiled=("function C=2m 32+200",),
            ),
            "trapezoid_live": Variant(
                {"beta": 0.7, "pos_numerator": "live", "quantile_interpolation": "nearest", **BAND},
                processes=("multiclass",),
            ),
            "trapezoid_implicit": Variant(
                {"alpha": 0.1, "beta": 0.6, "n_knots": 4, "threshold_gradient": "implicit"},
            ),
            "trapezoid_population_implicit": Variant(
                {"beta": 0.7, "threshold_gradient": "implicit", **BAND},
                traced=True,
                compiled=("ensemble C=3 16+40",),
            ),
            "pairwise": Variant({"alpha": 0.1, **PAIRWISE}, main=True, processes=("binary",)),
            "pairwise_band": Variant(
                {"quantile_interpolation": "midpoint", **PAIRWISE, **BAND},
                traced=True,
                compiled=("function C=3 16+40",),
            ),
            "pairwise_live_implicit": Variant(
                {"pos_numerator": "live", "threshold_gradient": "implicit", **PAIRWISE},
                traced=True,
                processes=("binary",),
                compiled=("module C=1 32+1024",),
            ),
        },
        other={
            "alpha": 0.125,
            "beta": 0.5,
            "surrogate": "pairwise",
            "n_knots": 5,
            "tau_scale": "band",
            "pos_numerator": "live",
            "budget_basis": "population",
            "quantile_interpolation": "linear",
            "threshold_gradient": "implicit",
        },
        bad=(
            *BAD_THRESHOLD,
            ("alpha", -0.1, ValueError),
            ("alpha", float("nan"), ValueError),
            ("alpha", 0.5, ValueError),  # beta is 0.005
            ("alpha", 0.005, ValueError),
            ("beta", 1.1, ValueError),
            ("beta", 0.0, ValueError),
            ("beta", float("nan"), ValueError),
            ("n_knots", 1, ValueError),
            ("n_knots", 2.5, TypeError),
            ("surrogate", "simpson", ValueError),
            ("tau_scale", "mad", ValueError),
            ("pos_numerator", "queue", ValueError),
            ("budget_basis", "tpr", ValueError),
        ),
        silent=frozenset(
            {
                "quantile_interpolation",
                "threshold_gradient",
                "tau_scale",
                "n_knots",
                "pos_numerator",
                "budget_basis",
            }
        ),
        diagnostics=OF_THE_BAND,
        reported=OF_THE_BAND,
        uses_iid_mask=True,
    ),
}

VARIANTS: dict[str, tuple[RankingLoss, Variant]] = {
    name: (loss, variant) for loss in RANKING.values() for name, variant in loss.variants.items()
}
MAIN = {name: entry for name, entry in VARIANTS.items() if entry[1].main}
TRACED = {name: entry for name, entry in VARIANTS.items() if entry[1].traced}


def make_main(name: str, num_classes: int = 1, **more: Any) -> Any:
    """The module of a main variant, at a temperature that is not cold."""
    loss, variant = MAIN[name]
    return loss.shell(num_classes, **{"temperature": 0.5, **variant.options, **more})

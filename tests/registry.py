"""Every loss of the package once: what belongs to it, and the configurations in which the tests run it.

The tests take their tables from ``RANKING`` and ``ELEMENTWISE``, so a loss that has an entry here is in all of them:
values against its reference, limits, invariance, weights, degenerate batches, errors, derivatives, transforms, compiled
code, modules and processes. docs/adding_a_loss.md says how to write an entry. The retrieval losses take embeddings
instead of scores and are not here: tests/losses/test_retrieval_*.py and tests/modules/test_retrieval_shell.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from imbalanced_losses import (
    AsymmetricConfig,
    AsymmetricLoss,
    FPRAtRecallConfig,
    FPRAtRecallLoss,
    LDAMConfig,
    LDAMLoss,
    LogitAdjustedConfig,
    LogitAdjustedLoss,
    PAUCAtBudgetConfig,
    PAUCAtBudgetLoss,
    PrecisionAtRecallConfig,
    PrecisionAtRecallLoss,
    RecallAtQuantileConfig,
    RecallAtQuantileLoss,
    SigmoidFocalConfig,
    SigmoidFocalLoss,
    SmoothAPConfig,
    SmoothAPLoss,
    SoftFBetaConfig,
    SoftFBetaLoss,
    SoftmaxFocalConfig,
    SoftmaxFocalLoss,
    asymmetric,
    class_priors,
    fpr_at_recall,
    fpr_at_recall_per_class,
    ldam,
    logit_adjusted,
    metrics,
    pauc_at_budget,
    pauc_at_budget_per_class,
    precision_at_recall,
    precision_at_recall_per_class,
    recall_at_quantile,
    recall_at_quantile_per_class,
    sigmoid_focal,
    smooth_ap,
    smooth_ap_per_class,
    soft_fbeta,
    soft_fbeta_per_class,
    softmax_focal,
)
from imbalanced_losses.kernels import asymmetric as asymmetric_kernel
from imbalanced_losses.kernels import focal as focal_kernel
from tests.losses import reference as elementwise_reference
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
    8) every class must be valid, with a loss between 0.01 and 0.99 (if ``bounded``) and a gradient.
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
    bounded: bool = True
    """The loss is at most 1."""
    weighs_terms: bool = True
    """The loss is one minus the weighted mean of a term of each positive."""
    diagnostics: frozenset[str] = frozenset()
    """Names in ``PerClass.diagnostics`` besides those of the loss."""

    @property
    def most(self) -> float:
        """The largest loss."""
        return 1.0 if self.bounded else math.inf


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
    needed: Mapping[str, Options] = field(default_factory=dict)
    """Other options without which an option does nothing."""
    silent: frozenset[str] = frozenset()
    """Fields whose ``other`` value need not change the loss of eight rows."""
    wide: Options = field(default_factory=dict)
    """Options, if the defaults look at too few of eight rows for others to differ."""
    diagnostics: frozenset[str] = frozenset()
    """Names in ``PerClass.diagnostics``."""
    returns_diagnostics: bool = False
    """The shell takes ``return_diagnostics`` and gives them, and ``per_class`` takes ``diagnose``."""
    reported: frozenset[str] = frozenset()
    """Names in the shell's ``diagnostics()`` besides those of every loss."""
    smooth: bool = False
    """It has no threshold: its derivatives of every order exist everywhere."""
    needs_negatives: bool = True
    """A class without negatives is invalid."""
    uses_iid_mask: bool = False
    weighs_negatives: bool = False
    """Weights count at negatives, too: a row without weight counts nowhere."""
    shift_invariant: bool = True
    """It looks at differences of scores alone."""
    in_score_units: tuple[str, ...] = ("temperature",)
    """Options that have to be scaled with the scores, unless ``tau_scale`` does so for the temperature."""
    away_from_switches: Callable[[Tensor], tuple[Tensor, Options]] = lambda logits: (logits, {})
    """Live logits (those in the queue are in (-1, 1)) and options at which gradients are compared to differences."""


def away_from_the_threshold(logits: Tensor) -> tuple[Tensor, Options]:
    """Live scores outside the range of the queue, on both sides, and a threshold in the queue."""
    return torch.where(logits.abs() < 1.2, 2.0, logits), {"quantile": 0.6}


def away_from_a_recall(logits: Tensor) -> tuple[Tensor, Options]:
    """As above, with half of the positives to find."""
    return torch.where(logits.abs() < 1.2, 2.0, logits), {"recall": 0.5}


def f_beta(
    cfg: Any,
    scores: Tensor,
    targets: Tensor,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    sample_weight: Tensor | None = None,
) -> Tensor:
    """F-beta of the decisions ``s > -eta``; scikit-learn's."""
    from sklearn.metrics import fbeta_score  # a second that the processes of tests/distributed need not spend

    columns = scores.reshape(len(targets), -1).unbind(1)
    found = []
    for label, column in enumerate(columns):
        own = targets[:, label] if multilabel else targets
        kept = own != ignore_index
        positive = own[kept] == (1 if multilabel or len(columns) == 1 else label)
        weight = None if sample_weight is None else sample_weight[kept].numpy()
        alerts = column[kept] > -cfg.eta
        counted = positive.any() and (weight is None or (weight * positive.numpy()).sum() > 0)
        value = fbeta_score(positive, alerts, beta=cfg.beta, sample_weight=weight, zero_division=0.0)
        found.append(value if counted else torch.nan)
    return torch.tensor(found, dtype=scores.dtype).squeeze()


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
    ("tau_scale", "mad", ValueError),
    ("tau_scale", None, ValueError),
)
"""Of the fields that every ranking loss has."""

BAD_THRESHOLD: tuple[Bad, ...] = (
    ("quantile_interpolation", "cubic", ValueError),
    ("threshold_gradient", "soft", ValueError),
)

PAIRWISE = {"surrogate": "pairwise", "beta": 0.6}
BAND = {"tau_scale": "band", "budget_basis": "population"}
OF_THE_BAND = frozenset({"t_alpha", "t_beta", "tau_eff", "pauc_var", "band_neg_count", "grad_pos_count"})
OF_DRO = frozenset({"effective_beta"})
AT_RECALL_SIGNATURE = (
    f"(num_classes, recall=0.8, queue_size=1024, temperature=0.01, {POOL_ARGUMENTS}, max_pool_size=None, "
    f"multilabel=False, *, threshold_gradient='implicit', {TAIL_ARGUMENTS}, tau_scale='none')"
)
BAD_RECALL: tuple[Bad, ...] = (
    BAD_THRESHOLD[1],
    ("recall", 0.0, ValueError),
    ("recall", 1.1, ValueError),
    ("recall", float("nan"), ValueError),
)

RANKING: dict[str, RankingLoss] = {
    "smooth_ap": RankingLoss(
        function=smooth_ap,
        per_class=smooth_ap_per_class,
        config=SmoothAPConfig,
        shell=SmoothAPLoss,
        signature=f"(num_classes, queue_size=1024, temperature=0.01, {POOL_ARGUMENTS}, max_pool_size=None, "
        f"multilabel=False, *, {TAIL_ARGUMENTS}, tau_scale='none')",
        reference=reference.SMOOTH_AP,
        metric=lambda cfg, *rows, **options: metrics.average_precision(*rows, **options),
        limit={"temperature": 1e-3},
        variants={
            "smooth_ap": Variant(main=True, traced=True, processes=tuple(KINDS), compiled=("function C=2 16+40",)),
            "smooth_ap_std": Variant({"tau_scale": "std"}, traced=True),
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
        f"{TAIL_ARGUMENTS}, budget_basis='population', tau_scale='none')",
        reference=reference.RECALL,
        metric=lambda cfg, *rows, **options: metrics.recall_at_quantile(
            *rows, cfg.quantile, cfg.quantile_interpolation, budget_basis=cfg.budget_basis, **options
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
            "recall_fpr_iqr": Variant(
                {"quantile": 0.3, "budget_basis": "fpr", "tau_scale": "iqr"},
                traced=True,
                processes=("multilabel",),
            ),
        },
        other={
            "quantile": 0.25,
            "quantile_interpolation": "linear",
            "threshold_gradient": "implicit",
            "budget_basis": "fpr",
        },
        bad=(
            *BAD_THRESHOLD,
            ("quantile", -0.1, ValueError),
            ("quantile", 0.0, ValueError),
            ("quantile", 1.0, ValueError),
            ("quantile", 1.1, ValueError),
            ("quantile", float("nan"), ValueError),
            ("budget_basis", "tpr", ValueError),
        ),
        silent=frozenset({"quantile_interpolation", "threshold_gradient", "budget_basis"}),
        wide={"temperature": 0.5},
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
        f"{TAIL_ARGUMENTS}, margin=1.0, positive_temperature=None, min_tpr=0.0)",
        reference=reference.PAUC,
        metric=lambda cfg, *rows, **options: metrics.partial_auc(
            *rows, cfg.alpha, cfg.beta, min_tpr=cfg.min_tpr, **options
        ),
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
                {"pos_numerator": "live", "threshold_gradient": "implicit", **PAIRWISE, "beta": 0.9},
                traced=True,
                processes=("binary",),
                compiled=("module C=1 32+1024",),
            ),
            "trapezoid_floor": Variant({"beta": 0.7, "tau_scale": "std", "min_tpr": 0.45}, weighs_terms=False),
            "pairwise_floor": Variant(
                {"tau_scale": "none", "min_tpr": 0.45, **PAIRWISE}, weighs_terms=False, processes=("multilabel",)
            ),
            "dro": Variant(
                {"surrogate": "dro"},
                main=True,
                traced=True,
                processes=("multiclass",),
                compiled=("function C=3 16+40",),
                bounded=False,
                weighs_terms=False,
                diagnostics=OF_DRO,
            ),
            "dro_two_way": Variant(
                {"surrogate": "dro", "positive_temperature": 0.7, "margin": 0.6, "budget_basis": "population"},
                processes=("binary",),
                bounded=False,
                weighs_terms=False,
                diagnostics=OF_DRO,
            ),
            "dro_floor": Variant(
                {"surrogate": "dro", "min_tpr": 0.45, "pos_numerator": "live"},
                bounded=False,
                weighs_terms=False,
                diagnostics=OF_DRO,
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
            "margin": 0.5,
            "positive_temperature": 0.5,
            "min_tpr": 0.25,
        },
        needed={name: {"surrogate": "dro"} for name in ("margin", "positive_temperature")},
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
            ("pos_numerator", "queue", ValueError),
            ("budget_basis", "tpr", ValueError),
            ("margin", 0.0, ValueError),
            ("margin", float("nan"), ValueError),
            ("positive_temperature", 0.0, ValueError),
            ("positive_temperature", 1e-60, ValueError),
            ("positive_temperature", 0.5, ValueError),  # surrogate is "trapezoid"
            ("min_tpr", -0.1, ValueError),
            ("min_tpr", 1.0, ValueError),
            ("min_tpr", float("nan"), ValueError),
        ),
        silent=frozenset(
            {
                "quantile_interpolation",
                "threshold_gradient",
                "tau_scale",
                "n_knots",
                "pos_numerator",
                "budget_basis",
                "min_tpr",
            }
        ),
        wide={"beta": 0.4},
        diagnostics=OF_THE_BAND,
        returns_diagnostics=True,
        reported=OF_THE_BAND,
        uses_iid_mask=True,
    ),
    "precision_at_recall": RankingLoss(
        function=precision_at_recall,
        per_class=precision_at_recall_per_class,
        config=PrecisionAtRecallConfig,
        shell=PrecisionAtRecallLoss,
        signature=AT_RECALL_SIGNATURE,
        reference=reference.PRECISION_AT_RECALL,
        metric=lambda cfg, *rows, **options: metrics.precision_at_recall(*rows, cfg.recall, **options),
        limit={"temperature": 1e-3, "recall": 0.7},
        variants={
            "precision_at_recall": Variant(
                {"recall": 0.7},
                main=True,
                traced=True,
                processes=("multiclass",),
                compiled=("function C=3 16+40",),
                weighs_terms=False,
            ),
            "precision_at_recall_stop": Variant(
                {"recall": 0.7, "threshold_gradient": "stop", "tau_scale": "iqr"}, weighs_terms=False
            ),
        },
        other={"recall": 0.5, "threshold_gradient": "stop"},
        bad=BAD_RECALL,
        silent=frozenset({"recall", "threshold_gradient"}),
        diagnostics=frozenset({"threshold", "recall"}),
        reported=frozenset({"threshold", "recall"}),
        weighs_negatives=True,
        away_from_switches=away_from_a_recall,
    ),
    "fpr_at_recall": RankingLoss(
        function=fpr_at_recall,
        per_class=fpr_at_recall_per_class,
        config=FPRAtRecallConfig,
        shell=FPRAtRecallLoss,
        signature=AT_RECALL_SIGNATURE,
        reference=reference.FPR_AT_RECALL,
        metric=lambda cfg, *rows, **options: 1 - metrics.fpr_at_recall(*rows, cfg.recall, **options),
        limit={"temperature": 1e-3, "recall": 0.7},
        variants={
            "fpr_at_recall": Variant(
                {"recall": 0.7},
                main=True,
                traced=True,
                processes=("binary",),
                compiled=("module C=1 32+1024",),
                weighs_terms=False,
            ),
            "fpr_at_recall_stop": Variant({"recall": 0.45, "threshold_gradient": "stop"}, weighs_terms=False),
        },
        other={"recall": 0.5, "threshold_gradient": "stop"},
        bad=BAD_RECALL,
        silent=frozenset({"recall", "threshold_gradient"}),
        diagnostics=frozenset({"threshold", "recall"}),
        reported=frozenset({"threshold", "recall"}),
        weighs_negatives=True,
        away_from_switches=away_from_a_recall,
    ),
    "soft_fbeta": RankingLoss(
        function=soft_fbeta,
        per_class=soft_fbeta_per_class,
        config=SoftFBetaConfig,
        shell=SoftFBetaLoss,
        signature="(num_classes, beta=1.0, eta=0.0, queue_size=1024, temperature=1.0, "
        f"{POOL_ARGUMENTS}, max_pool_size=None, multilabel=False, *, {TAIL_ARGUMENTS}, tau_scale='none')",
        reference=reference.SOFT_FBETA,
        metric=f_beta,
        limit={"temperature": 1e-3, "eta": 0.5, "beta": 2.0},
        variants={
            "soft_fbeta": Variant(
                {"beta": 2.0},
                main=True,
                traced=True,
                processes=("multilabel",),
                compiled=("function C=3m 16+40",),
                weighs_terms=False,
            ),
            "soft_fbeta_offset": Variant({"beta": 0.5, "eta": -0.25, "tau_scale": "std"}, weighs_terms=False),
        },
        other={"beta": 2.0, "eta": 0.5},
        bad=(
            ("beta", 0.0, ValueError),
            ("beta", float("nan"), ValueError),
            ("eta", float("inf"), ValueError),
            ("eta", "low", TypeError),
        ),
        smooth=True,
        needs_negatives=False,
        weighs_negatives=True,
        shift_invariant=False,
        in_score_units=("temperature", "eta"),
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


# --- elementwise losses -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Elements:
    """One configuration of an elementwise loss, and its logits ``[N, *rest]``."""

    options: Options = field(default_factory=dict)
    rest: tuple[int, ...] = ()
    labels: bool = False
    """Targets are labels in [0, 1] of the logits' shape, and not class ids with the classes on axis 1."""
    soft: bool = False
    """Labels between 0 and 1."""
    rounding: float = 2e-7
    """Error of the loss in float32 at logits of 20 to 10,000, relative to the logits."""
    stream: Options | None = None
    """Arguments with which the module takes the place of ``options`` by what it counts: one more module to test."""
    processes: bool = False
    """Several processes train it as one process does; with logits ``[N, 3]``."""
    compiled: tuple[str, ...] = ()
    """Cases of tests/compiled in the suite, as in ``Variant``; the whole matrix has it if there are some."""


Patch = Callable[[Any], None]


@dataclass(frozen=True, kw_only=True)
class ElementwiseLoss:
    """What belongs to one elementwise loss."""

    function: Callable[..., Tensor]
    config: type
    shell: type[nn.Module]
    signature: str
    """Of the shell's constructor."""
    function_signature: str
    reference: Callable[..., Any]
    """``reference(logits, targets, cfg)``, all NumPy, float64: the loss of every target, 0 where it is ignored."""
    variants: Mapping[str, Elements]
    other: Options
    """A value other than the default for each field of the configuration; numbers exact in float32."""
    bad: tuple[Bad, ...]
    """Values that the config and the shell refuse, with the error."""
    required: Options = field(default_factory=dict)
    """Fields without which there is no loss."""
    silent: frozenset[str] = frozenset()
    """Fields whose ``other`` value need not change the loss of eight rows."""
    reductions: tuple[str, ...] = ("mean", "sum", "none")
    weighing_rounds: float = 0.0
    """Relative error that weights of 1 may make: 0 if they change no bit."""
    rules_out: bool = False
    """A logit of -inf rules its class out of a softmax, so that the loss stays finite."""
    arguments_of: Callable[[Any], dict[str, Tensor]] = lambda shell: {}
    """Arguments that make the function compute what the shell does, besides its configuration."""
    paths: Mapping[str, Patch] = field(default_factory=lambda: {"": lambda monkeypatch: None})
    """Ways through the code that sizes choose, as patches that choose them for small inputs."""


FOCAL_PATHS: dict[str, Patch] = {
    "few": lambda monkeypatch: None,
    "many": lambda monkeypatch: monkeypatch.setattr(focal_kernel, "FEW_LOGITS", 0),
}


def of_blocks(monkeypatch: Any) -> None:
    """The backward of the asymmetric loss recomputes block by block."""
    monkeypatch.setattr(focal_kernel, "FEW_LOGITS", 0)
    monkeypatch.setattr(asymmetric_kernel, "SIGMOID_BLOCK", 5)


def without_reading(monkeypatch: Any) -> None:
    of_blocks(monkeypatch)
    monkeypatch.setattr(asymmetric_kernel, "may_branch_on_values", lambda *_: False)


ASYMMETRIC_PATHS: dict[str, Patch] = {"few": FOCAL_PATHS["few"], "many": of_blocks, "accelerator": without_reading}
N_CLASSES = 4
COUNTS = (700, 250, 49, 1)
SHARES = (0.6, 0.02, 0.0, 1.0)
ALPHA = (1.0, 0.5, 0.0, 2.0)


def priors_in(shell: Any) -> dict[str, Tensor]:
    """The priors that a logit-adjusted module uses in its next call."""
    priors = class_priors(shell.class_counts) if shell.num_classes is not None else shell.priors
    return {"priors": priors.clone()}


ELEMENTWISE: dict[str, ElementwiseLoss] = {
    "sigmoid_focal": ElementwiseLoss(
        function=sigmoid_focal,
        config=SigmoidFocalConfig,
        shell=SigmoidFocalLoss,
        signature=f"(alpha=0.25, gamma=2.0, reduction='mean', ignore_index=None, gather_distributed=None, *, "
        f"{TAIL_ARGUMENTS})",
        function_signature="(logits, targets, cfg, *, sample_weight=None)",
        reference=elementwise_reference.sigmoid_focal,
        variants={
            "sigmoid_focal": Elements({}, (), labels=True),
            "sigmoid_focal_soft": Elements({"alpha": -1, "gamma": 0.3}, (3,), labels=True, soft=True),
            "sigmoid_focal_ignore": Elements(
                {"alpha": 0.6, "gamma": 1.5, "ignore_index": -1}, (2, 2), labels=True, soft=False
            ),
            "sigmoid_focal_padded": Elements(
                {"ignore_index": -100}, (3,), labels=True, compiled=("function C=3m 600+0",)
            ),
            "sigmoid_focal_trained": Elements({}, (3,), labels=True, processes=True),
        },
        other={"alpha": 0.75, "gamma": 1.5, "reduction": "sum", "ignore_index": 1},
        bad=(
            ("alpha", 1.1, ValueError),
            ("alpha", -0.5, ValueError),
            ("alpha", float("nan"), ValueError),
            ("gamma", -1.0, ValueError),
            ("gamma", float("inf"), ValueError),
            ("reduction", "mean_positive", ValueError),
            ("ignore_index", 0.5, TypeError),
        ),
        paths=FOCAL_PATHS,
    ),
    "softmax_focal": ElementwiseLoss(
        function=softmax_focal,
        config=SoftmaxFocalConfig,
        shell=SoftmaxFocalLoss,
        signature="(alpha=None, gamma=2.0, reduction='mean', ignore_index=-100, background_class=0, "
        f"label_smoothing=0.0, gather_distributed=None, *, {TAIL_ARGUMENTS})",
        function_signature="(logits, targets, cfg, *, alpha=None, sample_weight=None)",
        reference=elementwise_reference.softmax_focal,
        variants={
            "softmax_focal": Elements({}, (N_CLASSES,), compiled=("function C=10 2000+0", "function C=3 16+0")),
            "softmax_focal_trained": Elements({}, (3,), processes=True),
            "softmax_focal_alpha": Elements({"alpha": ALPHA, "gamma": 1.0, "ignore_index": 255}, (N_CLASSES, 2)),
            "softmax_focal_smooth": Elements(
                {"alpha": (1.0, 0.5, 3.0, 2.0), "gamma": 0.3, "label_smoothing": 0.25, "reduction": "mean_positive"},
                (N_CLASSES, 2, 2),
                rounding=2e-6,  # the power of a probability that underflows
            ),
        },
        other={
            "alpha": (0.5, 1.0, 2.0),
            "gamma": 1.5,
            "reduction": "sum",
            "ignore_index": 1,
            "background_class": 1,
            "label_smoothing": 0.125,
        },
        bad=(
            ("alpha", (1.0, -1.0), ValueError),
            ("alpha", (1.0, float("nan")), ValueError),
            ("gamma", float("nan"), ValueError),
            ("reduction", "median", ValueError),
            ("ignore_index", None, TypeError),
            ("background_class", -1, ValueError),
            ("label_smoothing", 1.5, ValueError),
        ),
        silent=frozenset({"background_class"}),
        reductions=("mean", "sum", "none", "mean_positive"),
        rules_out=True,
        arguments_of=lambda shell: {} if shell.alpha is None else {"alpha": shell.alpha},
        paths=FOCAL_PATHS,
    ),
    "logit_adjusted": ElementwiseLoss(
        function=logit_adjusted,
        config=LogitAdjustedConfig,
        shell=LogitAdjustedLoss,
        signature="(priors, tau=1.0, gamma=0.0, reduction='mean', ignore_index=-100, label_smoothing=0.0, "
        f"multilabel=False, gather_distributed=None, *, num_classes=None, {TAIL_ARGUMENTS})",
        function_signature="(logits, targets, cfg, *, priors=None, sample_weight=None)",
        reference=elementwise_reference.logit_adjusted,
        variants={
            "logit_adjusted": Elements(
                {"priors": COUNTS},
                (N_CLASSES,),
                stream={"priors": "stream", "num_classes": N_CLASSES},
                compiled=("function C=3 16+0", "module C=10 600+0"),
            ),
            "logit_adjusted_tau": Elements({"priors": COUNTS, "tau": 0.7, "label_smoothing": 0.1}, (N_CLASSES,)),
            "logit_adjusted_vs": Elements({"priors": (0.4, 0.3, 0.2, 0.1), "tau": 1.5, "gamma": 0.4}, (N_CLASSES, 3)),
            "logit_adjusted_cdt": Elements(
                {"priors": COUNTS, "tau": 0.0, "gamma": 0.2},
                (N_CLASSES, 2, 3),
                stream={"priors": "stream", "num_classes": N_CLASSES},
            ),
            "logit_adjusted_unseen": Elements({"priors": (10, 0, 5, 5), "gamma": 0.1}, (N_CLASSES,)),
            "logit_adjusted_trained": Elements(
                {"priors": (5, 3, 2), "gamma": 0.3},
                (3,),
                stream={"priors": "stream", "num_classes": 3},
                processes=True,
            ),
            "logit_adjusted_binary": Elements(
                {"priors": 0.05}, labels=True, stream={"priors": "stream", "num_classes": 1}
            ),
            "logit_adjusted_binary_vs": Elements({"priors": (0.1,), "gamma": 0.3}, (1,), labels=True),
            "logit_adjusted_binary_counts": Elements(
                {"priors": (190, 10), "tau": 1.2, "gamma": 0.3}, (1,), labels=True
            ),
            "logit_adjusted_labels": Elements(
                {"priors": SHARES, "multilabel": True},
                (N_CLASSES,),
                labels=True,
                stream={"priors": "stream", "num_classes": N_CLASSES},
                compiled=("function C=3m 600+0",),
            ),
            "logit_adjusted_labels_vs": Elements(
                {"priors": (0.6, 0.02, 0.1, 0.5), "gamma": 0.5, "multilabel": True}, (N_CLASSES, 2), labels=True
            ),
            "logit_adjusted_labels_soft": Elements(
                {"priors": SHARES, "multilabel": True}, (N_CLASSES,), labels=True, soft=True
            ),
        },
        other={
            "priors": (1.0, 1.0, 2.0),
            "tau": 0.5,
            "gamma": 0.75,
            "reduction": "sum",
            "ignore_index": 1,
            "label_smoothing": 0.25,
            "multilabel": True,
        },
        bad=(
            ("tau", -1.0, ValueError),
            ("gamma", float("inf"), ValueError),
            ("reduction", "max", ValueError),
            ("label_smoothing", 2, ValueError),
            ("multilabel", 1, TypeError),
            ("ignore_index", 0.5, TypeError),
            ("priors", (1, -1), ValueError),
            ("priors", (0, 0), ValueError),
            ("priors", (), ValueError),
        ),
        required={"priors": (0.25, 0.5, 0.25)},
        weighing_rounds=1e-6,  # torch's own mean is used where there are none
        rules_out=True,
        arguments_of=priors_in,
    ),
    "asymmetric": ElementwiseLoss(
        function=asymmetric,
        config=AsymmetricConfig,
        shell=AsymmetricLoss,
        signature="(gamma_pos=1.0, gamma_neg=4.0, margin=0.05, reduction='mean', ignore_index=None, "
        f"gather_distributed=None, *, {TAIL_ARGUMENTS})",
        function_signature="(logits, targets, cfg, *, sample_weight=None)",
        reference=elementwise_reference.asymmetric,
        variants={
            "asymmetric": Elements(
                {"ignore_index": -100}, (3,), labels=True, processes=True, compiled=("function C=3m 600+0",)
            ),
            "asymmetric_roots": Elements(
                {"margin": 0.1, "gamma_pos": 0.5, "gamma_neg": 0.3, "ignore_index": -100},
                labels=True,
                compiled=("function C=1 16+0",),
            ),
            "asymmetric_soft": Elements({"margin": 0.0, "gamma_pos": 2.0}, (2, 3), labels=True, soft=True),
        },
        other={"gamma_pos": 0.5, "gamma_neg": 1.5, "margin": 0.25, "reduction": "sum", "ignore_index": 1},
        bad=(
            ("gamma_pos", -1.0, ValueError),
            ("gamma_neg", float("inf"), ValueError),
            ("gamma_neg", "4", TypeError),
            ("margin", -0.1, ValueError),
            ("margin", 1.5, ValueError),
            ("reduction", "max", ValueError),
            ("ignore_index", 0.5, TypeError),
        ),
        paths=ASYMMETRIC_PATHS,
    ),
    "ldam": ElementwiseLoss(
        function=ldam,
        config=LDAMConfig,
        shell=LDAMLoss,
        signature="(counts, max_margin=0.5, scale=30.0, class_weights=None, reduction='mean', ignore_index=-100, "
        f"gather_distributed=None, *, {TAIL_ARGUMENTS})",
        function_signature="(logits, targets, cfg, *, counts=None, class_weights=None, sample_weight=None)",
        reference=elementwise_reference.ldam,
        variants={
            "ldam": Elements(
                {"counts": COUNTS, "scale": 2.0}, (N_CLASSES,), rounding=5e-7, compiled=("function C=3 16+0",)
            ),
            "ldam_weights": Elements(
                {"counts": COUNTS, "scale": 1.0, "max_margin": 2.0, "class_weights": (0.1, 0.4, 1.5, 2.0)},
                (N_CLASSES, 2, 2),
                rounding=5e-7,
            ),
            "ldam_unseen": Elements({"counts": (10, 0, 5, 5), "scale": 3.0}, (N_CLASSES,), rounding=1e-6),
            "ldam_trained": Elements({"counts": (5, 3, 2), "scale": 3.0}, (3,), rounding=1e-6, processes=True),
            "ldam_binary": Elements({"counts": (190, 10), "scale": 2.0}, labels=True, rounding=5e-7),
            "ldam_binary_soft": Elements(
                {"counts": (0.9, 0.1), "scale": 4.0, "class_weights": (0.5, 1.5)},
                (1, 3),
                labels=True,
                soft=True,
                rounding=2e-6,
            ),
        },
        other={
            "counts": (1.0, 1.0, 2.0),
            "max_margin": 0.25,
            "scale": 2.0,
            "class_weights": (0.5, 1.0, 2.0),
            "reduction": "sum",
            "ignore_index": 1,
        },
        bad=(
            ("max_margin", -1.0, ValueError),
            ("scale", 0, ValueError),
            ("reduction", "max", ValueError),
            ("ignore_index", 0.5, TypeError),
            ("counts", (1, -1), ValueError),
            ("counts", (0, 0), ValueError),
            ("counts", (), ValueError),
            ("class_weights", (1, -1), ValueError),
            ("class_weights", "balanced", TypeError),
        ),
        required={"counts": (8, 4, 1)},
        rules_out=True,
        arguments_of=lambda shell: {
            name: getattr(shell, name) for name in ("counts", "class_weights") if getattr(shell, name) is not None
        },
    ),
}


def shells_of_every_loss(named: Mapping[str, tuple[str, Options]]) -> dict[str, tuple[type[nn.Module], dict[str, Any]]]:
    """Shell and options by name: those that are given as (ranking loss, options), and each other loss as it is."""
    given = {key for key, _ in named.values()}
    every = {**{key: (key, {}) for key in RANKING if key not in given}, **named}
    return {name: (RANKING[key].shell, dict(options)) for name, (key, options) in every.items()}


def most_of(shell: type[nn.Module]) -> float:
    """The largest loss of a module with its first options."""
    (entry,) = (one for one in RANKING.values() if one.shell is shell)
    return next(iter(entry.variants.values())).most

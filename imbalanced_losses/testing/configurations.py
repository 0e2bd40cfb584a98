"""Hypothesis strategies for the configurations of the losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from hypothesis import strategies as st

from imbalanced_losses import (
    AsymmetricConfig,
    FPRAtRecallConfig,
    LDAMConfig,
    LogitAdjustedConfig,
    PAUCAtBudgetConfig,
    PrecisionAtRecallConfig,
    RecallAtKConfig,
    RecallAtQuantileConfig,
    RetrievalAPConfig,
    SigmoidFocalConfig,
    SmoothAPConfig,
    SoftFBetaConfig,
    SoftmaxFocalConfig,
)

__all__ = ["config_fields", "configs"]

Config = TypeVar("Config")
Choices = Mapping[str, list[Any]]

_REDUCTIONS = ["mean", "sum", "none"]
_RANKING: Choices = {
    "temperature": [0.5, 0.05, 2.0],
    "reduction": _REDUCTIONS,
    "tau_scale": ["none", "std", "iqr"],
}
_RETRIEVAL: Choices = {
    "temperature": [0.5, 0.05, 2.0],
    "reduction": _REDUCTIONS,
    "similarity": ["cosine", "dot"],
}
_THRESHOLD: Choices = {
    "quantile_interpolation": ["higher", "lower", "linear", "midpoint", "nearest"],
    "threshold_gradient": ["stop", "implicit"],
}
_AT_RECALL: Choices = {
    **_RANKING,
    "recall": [0.0103, 0.1237, 0.4871, 0.9013, 1.0],
    "threshold_gradient": ["stop", "implicit"],
}
# No order statistic of up to 40 rows is exactly at one of these budgets, where the result would depend on rounding.
_CHOICES: Mapping[type, Choices] = {
    SmoothAPConfig: _RANKING,
    RecallAtQuantileConfig: {
        **_RANKING,
        **_THRESHOLD,
        "quantile": [0.0103, 0.1237, 0.4871, 0.9013, 0.9897],
        "budget_basis": ["population", "fpr"],
    },
    PrecisionAtRecallConfig: _AT_RECALL,
    FPRAtRecallConfig: _AT_RECALL,
    SoftFBetaConfig: {**_RANKING, "beta": [0.5, 1.0, 2.0], "eta": [-0.75, 0.0, 0.5]},
    PAUCAtBudgetConfig: {
        **_RANKING,
        **_THRESHOLD,
        "alpha": [0.0, 0.0713, 0.2617],
        "beta": [0.3719, 0.7321, 1.0],
        "surrogate": ["trapezoid", "pairwise", "dro"],
        "n_knots": [2, 3, 5],
        "tau_scale": ["iqr", "band", "std", "none"],
        "pos_numerator": ["pool", "live"],
        "budget_basis": ["fpr", "population"],
        "margin": [1.0, 0.25],
        "positive_temperature": [None, 0.5],
        "min_tpr": [0.0, 0.3137],
    },
    RetrievalAPConfig: {
        **_RETRIEVAL,
        "surrogate": ["sigmoid", "sup"],
        "rho": [100.0, 10.0],
        "delta": [0.05, 0.2],
        "calibration_weight": [0.0, 0.5],
        "positive_target": [0.9, 0.7],
        "negative_target": [0.6, 0.3],
    },
    RecallAtKConfig: {**_RETRIEVAL, "k": [(1, 2, 4, 8, 16), (1,), (3, 5)], "rank_temperature": [1.0, 0.5]},
    SigmoidFocalConfig: {
        "alpha": [-1.0, 0.25, 0.0, 1.0],
        "gamma": [0.0, 0.5, 1.0, 2.0, 3.7],
        "reduction": _REDUCTIONS,
        "ignore_index": [-100],
    },
    SoftmaxFocalConfig: {
        "gamma": [0.0, 0.5, 1.0, 2.0, 3.7],
        "reduction": ["mean", "sum", "none", "mean_positive"],
        "background_class": [0, 1],
        "label_smoothing": [0.0, 0.1, 0.5],
    },
    LogitAdjustedConfig: {
        "tau": [1.0, 0.0, 0.5],
        "gamma": [0.0, 0.2],
        "reduction": _REDUCTIONS,
        "label_smoothing": [0.0, 0.1],
    },
    AsymmetricConfig: {
        "gamma_pos": [1.0, 0.0, 0.5],
        "gamma_neg": [4.0, 0.0, 0.5],
        "margin": [0.05, 0.0, 0.3],
        "reduction": _REDUCTIONS,
    },
    LDAMConfig: {"max_margin": [0.5, 0.0, 2.0], "scale": [30.0, 1.0], "reduction": _REDUCTIONS},
}


def config_fields(config: type, **fixed: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Draw keyword arguments of ``config``, except those that the batch's shape determines, that fit those given."""
    if config not in _CHOICES:
        known = ", ".join(own.__name__ for own in _CHOICES)
        raise TypeError(f"expected one of {known}, got {config!r}")
    fields = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in _CHOICES[config].items()})
    return fields.map(lambda drawn: {**(_fitting(drawn, fixed) if config is PAUCAtBudgetConfig else drawn), **fixed})


def _fitting(drawn: dict[str, Any], fixed: Mapping[str, Any]) -> dict[str, Any]:
    """Replace what was drawn for pAUC and does not go with the rest, or with the fixed fields."""
    if fixed.get("positive_temperature") is not None:
        drawn = {**drawn, "surrogate": "dro"}
    elif drawn["surrogate"] == "dro" and fixed.get("alpha", 0) > 0:
        drawn = {**drawn, "surrogate": "pairwise"}
    fields = {**drawn, **fixed}
    if fields["surrogate"] == "dro" or fields["alpha"] >= fields["beta"]:
        drawn = {**drawn, "alpha": 0.0}
    if fields["beta"] <= fields["alpha"]:
        drawn = {**drawn, "beta": 1.0}
    return drawn if fields["surrogate"] == "dro" else {**drawn, "positive_temperature": None}


def configs(config: type[Config], **fixed: Any) -> st.SearchStrategy[Config]:
    """Draw configurations of the given class.

    Parameters
    ----------
    config : type
        The configuration of any loss of this library, such as :class:`~imbalanced_losses.SmoothAPConfig`.
    **fixed
        Fields with a fixed value, and those that the batch determines, which are never drawn: ``num_classes`` of
        ranking losses and ``multilabel=True`` for multi-label targets, ``embedding_size`` of retrieval losses, class
        counts, shares and weights, ``ignore_index`` and ``max_pool_size``.

    Raises
    ------
    TypeError
        If ``config`` is another class.

    Examples
    --------
    >>> from hypothesis import given
    >>> from imbalanced_losses import PAUCAtBudgetConfig
    >>> from imbalanced_losses.testing import configs
    >>> @given(cfg=configs(PAUCAtBudgetConfig, num_classes=3, surrogate="pairwise"))
    ... def test_the_band_is_not_empty(cfg):
    ...     assert cfg.alpha < cfg.beta
    >>> test_the_band_is_not_empty()
    """
    return config_fields(config, **fixed).map(lambda fields: config(**fields))

"""Hypothesis strategies for the configurations of the losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from hypothesis import strategies as st

from imbalanced_losses import (
    FPRAtRecallConfig,
    PAUCAtBudgetConfig,
    PrecisionAtRecallConfig,
    RecallAtQuantileConfig,
    SigmoidFocalConfig,
    SmoothAPConfig,
    SoftFBetaConfig,
    SoftmaxFocalConfig,
)

__all__ = ["config_fields", "configs"]

Config = TypeVar("Config")
Choices = Mapping[str, list[Any]]

_RANKING: Choices = {
    "temperature": [0.5, 0.05, 2.0],
    "reduction": ["mean", "sum", "none"],
    "tau_scale": ["none", "std", "iqr"],
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
        "surrogate": ["trapezoid", "pairwise"],
        "n_knots": [2, 3, 5],
        "tau_scale": ["iqr", "band", "std", "none"],
        "pos_numerator": ["pool", "live"],
        "budget_basis": ["fpr", "population"],
        "min_tpr": [0.0, 0.3137],
    },
    SigmoidFocalConfig: {
        "alpha": [-1.0, 0.25, 0.0, 1.0],
        "gamma": [0.0, 0.5, 1.0, 2.0, 3.7],
        "reduction": ["mean", "sum", "none"],
        "ignore_index": [-100],
    },
    SoftmaxFocalConfig: {
        "gamma": [0.0, 0.5, 1.0, 2.0, 3.7],
        "reduction": ["mean", "sum", "none", "mean_positive"],
        "background_class": [0, 1],
        "label_smoothing": [0.0, 0.1, 0.5],
    },
}


def config_fields(config: type) -> st.SearchStrategy[dict[str, Any]]:
    """Draw keyword arguments of ``config``, except those that the batch's shape determines."""
    if config not in _CHOICES:
        known = ", ".join(own.__name__ for own in _CHOICES)
        raise TypeError(f"expected one of {known}, got {config!r}")
    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in _CHOICES[config].items()})


def configs(config: type[Config], **fixed: Any) -> st.SearchStrategy[Config]:
    """Draw configurations of the given class.

    Parameters
    ----------
    config : type
        :class:`~imbalanced_losses.SmoothAPConfig`, :class:`~imbalanced_losses.RecallAtQuantileConfig`,
        :class:`~imbalanced_losses.PrecisionAtRecallConfig`, :class:`~imbalanced_losses.FPRAtRecallConfig`,
        :class:`~imbalanced_losses.SoftFBetaConfig`, :class:`~imbalanced_losses.PAUCAtBudgetConfig`,
        :class:`~imbalanced_losses.SigmoidFocalConfig` or :class:`~imbalanced_losses.SoftmaxFocalConfig`.
    **fixed
        Fields with a fixed value. Ranking losses need ``num_classes``, and ``multilabel=True`` for multi-label targets.

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
    return config_fields(config).map(lambda drawn: config(**{**drawn, **fixed}))

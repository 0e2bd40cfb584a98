"""Hypothesis strategies for the ranking losses: a problem is everything that one call of a loss looks at.

Scores lie on a dyadic grid, so that they tie often and that shifting them and scaling them by powers of two is exact:
a test may then ask for equality where the mathematics says so, and no float noise hides between two scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    PAUCAtBudgetLoss,
    PerClass,
    QueueState,
    RecallAtQuantileConfig,
    RecallAtQuantileLoss,
    SmoothAPConfig,
    SmoothAPLoss,
    init_queue,
    pauc_at_budget,
    pauc_at_budget_per_class,
    recall_at_quantile,
    recall_at_quantile_per_class,
    smooth_ap,
    smooth_ap_per_class,
)
from imbalanced_losses.queue import push

IGNORE = -100
INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")

KINDS = {"binary": (1, False), "multiclass": (3, False), "multilabel": (3, True)}
"""Number of classes and ``multilabel`` of the three ways to label rows."""


def _examples(count: int) -> settings:
    """``count`` of them, or as many as a profile that searches for new ones asks for."""
    profile = settings.default.max_examples
    count = profile if profile > settings.get_profile("default").max_examples else count
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])


few_examples = _examples(12)
"""For what runs once per loss case."""

many_examples = _examples(80)
"""For what runs once per loss or kernel."""


@dataclass(frozen=True)
class RankingLoss:
    """The names that belong to one ranking loss."""

    function: Callable[..., tuple[Tensor, QueueState]]
    per_class: Callable[..., tuple[PerClass, QueueState]]
    config: Callable[..., Any]
    shell: Callable[..., Any]


LOSSES = {
    "smooth_ap": RankingLoss(smooth_ap, smooth_ap_per_class, SmoothAPConfig, SmoothAPLoss),
    "recall": RankingLoss(
        recall_at_quantile, recall_at_quantile_per_class, RecallAtQuantileConfig, RecallAtQuantileLoss
    ),
    "pauc": RankingLoss(pauc_at_budget, pauc_at_budget_per_class, PAUCAtBudgetConfig, PAUCAtBudgetLoss),
}


@dataclass(frozen=True)
class Problem:
    """Live rows and the queue they meet; ``None`` for an optional argument leaves it out."""

    logits: Tensor
    targets: Tensor
    state: QueueState
    iid_mask: Tensor | None
    sample_weight: Tensor | None

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @property
    def multilabel(self) -> bool:
        return self.state.targets.dim() == 2

    @property
    def extras(self) -> dict[str, Tensor]:
        """The keyword arguments of the losses."""
        extras = {"iid_mask": self.iid_mask, "sample_weight": self.sample_weight}
        return {name: value for name, value in extras.items() if value is not None}

    def rows(self, index: Tensor) -> Problem:
        """The same queue and the live rows at ``index``."""
        return replace(
            self,
            logits=self.logits[index],
            targets=self.targets[index],
            iid_mask=None if self.iid_mask is None else self.iid_mask[index],
            sample_weight=None if self.sample_weight is None else self.sample_weight[index],
        )

    def with_queue(self, **fields: Tensor) -> Problem:
        return replace(self, state=replace(self.state, **fields))


# --- single tensors ---------------------------------------------------------------------------------------------------

GRID = [i / 8 for i in range(-24, 25)]
TIES = [-1.0, -0.5, 0.0, 0.5, 1.0]
EXTREMES = [-1e4, 1e4]


def scores(extremes: bool = True) -> st.SearchStrategy[float]:
    """Scores on a grid of eighths, half of them from five values that tie, with ``+-1e4`` among them if wanted."""
    return st.one_of(st.sampled_from(TIES), st.sampled_from(GRID + EXTREMES if extremes else GRID))


def matrices(elements: st.SearchStrategy[Any], n: int, c: int, dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Tensors ``[n, c]``."""
    values = st.lists(elements, min_size=n * c, max_size=n * c)
    return values.map(lambda flat: torch.tensor(flat, dtype=dtype).reshape(n, c))


def vectors(elements: st.SearchStrategy[Any], n: int, dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Tensors ``[n]``."""
    return matrices(elements, n, 1, dtype).map(lambda column: column[:, 0])


def labels(n: int, num_classes: int, multilabel: bool, ignored: bool = True) -> st.SearchStrategy[Tensor]:
    """Targets ``[n]`` or ``[n, C]``; about one in six is to be ignored."""
    n_labels = 2 if multilabel or num_classes == 1 else num_classes
    elements = st.sampled_from([*range(n_labels)] * 3 + [IGNORE] * n_labels * ignored)
    if multilabel:
        return matrices(elements, n, num_classes, torch.int64)
    return vectors(elements, n, torch.int64)


def weights(n: int) -> st.SearchStrategy[Tensor]:
    """Sample weights ``[n]``, zero among them."""
    return vectors(st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 3.0]), n, torch.float64)


def flags(n: int) -> st.SearchStrategy[Tensor]:
    """Bool ``[n]``, two in three true."""
    return vectors(st.sampled_from([True, True, False]), n, torch.bool)


# --- problems and configurations --------------------------------------------------------------------------------------


@st.composite
def problems(
    draw: st.DrawFn,
    kind: str | None = None,
    min_rows: int = 0,
    max_queue: int = 8,
    extremes: bool = True,
    ignored: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """A batch of up to ten rows and a queue of up to ``max_queue`` slots of which some are filled."""
    num_classes, multilabel = KINDS[kind or draw(st.sampled_from(sorted(KINDS)))]
    n_live = draw(st.integers(min_rows, 10))
    capacity = draw(st.integers(0, max_queue))
    n = n_live + draw(st.integers(0, capacity))
    logits = draw(matrices(scores(extremes), n, num_classes, dtype))
    targets = draw(labels(n, num_classes, multilabel, ignored))
    iid, weight = draw(flags(n)), draw(weights(n))
    state = init_queue(capacity, num_classes, multilabel=multilabel, dtype=dtype)
    state = push(state, logits[n_live:], targets[n_live:], iid[n_live:], weight[n_live:])
    optional = st.booleans()
    return Problem(
        logits[:n_live],
        targets[:n_live],
        state,
        iid[:n_live] if draw(optional) else None,
        weight[:n_live] if draw(optional) else None,
    )


def options(loss: str) -> st.SearchStrategy[dict[str, Any]]:
    """Configuration of one loss but for the number and kind of classes.

    Budgets are such that no order statistic of a pool of up to 40 rows sits exactly at them: which way a position that
    is an integer but for rounding goes is the quantile kernel's own test.
    """
    choices: Mapping[str, list[Any]] = {"temperature": [0.05, 0.5, 2.0]}
    thresholds = {"quantile_interpolation": list(INTERPOLATIONS), "threshold_gradient": ["stop", "implicit"]}
    if loss == "recall":
        choices = {**choices, **thresholds, "quantile": [0.0103, 0.1237, 0.4871, 0.9013, 0.9897]}
    if loss == "pauc":
        choices = {
            **choices,
            **thresholds,
            "alpha": [0.0, 0.0713, 0.2617],
            "beta": [0.3719, 0.7321, 1.0],
            "surrogate": ["trapezoid", "pairwise"],
            "n_knots": [2, 3, 5],
            "tau_scale": ["iqr", "band"],
            "pos_numerator": ["pool", "live"],
            "budget_basis": ["fpr", "population"],
        }
    return st.fixed_dictionaries({name: st.sampled_from(values) for name, values in choices.items()})

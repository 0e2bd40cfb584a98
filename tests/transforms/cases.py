"""The table of cases that the tests of transforms, shells and checkpoints walk through, and its tiny inputs.

Every case is one ranking loss in one configuration. Inputs are six live rows and a queue of eight that has wrapped:
small enough to compile often, with positives, negatives, an ignored row and a non-iid row in every class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    PAUCAtBudgetLoss,
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

N_ROWS, QUEUE_SIZE, IGNORE = 6, 8, -100


@dataclass(frozen=True)
class Family:
    """What belongs to one ranking loss: function, per-class sibling, config class and shell."""

    function: Callable[..., Any]
    per_class: Callable[..., Any]
    config: type
    shell: type[nn.Module]


SMOOTH_AP = Family(smooth_ap, smooth_ap_per_class, SmoothAPConfig, SmoothAPLoss)
RECALL = Family(recall_at_quantile, recall_at_quantile_per_class, RecallAtQuantileConfig, RecallAtQuantileLoss)
PAUC = Family(pauc_at_budget, pauc_at_budget_per_class, PAUCAtBudgetConfig, PAUCAtBudgetLoss)


@dataclass(frozen=True)
class Inputs:
    """One batch and the queue that it meets."""

    logits: Tensor
    targets: Tensor
    state: QueueState
    temperature: Tensor
    iid_mask: Tensor
    sample_weight: Tensor


@dataclass(frozen=True)
class Case:
    """One loss, one configuration, one kind of targets."""

    name: str
    family: Family
    num_classes: int
    multilabel: bool
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def config(self, **changes: Any) -> Any:
        settings = {"num_classes": self.num_classes, "multilabel": self.multilabel, **self.options, **changes}
        return self.family.config(**settings)

    def shell(self, **changes: Any) -> Any:
        settings = {"num_classes": self.num_classes, "multilabel": self.multilabel, "queue_size": QUEUE_SIZE}
        return self.family.shell(**{**settings, **self.options, **changes})

    def call(
        self, logits: Tensor, targets: Tensor, state: QueueState, temperature: Tensor, **changes: Any
    ) -> tuple[Tensor, QueueState]:
        """The pure function with the case's config; a function of tensors alone."""
        result: tuple[Tensor, QueueState] = self.family.function(
            logits, targets, state, self.config(**changes), temperature=temperature
        )
        return result

    def value(self, logits: Tensor, targets: Tensor, state: QueueState, temperature: Tensor) -> Tensor:
        return self.call(logits, targets, state, temperature)[0]

    def targets(self, generator: torch.Generator, n_rows: int = N_ROWS) -> Tensor:
        """Every class has a positive and a negative among the first rows; the last row is ignored."""
        if self.multilabel:
            labels = (torch.arange(n_rows)[:, None] + torch.arange(self.num_classes)) % 3 == 0
            labels = labels.long()[torch.randperm(n_rows, generator=generator)]
            labels[-1, 0] = IGNORE
            return labels
        ids = (torch.arange(n_rows) % max(2, self.num_classes))[torch.randperm(n_rows, generator=generator)]
        ids[-1] = IGNORE
        return ids

    def empty_queue(self, dtype: torch.dtype = torch.float64, queue_size: int = QUEUE_SIZE) -> QueueState:
        return init_queue(queue_size, self.num_classes, multilabel=self.multilabel, dtype=dtype)

    def inputs(self, seed: int = 0, dtype: torch.dtype = torch.float64) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        state = self.empty_queue(dtype)
        for _ in range(2):
            batch = self._rows(generator, dtype)
            state = push(state, batch[0], batch[1], batch[2], batch[3])
        logits, targets, iid_mask, sample_weight = self._rows(generator, dtype)
        temperature = 0.3 + 0.4 * torch.rand((), generator=generator)
        return Inputs(logits, targets, state, temperature, iid_mask, sample_weight)

    def _rows(self, generator: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        logits = torch.randn(N_ROWS, self.num_classes, generator=generator, dtype=dtype)
        iid_mask = torch.arange(N_ROWS) != 1
        weights = 0.5 + torch.rand(N_ROWS, generator=generator)
        return logits, self.targets(generator), iid_mask, weights


VARIANTS: dict[str, tuple[Family, dict[str, Any]]] = {
    "smooth_ap": (SMOOTH_AP, {}),
    "recall_stop": (RECALL, {"quantile": 0.3}),
    "recall_implicit": (
        RECALL,
        {"quantile": 0.3, "threshold_gradient": "implicit", "quantile_interpolation": "linear"},
    ),
    "pauc_trapezoid": (PAUC, {"alpha": 0.1, "beta": 0.6, "n_knots": 3}),
    "pauc_implicit": (PAUC, {"beta": 0.6, "threshold_gradient": "implicit", "budget_basis": "population"}),
    "pauc_pairwise": (PAUC, {"beta": 0.9, "surrogate": "pairwise", "pos_numerator": "live"}),
    "pauc_band": (PAUC, {"beta": 0.7, "surrogate": "pairwise", "tau_scale": "band", "threshold_gradient": "implicit"}),
}

KINDS = {"binary": (1, False), "multiclass": (3, False), "multilabel": (3, True)}


def _case(variant: str, kind: str) -> Case:
    family, options = VARIANTS[variant]
    return Case(f"{variant}-{kind}", family, *KINDS[kind], options)


CASES = [_case(variant, kind) for variant in VARIANTS for kind in KINDS]
"""Every variant with every kind of targets."""

DIAGONAL = [_case(variant, list(KINDS)[i % 3]) for i, variant in enumerate(VARIANTS)]
"""Every variant once, the kinds in turn: for what costs a compilation."""

ONE_PER_LOSS = [
    _case("smooth_ap", "multiclass"),
    _case("recall_implicit", "multilabel"),
    _case("pauc_pairwise", "binary"),
]

SMOOTH_AP_CASES = [case for case in CASES if case.family is SMOOTH_AP]


def assert_same_state(actual: QueueState, expected: QueueState) -> None:
    torch.testing.assert_close(_pytree.tree_leaves(actual), _pytree.tree_leaves(expected), rtol=0, atol=0)


def assert_conforms(new: QueueState, old: QueueState) -> None:
    """Structure, shapes, dtypes and device of the old state, and no gradient."""
    assert _pytree.tree_structure(new) == _pytree.tree_structure(old)
    for name in (own.name for own in fields(QueueState)):
        now, before = getattr(new, name), getattr(old, name)
        assert (now.shape, now.dtype, now.device) == (before.shape, before.dtype, before.device), name
        assert not now.requires_grad, name

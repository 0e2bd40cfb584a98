"""The soft F-beta loss: the paper's counts in NumPy, scikit-learn's F-beta as its limit, and the contract."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score
from torch import Tensor
from torch.testing import assert_close

from imbalanced_losses import (
    QueueState,
    SoftFBetaConfig,
    SoftFBetaLoss,
    init_queue,
    soft_fbeta,
    soft_fbeta_per_class,
)

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

IGNORE = -100


@dataclass(frozen=True)
class Case:
    name: str
    num_classes: int = 1
    multilabel: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def config(self, **changes: Any) -> SoftFBetaConfig:
        kind = {"num_classes": self.num_classes, "multilabel": self.multilabel}
        return SoftFBetaConfig(**{**kind, **self.options, **changes})

    def rows(self, n: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, targets of which the last is ignored, and weights."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(n, self.num_classes, generator=generator, dtype=torch.float64)
        highest = self.num_classes if self.num_classes > 1 and not self.multilabel else 2
        shape = (n, self.num_classes) if self.multilabel else (n,)
        targets = torch.randint(0, highest, shape, generator=generator)
        targets[:highest] = torch.arange(highest).reshape(-1, *[1] * (targets.dim() - 1))  # some of every class
        targets[-1:] = IGNORE
        return logits.to(dtype), targets, torch.rand(n, generator=generator, dtype=torch.float64) + 0.1

    def queue(self, size: int = 6, seed: int = 1) -> QueueState:
        empty = init_queue(size, self.num_classes, multilabel=self.multilabel, dtype=torch.float64)
        logits, targets, weight = self.rows(n=size + 1, seed=seed)
        return soft_fbeta(logits[:size], targets[:size], empty, self.config(), sample_weight=weight[:size])[1]


CASES = [
    Case("binary"),
    Case("f2", options={"beta": 2.0, "temperature": 0.3}),
    Case("offset", options={"beta": 0.5, "eta": -0.7}),
    Case("classes", 3, options={"eta": 0.4}),
    Case("multilabel", 3, multilabel=True, options={"beta": 1.5}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def reference(case: Case, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Bénédict et al.: soft true and false positives and false negatives, row by row; one minus F-beta of each class.

    ``nan`` without a positive of positive weight.
    """
    cfg, losses = case.config(), []
    for c in range(case.num_classes):
        true_positives = false_positives = false_negatives = 0.0
        for i in range(len(logits)):
            target = int(targets[i, c] if case.multilabel else targets[i])
            if target == IGNORE:
                continue
            is_positive = target == (1 if case.multilabel or case.num_classes == 1 else c)
            w = 1.0 if weight is None else float(weight[i])
            soft = float(1 / (1 + np.exp(-(float(logits[i, c]) + cfg.eta) / cfg.temperature)))
            true_positives += w * soft * is_positive
            false_positives += w * soft * (not is_positive)
            false_negatives += w * (1 - soft) * is_positive
        if true_positives + false_negatives == 0:
            losses.append(np.nan)
            continue
        squared = cfg.beta**2
        top = (1 + squared) * true_positives
        losses.append(1 - top / (top + squared * false_negatives + false_positives))
    return torch.tensor(losses, dtype=torch.float64)


def call(case: Case, logits: Tensor, targets: Tensor, queue: QueueState | None = None, **options: Any) -> Tensor:
    changes = {name: options.pop(name) for name in ("reduction", "temperature", "max_pool_size") if name in options}
    queue = init_queue(0, case.num_classes, multilabel=case.multilabel) if queue is None else queue
    return soft_fbeta(logits, targets, queue, case.config(**changes), **options)[0]


def value_and_grad(case: Case, logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = call(case, leaf, targets, *args, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


# --- values -----------------------------------------------------------------------------------------------------------


@every_case
def test_it_is_the_papers_formula(case: Case) -> None:
    logits, targets, weight = case.rows()
    expected = reference(case, logits, targets)
    assert_close(call(case, logits, targets, reduction="none"), expected)
    assert_close(call(case, logits, targets), expected.mean())
    assert_close(call(case, logits, targets, reduction="sum"), expected.sum())
    weighted = call(case, logits, targets, reduction="none", sample_weight=weight)
    assert_close(weighted, reference(case, logits, targets, weight))
    scaled = call(case, logits, targets, reduction="none", sample_weight=1000 * weight)
    assert_close(scaled, weighted)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-6, 6).filter(bool), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(-3, 3),
)
def test_the_limit_is_scikit_learns(rows: list[tuple[int, bool, int]], beta: float, offset: int) -> None:
    """Of the decisions at ``-eta``, with sample weights; and diagnostics report it."""
    logits = torch.tensor([score / 2 - offset - 0.25 for score, _, _ in rows])
    targets, weight = torch.tensor([int(label) for _, label, _ in rows]), torch.tensor([float(w) for _, _, w in rows])
    cfg = SoftFBetaConfig(num_classes=1, beta=beta, eta=offset, temperature=1e-4)
    options = {"sample_weight": weight.numpy(), "zero_division": 0.0}
    per_class = soft_fbeta_per_class(logits, targets, init_queue(0, 1), cfg, sample_weight=weight)[0]
    assert bool(per_class.valid) == bool((targets * weight).sum() > 0)
    if per_class.valid:
        expected = fbeta_score(targets, (logits + offset > 0).int(), beta=beta, **options)
        assert per_class.loss.item() == pytest.approx(1 - expected, abs=1e-6)
        loss_fn = SoftFBetaLoss(1, beta=beta, eta=offset, temperature=0.5, queue_size=0)
        loss = loss_fn(logits, targets, sample_weight=weight)
        assert loss_fn.diagnostics()["gap"].item() == pytest.approx(loss.item() - (1 - expected), abs=1e-5)


def test_a_score_at_the_threshold_counts_by_half() -> None:
    """TP = 1/2, FN = 1/2, FP = 0: F1 = 2/3."""
    for temperature in (1.0, 1e-30):
        cfg = SoftFBetaConfig(num_classes=1, eta=-0.5, temperature=temperature)
        loss = soft_fbeta(torch.tensor([0.5]), torch.tensor([1]), init_queue(0, 1), cfg)[0]
        assert loss.item() == pytest.approx(1 / 3)


def test_a_sample_of_the_pool_estimates_its_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(3000, generator=generator), torch.randint(0, 20, (3000,), generator=generator) == 0
    cfg = SoftFBetaConfig(num_classes=1, max_pool_size=600)
    queue = init_queue(0, 1)
    exact = soft_fbeta(logits, targets, queue, SoftFBetaConfig(num_classes=1))[0]
    drawn = [soft_fbeta(logits, targets, queue, cfg, generator=generator)[0] for _ in range(40)]
    assert torch.stack(drawn).mean().item() == pytest.approx(exact.item(), abs=0.005)


# --- extremes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("temperature", [1e-30, 0.01, 1.0])
@every_case
def test_large_logits(case: Case, temperature: float, dtype: torch.dtype) -> None:
    logits, targets, _ = case.rows(dtype=dtype)
    loss, gradient = value_and_grad(case, logits.sign() * 1e4, targets, temperature=temperature)
    assert 0 <= loss <= 1
    assert gradient.isfinite().all()


def test_a_positive_that_is_missed_most_has_a_gradient() -> None:
    """Of ``exp(-30)``: in float32, ``y (1 - y)`` of the backward would be 0."""
    case = CASES[0]
    logits, targets = torch.tensor([-30.0, 3.0]), torch.tensor([1, 1])
    assert (value_and_grad(case, logits, targets)[1] < 0).all()


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_a_small_beta() -> None:
    """Beside a positive that is missed, beta^2 is lost in 1 + beta^2."""
    cfg = SoftFBetaConfig(num_classes=1, beta=1e-8)
    loss, _ = soft_fbeta(torch.tensor([-40.0]), torch.tensor([1]), init_queue(0, 1), cfg)
    assert loss.item() == pytest.approx(1)
    with pytest.raises(ValueError, match="expected beta in"):
        SoftFBetaConfig(num_classes=1, beta=1e200)


def test_descent_reaches_the_perfect_decisions() -> None:
    """Scores that all start above the threshold are moved below it, for the negatives only."""
    targets = (torch.arange(20) < 3).long()
    scores = torch.full((20,), 0.5, requires_grad=True)
    optimizer = torch.optim.SGD([scores], lr=20.0)
    loss_fn = SoftFBetaLoss(1, queue_size=0)
    for _ in range(100):
        optimizer.zero_grad()
        loss_fn(scores, targets).backward()
        optimizer.step()
    assert ((scores > 0).long() == targets).all()

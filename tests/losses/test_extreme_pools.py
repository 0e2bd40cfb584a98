"""The newer ranking losses and their metrics on pools at the ends of float32: finite in, finite out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from imbalanced_losses import PAUCAtBudgetLoss, metrics
from imbalanced_losses.kernels.operators import with_nonfinite
from tests.registry import most_of, shells_of_every_loss

LOSSES = shells_of_every_loss(
    {
        "recall": ("recall", {"quantile": 0.2, "threshold_gradient": "implicit"}),
        "recall_at_fpr": ("recall", {"quantile": 0.2, "budget_basis": "fpr"}),
        "trapezoid": ("pauc", {"beta": 0.4, "threshold_gradient": "implicit", "n_knots": 3}),
        "pairwise": ("pauc", {"beta": 0.4, "surrogate": "pairwise"}),
        "pairwise_two_way": ("pauc", {"beta": 0.4, "surrogate": "pairwise", "min_tpr": 0.3}),
    }
)
BOUNDED = [
    (name, scale)
    for name, (shell, _) in LOSSES.items()
    for scale in ("none", "std", "iqr", *(["band"] if shell is PAUCAtBudgetLoss else []))
]
over_bounded = pytest.mark.parametrize(("name", "tau_scale"), BOUNDED)
TARGETS = torch.tensor([1, 0, 0, 1, 0, 0, 0, 0, 1, 0])
SCORES = torch.randn(10, generator=torch.Generator().manual_seed(0))


def step(name: str, scores: Tensor, weight: Tensor | None = None, **options: Any) -> tuple[Tensor, Tensor, Any]:
    shell, own = LOSSES[name]
    loss_fn = shell(num_classes=1, queue_size=0, **{**own, **options})
    leaf = scores.clone().requires_grad_()
    loss = loss_fn(leaf, TARGETS, sample_weight=weight)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient, loss_fn.diagnostics()


@over_bounded
@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e4, 1e30, 3e38])
@pytest.mark.parametrize("temperature", [1e-37, 0.01, 1e30])
def test_finite_scores_have_a_finite_loss_and_gradient(
    name: str, tau_scale: str, size: float, temperature: float
) -> None:
    """A spread of 6e38, or its product with the temperature, is not a float32; nor is that of 1e-45 and 1e-37."""
    for scores in (SCORES.sign() * size, (1 - 2.0 * TARGETS) * size, torch.full((10,), size)):
        loss, gradient, stats = step(name, scores, tau_scale=tau_scale, temperature=temperature)
        assert 0 <= loss <= most_of(LOSSES[name][0])
        assert gradient.isfinite().all()
        assert all(value.isfinite().all() for value in stats.values())


@over_bounded
@pytest.mark.parametrize("weight", [1e-30, 1e30, 3e38])
def test_equal_weights_of_any_size_are_no_weights(name: str, tau_scale: str, weight: float) -> None:
    """Their sum is not a float32. The exact metric, behind ``gap``, gets along with it, too."""
    loss, gradient, stats = step(name, SCORES, torch.full((10,), weight), tau_scale=tau_scale)
    expected, expected_gradient, expected_stats = step(name, SCORES, tau_scale=tau_scale)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    torch.testing.assert_close(stats, expected_stats, equal_nan=True)


@pytest.mark.parametrize("weight", [1e-38, 1e30, 3e38])
@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("average_precision", {}),
        ("recall_at_quantile", {"quantile": 0.3}),
        ("partial_auc", {"beta": 0.4}),
        ("partial_auc", {"beta": 0.4, "min_tpr": 0.4}),
        ("coverage_at_budget", {"budget": 0.3}),
        ("precision_at_recall", {}),
        ("fpr_at_recall", {}),
    ],
)
def test_a_metric_takes_weights_of_any_size(metric: str, options: dict[str, Any], weight: float) -> None:
    function = getattr(metrics, metric)
    weighted = function(SCORES, TARGETS, sample_weight=torch.full((10,), weight), **options)
    torch.testing.assert_close(weighted, function(SCORES, TARGETS, **options))
    assert 0 < weighted < 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_with_nonfinite(bad: float) -> None:
    scores = torch.tensor([[1.0, 2.0], [1.0, bad]], requires_grad=True)
    loss = with_nonfinite(scores[:, 0].square(), scores)
    (gradient,) = torch.autograd.grad(loss.sum(), scores)
    assert loss[0] == 1
    assert loss[1].isnan()
    assert gradient[0].tolist() == [2, 0]
    assert gradient[1].isnan().all()

"""``tau_scale`` of every ranking loss: the loss of the scores in that unit, so that their scale does not matter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from imbalanced_losses import PAUCAtBudgetLoss
from tests.registry import shells_of_every_loss

IGNORE = -100
LOSSES = shells_of_every_loss(
    {
        "recall_at_fpr": ("recall", {"quantile": 0.3, "budget_basis": "fpr"}),
        "precision_at_recall": ("precision_at_recall", {}),
        "precision_at_recall_stop": ("precision_at_recall", {"threshold_gradient": "stop"}),
        "fpr_at_recall": ("fpr_at_recall", {"recall": 0.6}),
        "soft_fbeta": ("soft_fbeta", {"beta": 2.0}),
        "trapezoid_two_way": ("pauc", {"beta": 0.6, "min_tpr": 0.3, "n_knots": 3}),
        "pairwise_two_way": ("pauc", {"beta": 0.6, "min_tpr": 0.3, "surrogate": "pairwise"}),
        "dro": ("pauc", {"beta": 0.6, "surrogate": "dro", "margin": 0.7}),
        "dro_two_way": ("pauc", {"beta": 0.6, "surrogate": "dro", "positive_temperature": 0.5, "min_tpr": 0.3}),
    }
)
CASES = [
    (name, unit)
    for name, (shell, _) in LOSSES.items()
    for unit in ("std", "iqr", *(["band"] if shell is PAUCAtBudgetLoss else []))
]
over_cases = pytest.mark.parametrize(("name", "unit"), CASES)


def rows(multilabel: bool, n: int = 60) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shape = (n, 2) if multilabel else (n,)
    targets = (torch.rand(shape, generator=generator) < 0.4).long()
    targets[3] = IGNORE
    if multilabel:
        targets[7, 1] = IGNORE
    weight = 0.5 + torch.rand(n, generator=generator, dtype=torch.float64)
    scores = torch.randn(n, shape[-1] if multilabel else 1, generator=generator, dtype=torch.float64)
    return scores * torch.tensor([1.0, 300.0][: scores.shape[1]]), targets, weight


def run(name: str, scores: Tensor, targets: Tensor, weight: Tensor, **changes: Any) -> tuple[Tensor, Tensor]:
    """The loss of each class, and the gradient of their sum, of a second step: half the pool is the queue's."""
    shell, options = LOSSES[name]
    kind = {"num_classes": scores.shape[1], "multilabel": targets.dim() == 2, "queue_size": 30, "reduction": "sum"}
    loss_fn = shell(**{**kind, "temperature": 0.4, **options, **changes}).double()
    loss_fn.queue_logits = loss_fn.queue_logits.double()
    half = len(scores) // 2
    loss_fn(scores[half:], targets[half:], sample_weight=weight[half:])
    leaf = scores[:half].clone().requires_grad_()
    loss = loss_fn(leaf, targets[:half], None, True, sample_weight=weight[:half])[1]
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def units(name: str, unit: str, scores: Tensor, targets: Tensor) -> Tensor:
    """By NumPy: of all rows that are not ignored, for pAUC of the negatives among them."""
    is_pauc, found = LOSSES[name][0] is PAUCAtBudgetLoss, []
    for label in range(scores.shape[1]):
        own = targets if targets.dim() == 1 else targets[:, label]
        values = scores[(own == 0) if is_pauc else (own != IGNORE), label].numpy()
        if unit == "std":
            found.append(values.std())
        else:
            levels = [0.75, 0.25] if unit == "iqr" else [1.0, 0.4]
            method = "higher" if "quantile_interpolation" in dir(LOSSES[name][0](num_classes=1)) else "linear"
            upper, lower = np.quantile(values, levels, method=method)
            found.append(upper - lower)
    return torch.tensor(np.array(found))


@over_cases
@pytest.mark.parametrize("multilabel", [False, True])
def test_it_is_the_loss_of_the_scores_in_that_unit(name: str, unit: str, multilabel: bool) -> None:
    scores, targets, weight = rows(multilabel)
    size = units(name, unit, scores, targets)
    loss, gradient = run(name, scores, targets, weight, tau_scale=unit)
    expected, expected_gradient = run(name, scores / size, targets, weight, tau_scale="none")
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient * size, expected_gradient, rtol=1e-4, atol=1e-6)
    assert gradient.any()


@over_cases
@pytest.mark.parametrize("factor", [2.0**-20, 2.0**40])
def test_the_scale_of_the_scores_does_not_matter(name: str, unit: str, factor: float) -> None:
    scores, targets, weight = rows(multilabel=True)
    loss, gradient = run(name, scores, targets, weight, tau_scale=unit)
    scaled, scaled_gradient = run(name, scores * factor, targets, weight, tau_scale=unit)
    torch.testing.assert_close(scaled, loss)
    torch.testing.assert_close(scaled_gradient * factor, gradient)
    changed, _ = run(name, scores * factor, targets, weight, tau_scale="none")
    assert not torch.isclose(changed, run(name, scores, targets, weight, tau_scale="none")[0]).all()

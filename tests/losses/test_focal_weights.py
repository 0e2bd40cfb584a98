"""Focal sample weights of rows, and of elements as they broadcast to the targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from imbalanced_losses import (
    SigmoidFocalConfig,
    SigmoidFocalLoss,
    SoftmaxFocalConfig,
    SoftmaxFocalLoss,
    sigmoid_focal,
    softmax_focal,
)

# shapes of logits and of weights; the softmax loss has its classes on axis 1
SIGMOID = [
    ((7, 1), (7, 1)),
    ((7, 4), (7, 1)),
    ((1, 4), (1, 1)),
    ((0, 4), (0, 1)),
    ((1000, 4), (1000, 1)),
    ((6, 3, 5, 7), (6, 1, 5, 7)),
    ((6, 3, 5, 7), (6, 1, 1, 1)),
    ((6, 3, 5, 7), (6, 3, 1, 7)),
    ((6, 3, 5, 7), (6,)),
]
SOFTMAX = [
    ((7, 3), (7,)),
    ((6, 3, 5, 7), (6, 1, 1)),
    ((6, 3, 5, 7), (6, 5, 1)),
    ((6, 3, 5, 7), (6,)),
    ((6, 3, 9), (6, 1)),
]
CASES = [(sigmoid_focal, *shapes) for shapes in SIGMOID] + [(softmax_focal, *shapes) for shapes in SOFTMAX]
every_case = pytest.mark.parametrize(("function", "shape", "weight_shape"), CASES)


def problem(function: Any, shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(shape))
    logits = torch.randn(shape, generator=generator)
    positions = (shape[0], *shape[2:]) if function is softmax_focal else shape
    targets = torch.randint(0, 2, positions, generator=generator)
    return logits, targets, torch.rand(weight_shape, generator=generator)


def config(function: Any, ignore_index: int | None, reduction: str) -> Any:
    if function is softmax_focal:
        return SoftmaxFocalConfig(ignore_index=-100 if ignore_index is None else ignore_index, reduction=reduction)
    return SigmoidFocalConfig(ignore_index=ignore_index, reduction=reduction)


def expanded(weights: Tensor, targets: Tensor) -> Tensor:
    rows = weights.reshape(weights.shape + (1,) * (targets.dim() - weights.dim()))
    return rows.expand_as(targets).contiguous()


def value_and_grad(function: Any, logits: Tensor, targets: Tensor, cfg: Any, weights: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, targets, cfg, sample_weight=weights)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_positive"])
@pytest.mark.parametrize("ignore_index", [None, 0], ids=str)
@every_case
def test_they_are_the_expanded_ones(
    function: Any, shape: Any, weight_shape: Any, ignore_index: int | None, reduction: str
) -> None:
    """To the last bit: a mean divides by what each element that counts really weighs."""
    if function is sigmoid_focal and reduction == "mean_positive":
        return
    logits, targets, weights = problem(function, shape, weight_shape)
    cfg = config(function, ignore_index, reduction)
    actual = value_and_grad(function, logits, targets, cfg, weights)
    expected = value_and_grad(function, logits, targets, cfg, expanded(weights, targets))
    assert all(torch.equal(own, other) for own, other in zip(actual, expected, strict=True))


@pytest.mark.parametrize("ignore_index", [None, 0], ids=str)
@every_case
def test_the_mean_is_the_formula(function: Any, shape: Any, weight_shape: Any, ignore_index: int | None) -> None:
    logits, targets, weights = problem(function, shape, weight_shape)
    plain = function(logits, targets, config(function, ignore_index, "none")).double()
    each = expanded(weights, targets).double() * (targets != (-100 if ignore_index is None else ignore_index))
    mass = each.sum()
    expected = (plain * each).sum() / (mass if mass > 0 else 1)
    actual = function(logits, targets, config(function, ignore_index, "mean"), sample_weight=weights)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-7)


@every_case
def test_modules_compiled_and_mapped(function: Any, shape: Any, weight_shape: Any) -> None:
    logits, targets, weights = problem(function, shape, weight_shape)
    cfg = config(function, None, "mean")
    expected = function(logits, targets, cfg, sample_weight=weights)
    loss_fn = SoftmaxFocalLoss() if function is softmax_focal else SigmoidFocalLoss()
    assert torch.equal(loss_fn(logits, targets, sample_weight=weights), expected)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits, targets, cfg, sample_weight=weights), expected)
    mapped = vmap(lambda z, w: function(z, targets, cfg, sample_weight=w))(logits[None], weights[None])
    torch.testing.assert_close(mapped[0], expected)


@pytest.mark.parametrize(
    ("function", "shape", "weight_shape"),
    [
        (sigmoid_focal, (6, 4), (4,)),
        (sigmoid_focal, (6, 4), (1, 4)),
        (sigmoid_focal, (6, 4), (6, 2)),
        (sigmoid_focal, (6, 4), (6, 4, 1)),
        (sigmoid_focal, (6, 3, 5), (6, 3)),
        (sigmoid_focal, (6,), (6, 1)),
        (softmax_focal, (6, 3), (6, 3)),
        (softmax_focal, (6, 3, 5), (6, 3, 5)),
        (softmax_focal, (6, 3, 5), (1, 5)),
        (softmax_focal, (6, 3, 5), ()),
    ],
)
def test_other_shapes_are_refused(function: Any, shape: Any, weight_shape: Any) -> None:
    logits, targets, _ = problem(function, shape, (1,))
    loss_fn = SoftmaxFocalLoss() if function is softmax_focal else SigmoidFocalLoss()
    for call, arguments in ((function, (logits, targets, loss_fn.config)), (loss_fn, (logits, targets))):
        with pytest.raises(ValueError, match=r"expected sample_weight of shape \[6\].*, got "):
            call(*arguments, sample_weight=torch.ones(weight_shape))


def test_values_are_checked_in_any_shape() -> None:
    with pytest.raises(ValueError, match="expected finite sample_weight >= 0, got -1"):
        SigmoidFocalLoss()(torch.zeros(2, 3), torch.zeros(2, 3), sample_weight=torch.tensor([[1.0], [-1.0]]))

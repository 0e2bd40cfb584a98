"""Soft labels that rounding took out of [0, 1] count as 0 or 1; further out they are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.testing import assert_close

from imbalanced_losses import SigmoidFocalConfig, SigmoidFocalLoss, sigmoid_focal
from imbalanced_losses.kernels import focal as kernel
from imbalanced_losses.kernels import sigmoid_focal as sigmoid_kernel
from tests.losses.focal_cases import GAMMAS

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
LOGITS = torch.tensor([-300.0, -20.0, -1.0, 0.0, 1.0, 20.0, 300.0])
EXACT = torch.tensor([0.0, 1.0, 0.5, 1.0])


@pytest.fixture(autouse=True, params=["few", "many", "accelerator"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "few":
        monkeypatch.setattr(kernel, "FEW_LOGITS", 0)
    if request.param == "accelerator":
        monkeypatch.setattr(sigmoid_kernel, "may_branch_on_values", lambda *_: False)


def problem(dtype: torch.dtype, ulps: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, labels a rounding of their dtype away, and what they are to count as."""
    eps = torch.finfo(dtype).eps * ulps
    rounded = torch.tensor([0.0 - eps, 1.0 + eps, 0.5, 1.0], dtype=dtype)
    assert rounded[0] < 0
    assert rounded[1] > 1
    logits = LOGITS.double() if dtype == torch.float64 else LOGITS
    return logits[:, None].expand(-1, 4).clone(), rounded.expand(7, 4), EXACT.to(dtype).expand(7, 4)


def value_and_grad(function: Any, logits: Tensor, targets: Tensor, **settings: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = function(leaf, targets, SigmoidFocalConfig(**settings))
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("gamma", [*GAMMAS, 1.5, 2.5])
@pytest.mark.parametrize("alpha", [-1, 0.25])
def test_they_count_as_0_and_1(gamma: float, alpha: float, dtype: torch.dtype) -> None:
    logits, rounded, exact = problem(dtype)
    expected = value_and_grad(sigmoid_focal, logits, exact, gamma=gamma, alpha=alpha, reduction="none")
    actual = value_and_grad(sigmoid_focal, logits, rounded, gamma=gamma, alpha=alpha, reduction="none")
    for own, other in zip(actual, expected, strict=True):
        assert own.isfinite().all()
        assert torch.equal(own, other)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 2.5])
def test_derivatives_and_transforms(gamma: float) -> None:
    logits, rounded, exact = problem(torch.float32)
    cfg = SigmoidFocalConfig(gamma=gamma, reduction="none")

    def second(targets: Tensor) -> Tensor:
        leaf = logits.clone().requires_grad_()
        (first,) = torch.autograd.grad(sigmoid_focal(leaf, targets, cfg).sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)[0]

    def gradient(targets: Tensor) -> Tensor:
        return vmap(grad(lambda z, y: sigmoid_focal(z, y, cfg).sum()))(logits, targets)

    for derivative in (second, gradient):
        assert derivative(rounded).isfinite().all()
        assert torch.equal(derivative(rounded), derivative(exact))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0, 2.5])
def test_compiled(gamma: float) -> None:
    logits, rounded, exact = problem(torch.float32)
    compiled = torch.compile(sigmoid_focal, fullgraph=True, backend="aot_eager")
    settings = {"gamma": gamma, "reduction": "none"}
    assert_close(
        value_and_grad(compiled, logits, rounded, **settings), value_and_grad(compiled, logits, exact, **settings)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_module_takes_them(dtype: torch.dtype) -> None:
    logits, rounded, exact = problem(dtype)
    assert torch.equal(SigmoidFocalLoss()(logits, rounded), SigmoidFocalLoss()(logits, exact))
    with_ignored = SigmoidFocalLoss(ignore_index=-1)
    assert torch.equal(with_ignored(logits, rounded), with_ignored(logits, exact))


def test_numbers_from_the_contract() -> None:
    for dtype in (torch.float32, torch.float64):
        labels = torch.tensor([1.0000001, -1e-7], dtype=dtype)
        loss = SigmoidFocalLoss()(torch.zeros(2), labels)
        assert torch.equal(loss, SigmoidFocalLoss()(torch.zeros(2), torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize(
    ("label", "dtype"),
    [
        (1.001, torch.float32),
        (-1e-5, torch.float32),
        (1.00001, torch.float64),
        (1.01, torch.float16),
        (1.1, torch.bfloat16),
        (-0.1, torch.bfloat16),
        (2, torch.int64),
        (-1, torch.int64),
    ],
)
def test_further_out_is_an_error(label: float, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=r"expected targets in \[0, 1\], got "):
        SigmoidFocalLoss()(torch.zeros(2), torch.tensor([0, label], dtype=dtype))


def test_what_nobody_checked_is_not_moved_into_range() -> None:
    """A label of -100 is not a 0: the loss is that of the formula, as it always was."""
    logits, targets = torch.tensor([2.0, 2.0, 2.0]), torch.tensor([-100.0, 0.0, 1.5])
    loss = sigmoid_focal(logits, targets, SigmoidFocalConfig(gamma=0, alpha=-1, reduction="none"))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    assert_close(loss, expected)
    nan = sigmoid_focal(logits, torch.tensor([torch.nan, 0.0, 1.0]), SigmoidFocalConfig(reduction="none"))
    assert nan.isnan().tolist() == [True, False, False]


def test_smoothed_mixed_and_resized_labels() -> None:
    """What makes such labels in practice."""
    generator = torch.Generator().manual_seed(0)
    hard = (torch.rand(8, 1, 16, 16, generator=generator) < 0.5).float()
    share = torch.rand(8, 1, 1, 1, generator=generator)
    for dtype in DTYPES:
        labels = hard.to(dtype)
        mixed = share.to(dtype) * labels + (1 - share.to(dtype)) * labels
        resized = torch.nn.functional.interpolate(labels, scale_factor=2.7, mode="bilinear")
        for soft in (mixed, resized):
            assert SigmoidFocalLoss(gamma=0.5)(torch.zeros(soft.shape), soft).isfinite()

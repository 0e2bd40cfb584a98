"""The focal losses under autograd (twice), ``torch.func`` and ``torch.compile``, on meta tensors; what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, vmap
from torch.testing import assert_close

from imbalanced_losses import SoftmaxFocalConfig, softmax_focal
from imbalanced_losses.kernels import focal as kernel
from imbalanced_losses.kernels.focal import FEW_LOGITS
from tests.contracts.elements import case_named
from tests.losses.focal_cases import CASES, DEFAULTS, GAMMAS, N_CLASSES, Case

# torch's own forward mode scripts some of its decompositions
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

every_case = pytest.mark.parametrize("case", CASES, ids=str)
each_loss = pytest.mark.parametrize("case", DEFAULTS, ids=str)


def stacked_inputs(case: Case, members: int = 3) -> tuple[Tensor, Tensor]:
    inputs = [case.inputs(seed=seed) for seed in range(members)]
    return torch.stack([logits for logits, _ in inputs]), torch.stack([targets for _, targets in inputs])


def value_and_grad(case: Case, logits: Tensor, targets: Tensor, **changes: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().clone().requires_grad_()
    loss = case.call(leaf, targets, **changes)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("few", [FEW_LOGITS, 0])
@every_case
def test_derivatives_of_both_orders(
    case: Case, few: int, gamma: float, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also forward over reverse, and under batched gradients; the last logit is 0, the first element ignored."""
    monkeypatch.setattr(kernel, "FEW_LOGITS", few)
    logits, targets = case.inputs(n=3)
    logits.requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return case.call(logits, targets, gamma=gamma, reduction=reduction)

    options = {"fast_mode": True, "check_batched_grad": True}
    assert gradcheck(loss, logits, check_forward_ad=True, check_batched_forward_grad=True, **options)
    assert gradgradcheck(loss, logits, check_fwd_over_rev=True, **options)


# --- vmap -------------------------------------------------------------------------------------------------------------


def test_vmap_over_class_weights() -> None:
    logits, targets = case_named("softmax_focal_smooth").inputs()
    alphas = torch.rand(3, N_CLASSES, dtype=torch.float64)

    def gradient(alpha: Tensor) -> Tensor:
        return grad(lambda z: softmax_focal(z, targets, SoftmaxFocalConfig(label_smoothing=0.1), alpha=alpha))(logits)

    assert_close(vmap(gradient)(alphas), torch.stack([gradient(alpha) for alpha in alphas]))


# --- compile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_handles_every_number(case: Case, gamma: float) -> None:
    """Extremes like eager; a logit that is not finite shows in loss and gradient; an ignored one does not."""
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    logits, targets = case.inputs(dtype=torch.float32)
    logits = logits.mul(40).round()
    logits[1] *= 1e3
    if case.ignore_index is not None:
        targets[0] = case.ignore_index
        logits[0] = torch.nan
    for bad in (None, torch.nan, torch.inf) if (not case.own.labels) else (None, torch.nan, torch.inf, -torch.inf):
        if bad is not None:
            logits[-1].view(-1)[:1] = bad
        leaf = logits.clone().requires_grad_()
        loss = compiled(leaf, targets, gamma=gamma, reduction="none")
        loss.sum().backward()
        expected, gradient = value_and_grad(case, logits, targets, gamma=gamma, reduction="none")
        assert leaf.grad is not None
        assert loss[-1].isfinite().all() == leaf.grad[-1].isfinite().all() == (bad is None)
        assert_close(loss[:-1], expected[:-1])
        assert_close(leaf.grad[:-1], gradient[:-1])


# --- purity and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("targets_dtype", [torch.int64, torch.uint8, torch.float32])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@every_case
def test_the_graph_keeps_the_inputs_and_nothing_else(
    case: Case,
    reduction: str,
    targets_dtype: torch.dtype,
    logits_dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not even a converted copy; class weights and a divisor are small. Of few logits the graph may keep all."""
    monkeypatch.setattr(kernel, "FEW_LOGITS", 64)
    logits, targets = case.inputs(n=65, dtype=logits_dtype, ignored=False)
    if (not case.own.labels) and targets_dtype.is_floating_point:
        targets_dtype = torch.int32
    targets = targets.to(targets_dtype)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        case.call(logits.requires_grad_(), targets, reduction=reduction)
    large = {tensor.data_ptr(): tensor.nbytes for tensor in kept if tensor.numel() > N_CLASSES}
    assert large == {tensor.data_ptr(): tensor.nbytes for tensor in (logits, targets)}

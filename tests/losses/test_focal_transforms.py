"""The focal losses under autograd (twice), ``torch.func`` and ``torch.compile``, on meta tensors; what they keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import SoftmaxFocalConfig, softmax_focal
from imbalanced_losses.kernels import focal as kernel
from imbalanced_losses.kernels import sigmoid_focal as sigmoid_kernel
from imbalanced_losses.kernels import softmax_focal as softmax_kernel
from imbalanced_losses.kernels.focal import FEW_LOGITS
from tests.losses.focal_cases import CASES, DEFAULTS, GAMMAS, N_CLASSES, Case
from tests.reads_data import ReadsData

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


@every_case
def test_jacobians_agree(case: Case) -> None:
    logits, targets = case.inputs()

    def loss(logits: Tensor, reduction: str = "none") -> Tensor:
        return case.call(logits, targets, reduction=reduction)

    assert_close(jacfwd(loss)(logits), jacrev(loss)(logits))
    assert_close(hessian(lambda z: loss(z, "mean"))(logits), jacrev(jacrev(lambda z: loss(z, "mean")))(logits))


@every_case
def test_jvp_is_the_gradient_along_the_tangent(case: Case) -> None:
    logits, targets = case.inputs()
    tangent = torch.randn_like(logits)
    value, pushed = jvp(lambda z: case.call(z, targets), (logits,), (tangent,))
    expected, gradient = value_and_grad(case, logits, targets)
    assert_close(value, expected)
    assert_close(pushed, (gradient * tangent).sum())


# --- vmap -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("in_dims", [(0, 0), (0, None), (None, 0)], ids=str)
@every_case
def test_vmap_is_a_loop(case: Case, in_dims: tuple[int | None, int | None], reduction: str) -> None:
    stacked = stacked_inputs(case)
    arguments = [tensor if dim == 0 else tensor[0] for tensor, dim in zip(stacked, in_dims, strict=True)]

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return case.call(logits, targets, reduction=reduction)

    def gradient(logits: Tensor, targets: Tensor) -> Tensor:
        return grad(lambda z: loss(z, targets).sum())(logits)

    def looped(function: Any) -> Tensor:
        members = [
            [tensor[i] if dim == 0 else tensor for tensor, dim in zip(arguments, in_dims, strict=True)]
            for i in range(3)
        ]
        return torch.stack([function(*member) for member in members])

    assert_close(vmap(loss, in_dims)(*arguments), looped(loss))
    assert_close(vmap(gradient, in_dims)(*arguments), looped(gradient))


@every_case
def test_vmap_over_weights(case: Case) -> None:
    logits, targets = case.inputs()
    weights = torch.rand(3, 6, dtype=torch.float64)
    batched = vmap(lambda weight: case.call(logits, targets, sample_weight=weight))(weights)
    assert_close(batched, torch.stack([case.call(logits, targets, sample_weight=weight) for weight in weights]))


def test_vmap_over_class_weights() -> None:
    logits, targets = CASES[-1].inputs()
    alphas = torch.rand(3, N_CLASSES, dtype=torch.float64)

    def gradient(alpha: Tensor) -> Tensor:
        return grad(lambda z: softmax_focal(z, targets, SoftmaxFocalConfig(label_smoothing=0.1), alpha=alpha))(logits)

    assert_close(vmap(gradient)(alphas), torch.stack([gradient(alpha) for alpha in alphas]))


@every_case
def test_vmap_nests_with_forward_mode(case: Case) -> None:
    logits, targets = stacked_inputs(case)
    tangents = torch.randn_like(logits)

    def pushed(logits: Tensor, targets: Tensor, tangent: Tensor) -> Tensor:
        return jvp(lambda z: case.call(z, targets), (logits,), (tangent,))[1]

    expected = [pushed(*member) for member in zip(logits, targets, tangents, strict=True)]
    assert_close(vmap(pushed)(logits, targets, tangents), torch.stack(expected))


# --- compile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["default", "none"])
@every_case
def test_compiled_is_eager(case: Case, reduction: str) -> None:
    changes = {} if reduction == "default" else {"reduction": reduction}
    logits, targets = case.inputs()
    weights = torch.rand(6, dtype=torch.float64)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        return case.call(logits, targets, sample_weight=weights, **changes)

    leaf = logits.clone().requires_grad_()
    value = loss(leaf, targets, weights)
    value.sum().backward()
    expected, gradient = value_and_grad(case, logits, targets, sample_weight=weights, **changes)
    assert_close(value, expected)
    assert_close(leaf.grad, gradient)


@every_case
def test_compiled_transforms_are_eager(case: Case) -> None:
    logits, targets = stacked_inputs(case)
    for function in (vmap(case.call), vmap(grad(case.call))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_close(compiled(logits, targets), function(logits, targets))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("case", [CASES[0], CASES[2], CASES[4], CASES[5]], ids=str)
def test_compiled_handles_every_number(case: Case, gamma: float) -> None:
    """Extremes like eager; a logit that is not finite shows in loss and gradient; an ignored one does not."""
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    logits, targets = case.inputs(dtype=torch.float32)
    logits = logits.mul(40).round()
    logits[1] *= 1e3
    if case.ignore_index is not None:
        targets[0] = case.ignore_index
        logits[0] = torch.nan
    for bad in (None, torch.nan, torch.inf) if case.is_softmax else (None, torch.nan, torch.inf, -torch.inf):
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


@each_loss
def test_the_default_backend_compiles(case: Case) -> None:
    logits, targets = case.inputs(n=33, dtype=torch.float32)
    leaf = logits.clone().requires_grad_()
    loss = torch.compile(case.call, fullgraph=True)(leaf, targets)
    loss.backward()
    expected, gradient = value_and_grad(case, logits, targets)
    assert_close(loss, expected)
    assert_close(leaf.grad, gradient)


@pytest.mark.parametrize(("case", "bad"), [*((case, torch.inf) for case in DEFAULTS), (DEFAULTS[0], -torch.inf)])
def test_the_default_backend_shows_a_logit_that_is_not_finite(case: Case, bad: float) -> None:
    logits, targets = case.inputs(n=33, dtype=torch.float32)
    logits[-1].view(-1)[:1] = bad
    logits.requires_grad_()
    torch.compile(case.call, fullgraph=True)(logits, targets, reduction="none").sum().backward()
    assert logits.grad is not None
    assert logits.grad[:-1].isfinite().all()
    assert not logits.grad[-1].isfinite().all()


# --- purity and memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@every_case
def test_forward_and_backward_on_meta_tensors(case: Case, dtype: torch.dtype) -> None:
    logits, targets = (tensor.to("meta") for tensor in case.inputs(dtype=dtype))
    logits.requires_grad_()
    loss = case.call(logits, targets, sample_weight=torch.ones(6, device="meta"))
    loss.backward()
    assert (loss.device.type, loss.dtype, loss.shape) == ("meta", torch.float32, ())
    assert logits.grad is not None
    assert (logits.grad.device.type, logits.grad.dtype, logits.grad.shape) == ("meta", dtype, logits.shape)


@pytest.mark.parametrize("on_cpu", [True, False])
@pytest.mark.parametrize("few", [FEW_LOGITS, 0])
@every_case
def test_nothing_reads_data_or_changes_an_argument(
    case: Case, few: int, on_cpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for numbers that choose a faster kernel, on the CPU."""
    monkeypatch.setattr(kernel, "FEW_LOGITS", few)
    if not on_cpu:
        for module in (kernel, sigmoid_kernel, softmax_kernel):
            monkeypatch.setattr(module, "may_branch_on_values", lambda *_: False)
    logits, targets = case.inputs()
    logits.requires_grad_()
    weights = torch.rand(6)
    versions = [tensor._version for tensor in (logits, targets, weights)]
    with ReadsData() as counter:
        case.call(logits, targets, sample_weight=weights).backward()
    assert set(counter.calls) <= ({"aten._local_scalar_dense.default"} if on_cpu else set())
    assert len(counter.calls) <= 7
    assert counter.total > 5
    assert [tensor._version for tensor in (logits, targets, weights)] == versions


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
    if case.is_softmax and targets_dtype.is_floating_point:
        targets_dtype = torch.int32
    targets = targets.to(targets_dtype)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        case.call(logits.requires_grad_(), targets, reduction=reduction)
    large = {tensor.data_ptr(): tensor.nbytes for tensor in kept if tensor.numel() > N_CLASSES}
    assert large == {tensor.data_ptr(): tensor.nbytes for tensor in (logits, targets)}

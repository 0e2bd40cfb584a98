"""Elementwise losses under autograd (twice), ``torch.func`` and ``torch.compile``, and on meta tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import SoftmaxFocalConfig, ldam, logit_adjusted, softmax_focal
from tests.contracts.elements import CASES, Case, each_loss, every_case, on_every_path, value_and_grad
from tests.reads_data import ReadsData

# torch's own forward mode scripts some of its decompositions
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def stacked_inputs(case: Case, members: int = 3) -> tuple[Tensor, Tensor]:
    inputs = [case.inputs(seed=seed) for seed in range(members)]
    return torch.stack([logits for logits, _ in inputs]), torch.stack([targets for _, targets in inputs])


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
@on_every_path
def test_derivatives_of_both_orders(case: Case, reduction: str) -> None:
    """Also forward over reverse, weighted, and under batched gradients."""
    logits, targets = case.inputs(n=3)
    weights = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return case.call(logits, targets, reduction=reduction, sample_weight=weights)

    logits.requires_grad_()
    options = {"fast_mode": True, "check_batched_grad": True}
    assert gradcheck(loss, logits, check_forward_ad=True, check_batched_forward_grad=True, **options)
    assert gradgradcheck(loss, logits, check_fwd_over_rev=True, **options)


@every_case
def test_every_entry_of_the_derivatives(case: Case) -> None:
    """Not along random directions only."""
    logits, targets = case.inputs(n=2)
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return case.call(logits, targets, sample_weight=weights)

    assert gradcheck(loss, logits.requires_grad_(), check_forward_ad=True)
    assert gradgradcheck(loss, logits)


@every_case
def test_jacobians_agree(case: Case) -> None:
    logits, targets = case.inputs()

    def loss(logits: Tensor, reduction: str = "none") -> Tensor:
        return case.call(logits, targets, reduction=reduction)

    assert_close(jacfwd(loss)(logits), jacrev(loss)(logits))
    assert_close(hessian(lambda z: loss(z, "mean"))(logits), jacrev(jacrev(lambda z: loss(z, "mean")))(logits))


@pytest.mark.parametrize("case", [case for case in CASES if case.own.labels], ids=str)
def test_labels_carry_no_tangent(case: Case) -> None:
    logits, targets = case.inputs()
    _, pushed = jvp(lambda labels: case.call(logits, labels), (targets,), (torch.ones_like(targets),))
    assert pushed.count_nonzero() == 0


@pytest.mark.parametrize("case", [case for case in CASES if case.loss.function not in (logit_adjusted, ldam)], ids=str)
def test_forward_mode_over_forward_mode_is_refused(case: Case) -> None:
    """Torch would give 0 for a derivative in closed form."""
    logits, targets = case.inputs()

    def loss(logits: Tensor) -> Tensor:
        return case.call(logits, targets, reduction="mean")

    with pytest.raises(RuntimeError, match="expected forward mode once at most"):
        jacfwd(jacfwd(loss))(logits)


@every_case
def test_jvp_is_the_gradient_along_the_tangent(case: Case) -> None:
    logits, targets = case.inputs()
    tangent = torch.randn_like(logits)
    value, pushed = jvp(lambda z: case.call(z, targets), (logits,), (tangent,))
    expected, gradient = value_and_grad(case.call, logits, targets)
    assert_close((value, pushed), (expected, (gradient * tangent).sum()))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@on_every_path
def test_a_second_backward_gives_the_same(case: Case, reduction: str) -> None:
    logits, targets = case.inputs()
    logits.requires_grad_()
    loss = case.call(logits, targets, reduction=reduction).sum()
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (double,) = torch.autograd.grad(2 * loss, logits)
    assert_close(double, 2 * first, rtol=0, atol=0)


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
    """Weighted, and for logits that are large, or not finite where the target is ignored."""
    changes = {} if reduction == "default" else {"reduction": reduction}
    logits, targets = case.inputs()
    weights = torch.rand(6, dtype=torch.float64)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss(logits: Tensor, targets: Tensor, sample_weight: Tensor) -> Tensor:
        return case.call(logits, targets, sample_weight=sample_weight, **changes)

    spoilt = torch.where(case.of_logits(~case.counted(targets)), torch.nan, logits)
    for rows in (logits, 1e3 * logits, spoilt):
        expected = value_and_grad(case.call, rows, targets, sample_weight=weights, **changes)
        assert_close(value_and_grad(loss, rows, targets, sample_weight=weights), expected)


@pytest.mark.parametrize("case", [case for case in CASES if not case.own.labels], ids=str)
def test_a_compiled_class_id_out_of_range_is_ignored(case: Case) -> None:
    """Compiled code does not check values; eager code refuses it."""
    logits, targets = case.inputs(ignored=False)
    wrong = targets.clone()
    wrong.view(-1)[:2] = torch.tensor([case.rest[0], -1])
    compiled = torch.compile(case.call, backend="aot_eager", fullgraph=True)
    assert case.ignore_index is not None
    ignored = torch.where((wrong < 0) | (wrong >= case.rest[0]), case.ignore_index, wrong)
    expected = value_and_grad(case.call, logits, ignored)
    assert_close(value_and_grad(compiled, logits, wrong), expected)


def test_a_smoothed_and_ignored_position_with_a_class_that_is_ruled_out() -> None:
    """Compiled it has no gradient either."""
    logits, targets = torch.tensor([[0.0, 1.0, 2.0], [0.5, 0.2, -torch.inf]]), torch.tensor([0, -100])
    cfg = SoftmaxFocalConfig(label_smoothing=0.1)
    compiled = torch.compile(lambda z: softmax_focal(z, targets, cfg), backend="aot_eager", fullgraph=True)
    expected = value_and_grad(lambda z, _: softmax_focal(z, targets, cfg), logits, targets)
    assert_close(value_and_grad(lambda z, _: compiled(z), logits, targets), expected)
    assert expected[1][1].count_nonzero() == 0


@every_case
def test_compiled_transforms_are_eager(case: Case) -> None:
    logits, targets = stacked_inputs(case)
    for function in (vmap(case.call), vmap(grad(case.call))):
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_close(compiled(logits, targets), function(logits, targets))


@each_loss
def test_the_default_backend_compiles(case: Case) -> None:
    """And shows a logit that is not finite, in its own row."""
    logits, targets = case.inputs(n=33, dtype=torch.float32)
    compiled = torch.compile(case.call, fullgraph=True)
    for bad in (None, torch.inf):
        if bad is not None:
            logits[-1].view(-1)[:1] = bad
        expected = value_and_grad(case.call, logits, targets, reduction="none")
        found = value_and_grad(compiled, logits, targets, reduction="none")
        assert_close([part[:-1] for part in found], [part[:-1] for part in expected])
        assert all(part[-1].isfinite().all() == (bad is None) for part in found)


# --- meta tensors, purity ---------------------------------------------------------------------------------------------


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
@on_every_path
def test_nothing_reads_data_or_changes_an_argument(case: Case, on_cpu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for numbers that choose a faster way, on the CPU."""
    if not on_cpu:
        monkeypatch.setattr("imbalanced_losses.dispatch._is_host_tensor", lambda _: False)
    logits, targets = case.inputs()
    logits.requires_grad_()
    weights = torch.rand(6)
    versions = [tensor._version for tensor in (logits, targets, weights)]
    with ReadsData() as counter:
        case.call(logits, targets, sample_weight=weights).backward()
    assert set(counter.calls) <= ({"aten._local_scalar_dense.default"} if on_cpu else set())
    assert len(counter.calls) <= (7 if case.path != "many" else 7 + logits.numel() // 2)  # each block may choose
    assert counter.total > 5
    assert [tensor._version for tensor in (logits, targets, weights)] == versions

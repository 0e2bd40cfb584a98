"""A logit of -inf rules its class out of the softmax focal loss, as in ``F.cross_entropy``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import SoftmaxFocalConfig, SoftmaxFocalLoss, softmax_focal
from imbalanced_losses.kernels import focal as kernel
from imbalanced_losses.kernels import softmax_focal as softmax_kernel
from tests.losses.focal_cases import GAMMAS

# torch's own forward mode scripts some of its decompositions
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

OUT = -torch.inf
every_gamma = pytest.mark.parametrize("gamma", GAMMAS)

ROWS = torch.tensor(
    [
        [0.3, OUT, 1.0, -0.5],
        [OUT, OUT, 1.0, -0.5],
        [OUT, OUT, 2.0, OUT],  # the target alone is left
        [60.0, -45.0, OUT, OUT],  # beyond where exp needs no maximum
        [-90.0, OUT, 90.0, 0.0],
        [0.3, 0.2, 1.0, -0.5],
        [OUT, OUT, OUT, OUT],  # ignored
        [torch.nan, OUT, torch.inf, 0.0],  # ignored
    ],
    dtype=torch.float64,
)
IDS = torch.tensor([0, 3, 2, 0, 0, 1, -100, -100])
RULED_OUT = ROWS == OUT
TARGET_OUT = torch.tensor([[0.3, OUT, 1.0, -0.5]], dtype=torch.float64), torch.tensor([1])


@pytest.fixture(autouse=True, params=[True, False], ids=["few", "many"])
def few_logits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(kernel, "FEW_LOGITS", 0)


def focal(logits: Tensor, targets: Tensor = IDS, gamma: float = 2.0, **settings: Any) -> Tensor:
    return softmax_focal(logits, targets, SoftmaxFocalConfig(**{"gamma": gamma, "reduction": "none", **settings}))


def value_and_grad(function: Any, *arguments: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    leaf = arguments[0].clone().requires_grad_()
    loss = function(leaf, *arguments[1:], **settings)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def without(logits: Tensor, targets: Tensor = IDS, gamma: float = 2.0, **settings: Any) -> tuple[Tensor, Tensor]:
    """Loss and gradient of each row with its ruled-out classes left away."""
    losses, gradient = torch.zeros(len(logits), dtype=torch.float64), torch.zeros_like(logits)
    for i, (row, target) in enumerate(zip(logits, targets, strict=True)):
        if target >= 0:
            kept = row > OUT
            own = kept[:target].sum()
            losses[i], gradient[i, kept] = (
                part.squeeze(0) for part in value_and_grad(focal, row[kept][None], own[None], gamma=gamma, **settings)
            )
    return losses, gradient


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@every_gamma
def test_it_is_the_loss_without_the_class(gamma: float, dtype: torch.dtype) -> None:
    rows = ROWS.to(dtype)
    loss, gradient = value_and_grad(focal, rows, gamma=gamma)
    expected, expected_gradient = without(rows, gamma=gamma)
    tolerance = {"rtol": 1e-6, "atol": 1e-30} if dtype != torch.float64 else {"rtol": 1e-12, "atol": 1e-300}
    assert_close(loss, expected.to(loss.dtype), **tolerance)
    assert_close(gradient, expected_gradient, **({} if dtype.itemsize == 2 else tolerance))
    assert (gradient[RULED_OUT] == 0).all()


@pytest.mark.parametrize("rest", [(), (3,), (2, 5)], ids=str)
def test_gamma_0_is_cross_entropy(rest: tuple[int, ...]) -> None:
    rows = ROWS[:6].reshape(6, 4, *[1] * len(rest)).expand(6, 4, *rest).clone()
    ids = IDS[:6].reshape(6, *[1] * len(rest)).expand(6, *rest)
    for targets in (ids, torch.where(ids == 0, 1, ids)):  # a target that is ruled out, too
        loss, gradient = value_and_grad(focal, rows, targets, gamma=0.0)
        expected, expected_gradient = value_and_grad(F.cross_entropy, rows, targets, reduction="none")
        assert_close(loss, expected)
        assert_close(gradient, expected_gradient)


@every_gamma
def test_a_target_that_is_ruled_out_has_an_infinite_loss(gamma: float) -> None:
    """And the gradient of cross-entropy, which is the limit for any gamma."""
    loss, gradient = value_and_grad(focal, *TARGET_OUT, gamma=gamma)
    assert loss.tolist() == [torch.inf]
    assert_close(gradient, value_and_grad(F.cross_entropy, *TARGET_OUT)[1])
    assert focal(*TARGET_OUT, gamma=gamma, reduction="mean") == torch.inf


@every_gamma
def test_all_classes_ruled_out_is_nan(gamma: float) -> None:
    rows = torch.full((1, 4), OUT)
    assert F.cross_entropy(rows, torch.tensor([0])).isnan()
    for logits in (rows, rows.repeat(1, 1)[:, :1]):
        loss, gradient = value_and_grad(focal, logits, torch.tensor([0]), gamma=gamma)
        assert loss.isnan().all()
        assert gradient.isnan().all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@every_gamma
def test_what_rules_nothing_out_still_shows(gamma: float, bad: float) -> None:
    for place in (0, 2):
        rows = ROWS[:1].clone()
        rows[0, place] = bad
        loss, gradient = value_and_grad(focal, rows, IDS[:1], gamma=gamma)
        assert loss.isnan().all()
        assert gradient.isnan().all()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_label_smoothing_is_infinite_as_in_cross_entropy(gamma: float) -> None:
    rows, ids = ROWS[:2], IDS[:2]
    loss, gradient = value_and_grad(focal, rows, ids, gamma=gamma, label_smoothing=0.1)
    expected, expected_gradient = value_and_grad(F.cross_entropy, rows, ids, reduction="none", label_smoothing=0.1)
    assert_close(loss, expected)
    assert loss.isposinf().all()
    if gamma == 0:
        assert_close(gradient, expected_gradient)


@every_gamma
def test_class_weights(gamma: float) -> None:
    """Also a weight of 0 for a class that is ruled out."""
    alpha = (0.5, 0.0, 2.0, 1.5)
    weight = torch.tensor(alpha, dtype=torch.float64)
    loss, gradient = value_and_grad(focal, ROWS, gamma=gamma, alpha=alpha)
    plain, plain_gradient = value_and_grad(focal, ROWS, gamma=gamma)
    of_target = torch.where(IDS >= 0, weight[IDS.clamp_min(0)], 0)
    assert_close(loss, plain * of_target)
    assert_close(gradient, plain_gradient * of_target[:, None])


def test_reductions() -> None:
    """The mean of few logits is one node of the graph."""
    kept = IDS >= 0
    for reduction, divisor in (("mean", 6), ("sum", 1), ("mean_positive", 3)):
        loss, gradient = value_and_grad(focal, ROWS, reduction=reduction)
        expected, expected_gradient = value_and_grad(focal, ROWS[kept], IDS[kept])
        assert_close(loss, expected.sum() / divisor)
        assert_close(gradient[kept], expected_gradient / divisor)


def test_the_module_takes_masked_logits() -> None:
    """As in attention or action masking: what is masked gets no gradient."""
    logits = torch.randn(5, 4, requires_grad=True)
    mask = torch.arange(4) == 3
    SoftmaxFocalLoss()(logits.masked_fill(mask, OUT), torch.tensor([0, 1, 2, 0, 1])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert (logits.grad[:, 3] == 0).all()


# --- derivatives and transforms ---------------------------------------------------------------------------------------


@every_gamma
def test_derivatives_of_both_orders(gamma: float) -> None:
    """By the logits that are left: a mask in front keeps finite differences away from the others."""
    kept = [0, 1, 2, 5]
    logits = torch.where(RULED_OUT, 0.25, ROWS)[kept].requires_grad_()
    mask, ids = RULED_OUT[kept], IDS[kept]

    def loss(logits: Tensor) -> Tensor:
        return focal(logits.masked_fill(mask, OUT), ids, gamma=gamma)

    options = {"fast_mode": True, "check_batched_grad": True}
    assert gradcheck(loss, logits, check_forward_ad=True, check_batched_forward_grad=True, **options)
    assert gradgradcheck(loss, logits, check_fwd_over_rev=True, **options)


@every_gamma
def test_transforms_agree(gamma: float) -> None:
    loss, gradient = value_and_grad(focal, ROWS, gamma=gamma)
    stacked = torch.stack([ROWS, ROWS.flip(0)])
    ids = torch.stack([IDS, IDS.flip(0)])

    def total(logits: Tensor, targets: Tensor) -> Tensor:
        return focal(logits, targets, gamma=gamma).sum()

    assert_close(vmap(lambda z, t: focal(z, t, gamma=gamma))(stacked, ids)[0], loss)
    assert_close(vmap(grad(total))(stacked, ids)[1], gradient.flip(0))
    tangent = torch.randn_like(ROWS)
    for rows in (ROWS, TARGET_OUT[0]):
        targets = IDS if rows is ROWS else TARGET_OUT[1]
        _, pushed = jvp(lambda z, t=targets: focal(z, t, gamma=gamma), (rows,), (tangent[: len(rows)],))
        expected = (value_and_grad(focal, rows, targets, gamma=gamma)[1] * tangent[: len(rows)]).sum(1)
        assert_close(pushed, expected)
    second = hessian(lambda z: total(z, IDS[:6]))(ROWS[:6])
    assert second.isfinite().all()
    assert (second[RULED_OUT[:6]] == 0).all()


@every_gamma
def test_compiled_is_eager(gamma: float) -> None:
    compiled = torch.compile(focal, fullgraph=True, backend="aot_eager")
    assert_close(value_and_grad(compiled, ROWS, gamma=gamma), value_and_grad(focal, ROWS, gamma=gamma))
    stacked = torch.stack([ROWS, ROWS])
    mapped = torch.compile(vmap(grad(lambda z: focal(z, gamma=gamma).sum())), fullgraph=True, backend="aot_eager")
    assert_close(mapped(stacked)[1], value_and_grad(focal, ROWS, gamma=gamma)[1])
    assert_close(value_and_grad(compiled, *TARGET_OUT, gamma=gamma), value_and_grad(focal, *TARGET_OUT, gamma=gamma))


@every_gamma
def test_steps_that_overwrite_and_those_that_do_not_agree(gamma: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator reads nothing."""
    expected = value_and_grad(focal, ROWS, gamma=gamma)
    for module in (kernel, softmax_kernel):
        monkeypatch.setattr(module, "may_branch_on_values", lambda *_: False)
    assert_close(value_and_grad(focal, ROWS, gamma=gamma), expected)
    leaf = ROWS.clone().requires_grad_()
    (plain,) = torch.autograd.grad(focal(leaf, gamma=gamma).sum(), leaf, create_graph=True)
    assert_close(plain.detach(), expected[1])
    (second,) = torch.autograd.grad(plain.square().sum(), leaf)
    assert second.isfinite().all()
    assert (second[RULED_OUT] == 0).all()

"""Values and gradients of the focal losses: the paper's formula, torch's cross-entropies, masks, weights, reduction."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad
from torch.testing import assert_close

from imbalanced_losses import SigmoidFocalConfig, SoftmaxFocalConfig, sigmoid_focal, softmax_focal
from imbalanced_losses.kernels import focal as kernel
from imbalanced_losses.kernels import sigmoid_focal as sigmoid_kernel
from imbalanced_losses.kernels import softmax_focal as softmax_kernel
from tests.losses.focal_cases import CASES, DEFAULTS, GAMMAS, N_CLASSES, Case, paper_sigmoid, paper_softmax

every_case = pytest.mark.parametrize("case", CASES, ids=str)
each_loss = pytest.mark.parametrize("case", DEFAULTS, ids=str)
every_gamma = pytest.mark.parametrize("gamma", GAMMAS)

SHAPES = [(5, N_CLASSES), (3, N_CLASSES, 7), (2, N_CLASSES, 3, 5)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


@pytest.fixture(autouse=True, params=[True, False], ids=["few", "many"])
def few_logits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of values runs on the path of few logits and on that of many."""
    if not request.param:
        monkeypatch.setattr(kernel, "FEW_LOGITS", 0)


def gradient_of(case: Case, logits: Tensor, targets: Tensor, **changes: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = case.call(leaf, targets, **changes)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def class_problem(shape: tuple[int, ...], ignored: bool = False) -> tuple[Tensor, Tensor]:
    logits = 2 * torch.randn(shape, dtype=torch.float64)
    targets = torch.randint(0, shape[1], (shape[0], *shape[2:]))
    return logits, torch.where(torch.rand(targets.shape) < 0.3, -100, targets) if ignored else targets


# --- the formula ------------------------------------------------------------------------------------------------------


@every_gamma
@pytest.mark.parametrize("alpha", [-1, 0.0, 0.25, 1.0])
def test_sigmoid_is_the_papers_formula(gamma: float, alpha: float) -> None:
    logits, targets = 3 * torch.randn(40, dtype=torch.float64), torch.randint(0, 2, (40,))
    loss = sigmoid_focal(logits, targets, SigmoidFocalConfig(alpha=alpha, gamma=gamma, reduction="none"))
    assert_close(loss, paper_sigmoid(logits, targets, gamma, alpha))


@every_gamma
@every_shape
@pytest.mark.parametrize("alpha", [None, (1.0, 0.5, 0.0, 2.0)])
def test_softmax_is_the_papers_formula(gamma: float, shape: tuple[int, ...], alpha: tuple[float, ...] | None) -> None:
    logits, targets = class_problem(shape)
    loss = softmax_focal(logits, targets, SoftmaxFocalConfig(alpha=alpha, gamma=gamma, reduction="none"))
    weights = None if alpha is None else torch.tensor(alpha, dtype=torch.float64)
    assert_close(loss, paper_softmax(logits, targets, gamma, weights))


@every_gamma
def test_soft_labels_focus_the_cross_entropy(gamma: float) -> None:
    """By the distance of the probability from the label: the quality focal loss."""
    logits, targets = torch.randn(40, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    p = logits.sigmoid()
    alpha_t = 0.3 * targets + 0.7 * (1 - targets)
    expected = alpha_t * (targets - p).abs() ** gamma * F.binary_cross_entropy(p, targets, reduction="none")
    assert_close(sigmoid_focal(logits, targets, SigmoidFocalConfig(alpha=0.3, gamma=gamma, reduction="none")), expected)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_second_derivative_at_the_label(gamma: float, compiled: bool) -> None:
    """Such as that of a head that starts at zero and a label of 1/2; for gammas up to 2 there is none but at 0."""
    cfg = SigmoidFocalConfig(alpha=-1, gamma=gamma, reduction="sum")
    label = torch.tensor(0.5, dtype=torch.float64)
    second = grad(grad(lambda z: sigmoid_focal(z[None], label[None], cfg)))
    second = torch.compile(second, backend="aot_eager") if compiled else second
    expected = {0.0: 1 / 4, 2.0: math.log(2) / 8}.get(gamma, 0.0)
    assert second(torch.zeros_like(label)).item() == pytest.approx(expected, abs=1e-12)


@every_gamma
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_label_smoothing_focuses_the_smoothed_cross_entropy(gamma: float, share: float) -> None:
    logits, targets = class_problem((9, N_CLASSES))
    focus = (1 - logits.softmax(1).gather(1, targets[:, None])[:, 0]) ** gamma
    expected = focus * F.cross_entropy(logits, targets, label_smoothing=share, reduction="none")
    cfg = SoftmaxFocalConfig(gamma=gamma, label_smoothing=share, reduction="none")
    assert_close(softmax_focal(logits, targets, cfg), expected)


@every_gamma
def test_two_classes_are_a_sigmoid_of_the_difference(gamma: float) -> None:
    logits, targets = class_problem((30, 2))
    sigmoid = sigmoid_focal(logits[:, 1] - logits[:, 0], targets, SigmoidFocalConfig(alpha=-1, gamma=gamma))
    assert_close(softmax_focal(logits, targets, SoftmaxFocalConfig(gamma=gamma)), sigmoid)


# --- torch's cross-entropies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32, torch.float64, None])
def test_without_gamma_it_is_binary_cross_entropy(reduction: Any, dtype: torch.dtype | None) -> None:
    """``None``: soft labels."""
    logits, targets = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.rand(6, 5, dtype=torch.float64)
    targets = targets if dtype is None else targets.round().to(dtype)
    loss = sigmoid_focal(logits, targets, SigmoidFocalConfig(alpha=-1, gamma=0, reduction=reduction))
    expected = F.binary_cross_entropy_with_logits(logits, targets.double(), reduction=reduction)
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(loss.sum(), logits), torch.autograd.grad(expected.sum(), logits))


@every_shape
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("alpha", [None, [1.0, 0.5, 0.0, 2.0]])
def test_without_gamma_it_is_cross_entropy(
    shape: tuple[int, ...], reduction: Any, ignored: bool, share: float, alpha: list[float] | None
) -> None:
    logits, targets = class_problem(shape, ignored)
    logits.requires_grad_()
    cfg = SoftmaxFocalConfig(gamma=0, reduction=reduction, label_smoothing=share)
    weights = None if alpha is None else torch.tensor(alpha, dtype=torch.float64)
    loss = softmax_focal(logits, targets, cfg, alpha=weights)
    mean_by_count = reduction == "mean" and alpha is not None  # where torch divides by the class weights' sum
    torch_reduction = "sum" if mean_by_count else reduction
    expected = F.cross_entropy(logits, targets, weights, label_smoothing=share, reduction=torch_reduction)
    expected = expected / (targets != -100).sum() if mean_by_count else expected
    assert_close(loss, expected)
    assert_close(torch.autograd.grad(loss.sum(), logits), torch.autograd.grad(expected.sum(), logits))


@every_gamma
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("n_classes", [1, N_CLASSES])
@every_case
def test_steps_that_overwrite_each_other_are_the_plain_expressions(
    case: Case, n_classes: int, ignored: bool, gamma: float
) -> None:
    """A gradient that is differentiated again, or taken under ``torch.func``, comes from plain expressions."""
    logits, targets = case.inputs(n=9, ignored=ignored)
    if (not case.own.labels) and n_classes == 1:
        logits, targets, case = logits[:, :1], targets.clamp_max(0), DEFAULTS[1]
    value, gradient = gradient_of(case, logits, targets, gamma=gamma)

    def loss(z: Tensor) -> Tensor:
        return case.call(z, targets, gamma=gamma).sum()

    plain_gradient, plain_value = torch.func.grad_and_value(loss)(logits)
    leaf = logits.clone().requires_grad_()
    (differentiable,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    assert_close(value.sum(), plain_value, rtol=1e-12, atol=1e-14)
    assert_close(gradient, plain_gradient, rtol=1e-12, atol=1e-14)
    assert_close(gradient, differentiable.detach(), rtol=1e-12, atol=1e-14)


# --- numbers of every size --------------------------------------------------------------------------------------------


@every_gamma
@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_extreme_logits_give_finite_values_and_two_finite_derivatives(
    gamma: float, share: float, dtype: torch.dtype
) -> None:
    scores = [-1e4, -90.0, -50.0, -20.0, 0.0, 20.0, 50.0, 90.0, 1e4]
    line = torch.tensor(scores, dtype=dtype, requires_grad=True)
    plane = torch.cartesian_prod(*[torch.tensor(scores, dtype=dtype)] * 2).requires_grad_()
    losses = [
        (line, sigmoid_focal(line, torch.full((9,), label), SigmoidFocalConfig(gamma=gamma)))
        for label in (0.0, 0.5, 1.0)
    ]
    cfg = SoftmaxFocalConfig(gamma=gamma, label_smoothing=share)
    losses.append((plane, softmax_focal(plane, torch.zeros(81, dtype=torch.int64), cfg)))
    for logits, loss in losses:
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        (second,) = torch.autograd.grad(gradient.float().square().sum(), logits)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert second.isfinite().all()


@every_gamma
@pytest.mark.parametrize("margin", [1e-3, 0.5, 5.0, 12.0, 17.0, 30.0])
@pytest.mark.parametrize("right", [True, False])
def test_float32_keeps_the_digits_of_small_losses(gamma: float, margin: float, right: bool) -> None:
    """Against the formula in float64, which has digits to spare up to these margins."""
    margin = margin if right else -margin
    label = torch.ones(1, dtype=torch.int64)
    for case, scores in zip(DEFAULTS, ([margin], [[3.0, 3.0 + margin, 1.0]]), strict=True):
        logits = torch.tensor(scores)
        value, gradient = gradient_of(case, logits, label, gamma=gamma)
        exact = logits.double().requires_grad_()
        miss = exact.softmax(1)[:, [0, 2]].sum(1) if (not case.own.labels) else (-exact).sigmoid()
        log_p = exact.log_softmax(1)[:, 1] if (not case.own.labels) else F.logsigmoid(exact)
        log_p = torch.log1p(-miss) if right else log_p  # each has its digits on one side
        expected = (-(1 if (not case.own.labels) else 0.25) * miss**gamma * log_p).sum()
        assert_close(value.double(), expected.detach(), rtol=2e-5, atol=torch.finfo(torch.float32).tiny)
        expected_gradient = torch.autograd.grad(expected, exact)[0]
        assert_close(gradient.double(), expected_gradient, rtol=2e-5, atol=torch.finfo(torch.float32).tiny)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@every_gamma
@every_case
def test_a_logit_that_is_not_finite_shows(case: Case, gamma: float, bad: float) -> None:
    if (not case.own.labels) and bad == -torch.inf:
        return  # it rules a class out: tests/losses/test_ruled_out_classes.py
    logits, targets = case.inputs(dtype=torch.float32)
    expected, expected_gradient = gradient_of(case, logits, targets, gamma=gamma, reduction="none")
    logits[-1].view(-1)[:1] = bad
    loss, gradient = gradient_of(case, logits, targets, gamma=gamma, reduction="none")
    assert not loss[-1].isfinite().all()
    assert not gradient[-1].isfinite().all()
    assert_close(loss[:-1], expected[:-1], rtol=0, atol=0)
    assert_close(gradient[:-1], expected_gradient[:-1], rtol=0, atol=0)
    assert not case.call(logits, targets, gamma=gamma, reduction="mean").isfinite()


@every_case
@pytest.mark.parametrize("threads", [1, 3])
def test_blocks_of_rows_change_nothing(case: Case, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case.inputs(n=11)
    expected = gradient_of(case, *inputs, reduction="none")
    monkeypatch.setattr(sigmoid_kernel, "SIGMOID_BLOCK", 2 * inputs[0][0].numel())
    monkeypatch.setattr(softmax_kernel, "SOFTMAX_BLOCK", 2 * inputs[0][0].numel())
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_close(gradient_of(case, *inputs, reduction="none"), expected, rtol=1e-14, atol=1e-15)


# --- ignored elements -------------------------------------------------------------------------------------------------


def test_ignore_index_of_unsigned_targets_does_not_wrap_around() -> None:
    """As uint8, 156 equals -100."""
    logits, targets = torch.zeros(2, 200), torch.tensor([156, 0], dtype=torch.uint8)
    assert (softmax_focal(logits, targets, SoftmaxFocalConfig(reduction="none")) > 0).all()


# --- reductions -------------------------------------------------------------------------------------------------------


def test_mean_positive_divides_the_sum_over_all_by_the_foreground() -> None:
    logits, targets = class_problem((4, N_CLASSES, 6), ignored=True)
    targets[0, :3] = torch.tensor([0, 2, 3])
    for background in (0, 2):
        total = softmax_focal(logits, targets, SoftmaxFocalConfig(reduction="sum"))
        cfg = SoftmaxFocalConfig(reduction="mean_positive", background_class=background)
        n_foreground = ((targets != background) & (targets != -100)).sum()
        assert_close(softmax_focal(logits, targets, cfg), total / n_foreground)


def test_mean_positive_with_weights_and_without_foreground() -> None:
    logits, targets = class_problem((6, N_CLASSES))
    cfg, weights = SoftmaxFocalConfig(reduction="mean_positive"), torch.rand(6, dtype=torch.float64)
    elements = softmax_focal(logits, targets, SoftmaxFocalConfig(reduction="none"))
    expected = (weights * elements).sum() / weights[targets != 0].sum()
    assert_close(softmax_focal(logits, targets, cfg, sample_weight=weights), expected)
    background = torch.zeros_like(targets)
    elements = softmax_focal(logits, background, SoftmaxFocalConfig(reduction="none"))
    assert_close(softmax_focal(logits, background, cfg), elements.sum())


@every_case
def test_only_logits_carry_gradient(case: Case) -> None:
    logits, targets = case.inputs()
    weights = torch.rand(6, requires_grad=True)
    targets = targets if (not case.own.labels) else targets.requires_grad_()
    assert not case.call(logits, targets, sample_weight=weights).requires_grad
    if not case.own.labels:
        alpha = torch.rand(logits.shape[1], requires_grad=True)
        assert not softmax_focal(logits, targets, case.config(), alpha=alpha).requires_grad


def test_alpha_as_a_tensor_overrides_the_configuration() -> None:
    logits, targets = class_problem((6, N_CLASSES))
    weights = (1.0, 0.5, 0.25, 2.0)
    expected = softmax_focal(logits, targets, SoftmaxFocalConfig(alpha=weights))
    for cfg in (SoftmaxFocalConfig(), SoftmaxFocalConfig(alpha=[9.0] * N_CLASSES)):
        assert_close(softmax_focal(logits, targets, cfg, alpha=torch.tensor(weights)), expected, rtol=0, atol=0)


# --- steps that depend on the values ----------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, 1.0, 40.0])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@every_gamma
@every_case
def test_steps_chosen_by_the_values_are_the_others(
    case: Case, gamma: float, reduction: str, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels 0 and 1 and logits of up to 30 have steps of their own, on the CPU."""
    logits, targets = case.inputs(n=9)
    values = gradient_of(case, scale * logits, targets, gamma=gamma, reduction=reduction)
    for module in (kernel, sigmoid_kernel, softmax_kernel):
        monkeypatch.setattr(module, "may_branch_on_values", lambda *_: False)
    expected = gradient_of(case, scale * logits, targets, gamma=gamma, reduction=reduction)
    assert_close(values, expected, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_classes_at_every_place_show_that_they_are_not_finite(bad: float) -> None:
    """Also among ignored positions, which do not."""
    for shape in SHAPES:
        for place in range(N_CLASSES):
            logits, targets = class_problem(shape)
            targets[0] = -100
            logits[:2, place] = bad
            leaf = logits.requires_grad_()
            loss = softmax_focal(leaf, targets, SoftmaxFocalConfig(reduction="none"))
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            assert not loss[1].isfinite().any()
            assert not gradient[1].isfinite().any()
            for rows in (loss, gradient):
                assert (rows[0] == 0).all()
                assert rows[2:].isfinite().all()

"""The asymmetric loss: the paper's formula in NumPy, torch's own losses, and the contract of every loss."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import AsymmetricConfig, AsymmetricLoss, SigmoidFocalConfig, asymmetric, sigmoid_focal
from imbalanced_losses.kernels import focal as kernel
from tests.compiled.processes import run_python

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

IGNORE = -100


@dataclass(frozen=True)
class Case:
    """The loss in one configuration, for logits ``[N, *rest]``."""

    name: str
    rest: tuple[int, ...] = (4,)
    options: Mapping[str, Any] = field(default_factory=dict)
    soft: bool = False

    def __str__(self) -> str:
        return self.name

    def config(self, **changes: Any) -> AsymmetricConfig:
        return AsymmetricConfig(**{"ignore_index": IGNORE, **self.options, **changes})

    def call(self, logits: Tensor, targets: Tensor, *, weight: Tensor | None = None, **changes: Any) -> Tensor:
        return asymmetric(logits, targets, self.config(**changes), sample_weight=weight)

    def inputs(self, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Logits, and labels of which the first is ignored."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(n, *self.rest, generator=generator, dtype=torch.float64)
        targets = torch.rand(n, *self.rest, generator=generator, dtype=torch.float64)
        targets = targets if self.soft else targets.round()
        targets.view(-1)[:1] = IGNORE
        return logits.to(dtype), targets


CASES = [
    Case("defaults"),
    Case("binary", ()),
    Case("one-column", (1,), {"gamma_pos": 0.0}),
    Case("dense", (4, 2, 3), {"gamma_pos": 0, "gamma_neg": 1, "margin": 0.2}),
    Case("no-margin", (4,), {"margin": 0.0}),
    Case("no-margin-roots", (4,), {"margin": 0.0, "gamma_pos": 0.5, "gamma_neg": 0.3}),
    Case("roots", (4,), {"margin": 0.1, "gamma_pos": 0.5, "gamma_neg": 0.3}),
    Case("fractions", (4,), {"margin": 0.01, "gamma_pos": 1.5, "gamma_neg": 2.5}),
    Case("cross-entropy", (4,), {"margin": 0.0, "gamma_pos": 0, "gamma_neg": 0}),
    Case("margin-only", (4,), {"margin": 0.05, "gamma_pos": 0, "gamma_neg": 0}),
    Case("tiny-margin", (4,), {"margin": 1e-6}),
    Case("no-negatives", (4,), {"margin": 1.0}),
    Case("soft", (4,), soft=True),
    Case("soft-no-margin", (4,), {"margin": 0.0, "gamma_pos": 2.0}, soft=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(params=["few", "many", "accelerator"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms that are kept; blocks, from which the backward recomputes; the path that reads nothing."""
    from imbalanced_losses.kernels import asymmetric as terms

    if request.param != "few":
        monkeypatch.setattr(kernel, "FEW_LOGITS", 0)
        monkeypatch.setattr(terms, "SIGMOID_BLOCK", 5)
    if request.param == "accelerator":
        monkeypatch.setattr(terms, "may_branch_on_values", lambda *_: False)


def reference(case: Case, logits: Tensor, targets: Tensor, **changes: Any) -> Tensor:
    """Ben-Baruch et al., eq. 4 to 7, element by element; logarithms of the sigmoid from logaddexp."""
    cfg = case.config(**changes)
    z, y = logits.double().numpy(), targets.numpy()
    losses = np.zeros(z.shape)
    for index in np.ndindex(*z.shape):
        label = float(y[index])
        if label == IGNORE:
            continue
        log_p, log_one_minus_p = -np.logaddexp(0, -z[index]), -np.logaddexp(0, z[index])
        of_positive = math.exp(log_one_minus_p) ** cfg.gamma_pos * log_p
        p_m = max(math.exp(log_p) - cfg.margin, 0.0)
        log_one_minus_p_m = log_one_minus_p if cfg.margin == 0 else 0.0
        if cfg.margin > 0 and p_m > 0:
            log_one_minus_p_m = math.log(math.exp(log_one_minus_p) + cfg.margin)
        of_negative = p_m**cfg.gamma_neg * log_one_minus_p_m
        losses[index] = -label * of_positive - (1 - label) * of_negative
    return torch.from_numpy(losses)


def value_and_grad(case: Case, logits: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = case.call(leaf, targets, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def central_difference(case: Case, logits: Tensor, targets: Tensor, step: float = 1e-5) -> Tensor:
    """The gradient of the sum of the reference; elements do not depend on each other."""
    above, below = (reference(case, logits.double() + d, targets) for d in (step, -step))
    return (above - below) / (2 * step)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@every_case
def test_it_is_the_papers_formula(case: Case) -> None:
    logits, targets = case.inputs(n=9)
    expected = reference(case, logits, targets)
    assert_close(case.call(logits, targets, reduction="none"), expected, rtol=1e-9, atol=1e-12)
    assert_close(case.call(logits, targets, reduction="sum"), expected.sum())
    assert_close(case.call(logits, targets), expected.sum() / (targets != IGNORE).sum())
    slope = value_and_grad(case, logits, targets, reduction="sum")[1]
    assert_close(slope, central_difference(case, logits, targets), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_case
def test_lower_precision_computes_in_float32(case: Case, dtype: torch.dtype) -> None:
    logits, targets = case.inputs(n=9, dtype=dtype)
    loss, gradient = value_and_grad(case, logits, targets, reduction="none")
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_close(loss.double(), reference(case, logits, targets), rtol=1e-6, atol=1e-6)
    slope, eps = central_difference(case, logits, targets), torch.finfo(dtype).eps
    assert_close(gradient.double(), slope, rtol=max(2 * eps, 1e-5), atol=1e-6)


def test_numbers_by_hand() -> None:
    """At p = 1/2 with the paper's settings: 0.5 log 2 of a positive, -0.45^4 log 0.55 of a negative."""
    loss = asymmetric(torch.zeros(2), torch.tensor([1, 0]), AsymmetricConfig(reduction="none"))
    assert_close(loss, torch.tensor([0.5 * math.log(2), -(0.45**4) * math.log(0.55)]))


def test_binary_cross_entropy() -> None:
    case = Case("", options={"gamma_pos": 0, "gamma_neg": 0, "margin": 0}, soft=True)
    logits, targets = case.inputs()
    targets[0, 0] = 0.3
    leaf = logits.clone().requires_grad_()
    expected = F.binary_cross_entropy_with_logits(leaf, targets)
    slope = torch.autograd.grad(expected, leaf)[0]
    assert_close(value_and_grad(case, logits, targets), (expected.detach(), slope))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_equal_exponents_are_the_focal_loss(gamma: float) -> None:
    case = Case("", options={"gamma_pos": gamma, "gamma_neg": gamma, "margin": 0})
    logits, targets = case.inputs()
    focal = SigmoidFocalConfig(alpha=-1, gamma=gamma, ignore_index=IGNORE)
    assert_close(case.call(logits, targets), sigmoid_focal(logits, targets, focal))


def test_negatives_below_the_margin_do_not_count() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3]).logit().requires_grad_()
    cfg = AsymmetricConfig(margin=0.25, reduction="none")
    loss = asymmetric(logits, torch.zeros(3), cfg)
    gradient = torch.autograd.grad(loss.sum(), logits)[0]
    assert (loss > 0).tolist() == (gradient > 0).tolist() == [False, False, True]
    assert asymmetric(logits, torch.ones(3), cfg).gt(0).all()


@pytest.mark.parametrize("kind", [torch.float16, torch.int64, torch.uint8, torch.bool])
def test_labels_of_any_dtype(kind: torch.dtype) -> None:
    logits, targets = Case("").inputs()
    labels = targets.clamp_min(0)
    assert_close(
        asymmetric(logits, labels.to(kind), AsymmetricConfig()), asymmetric(logits, labels, AsymmetricConfig())
    )


# --- extremes ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@every_case
def test_large_logits(case: Case, dtype: torch.dtype) -> None:
    sizes = torch.tensor([17.0, 88.0, 104.0, 800.0, 1e4], dtype=dtype).reshape(-1, *[1] * len(case.rest))
    logits, targets = case.inputs(n=20)
    logits = (logits.sign().to(dtype).unflatten(0, (5, 4)) * sizes.unsqueeze(1)).flatten(0, 1)
    loss, gradient = value_and_grad(case, logits, targets, reduction="none")
    expected = reference(case, logits, targets)
    assert gradient.isfinite().all()
    assert_close(loss.to(torch.float64), expected, rtol=1e-6, atol=1e-6)
    slope = central_difference(case, logits, targets, 0.25) if not case.name.startswith("no-neg") else None
    if slope is not None:  # straight lines, on which a wide difference is exact
        assert_close(gradient.double(), slope, rtol=1e-2, atol=1e-3)


@every_case
def test_large_logits_have_second_derivatives(case: Case) -> None:
    logits = torch.tensor([-1e4, -104.0, -88.0, 88.0, 104.0, 1e4], requires_grad=True)
    for label in (0.0, 1.0):
        loss = case.call(logits, torch.full_like(logits, label), reduction="sum")
        slope = torch.autograd.grad(loss, logits, create_graph=True)[0]
        curvature = torch.autograd.grad(slope.sum(), logits)[0]
        assert slope.isfinite().all()
        assert_close(curvature, torch.zeros(6), rtol=0, atol=1e-6)
        traced = vmap(grad(grad(lambda z, y: case.call(z[None], y[None], reduction="sum"))))(
            logits.detach(), torch.full((6,), label)
        )
        assert_close(traced, torch.zeros(6), rtol=0, atol=1e-6)


@pytest.mark.parametrize("margin", [0.0, 1e-6, 0.05, 0.5])
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.5, 4.0])
@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=8), st.floats(0, 1, width=32))
def test_float32_against_float64(gamma: float, margin: float, values: list[float], label: float) -> None:
    cfg = AsymmetricConfig(gamma_pos=gamma, gamma_neg=gamma, margin=margin, reduction="none")
    case = Case("", (), {"gamma_pos": gamma, "gamma_neg": gamma, "margin": margin})
    logits, targets = torch.tensor(values), torch.full((len(values),), label)
    loss = asymmetric(logits, targets, cfg)
    assert_close(loss.double(), reference(case, logits, targets.double()), rtol=3e-6, atol=2e-6)
    assert (loss >= 0).all()


@pytest.mark.usefixtures("path")
@every_case
def test_ignored_targets_get_no_gradient(case: Case) -> None:
    """Whatever their logits are."""
    logits, targets = case.inputs()
    expected, gradient = value_and_grad(case, logits, targets)
    is_ignored = targets == IGNORE
    assert (gradient[is_ignored] == 0).all()
    for bad in (torch.nan, torch.inf, -torch.inf):
        loss, changed = value_and_grad(case, torch.where(is_ignored, bad, logits), targets)
        assert_close((loss, changed), (expected, gradient), rtol=0, atol=0)


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@every_case
def test_a_logit_that_is_not_finite_shows(case: Case, bad: float, reduction: str) -> None:
    """In the loss and, for a GradScaler, in the gradient; whatever the label is."""
    logits, targets = case.inputs()
    for label in (0.0, 1.0):
        logits.view(-1)[-1], targets.view(-1)[-1] = bad, label
        loss, gradient = value_and_grad(case, logits, targets, reduction=reduction)
        assert not loss.isfinite().all()
        assert not gradient.isfinite().all()
        assert gradient.view(-1)[:-1].isfinite().all()
        traced = grad(lambda z, y: case.call(z, y, reduction="sum"))(logits, targets)
        assert not traced.isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_case
def test_nothing_to_count(case: Case, reduction: str) -> None:
    logits, targets = case.inputs()
    for z, y in ((logits[:0], targets[:0]), (logits, torch.full_like(targets, IGNORE))):
        loss, gradient = value_and_grad(case, z, y, reduction=reduction)
        assert loss == 0
        assert (gradient == 0).all()


# --- weights ----------------------------------------------------------------------------------------------------------


@every_case
def test_weights(case: Case) -> None:
    logits, targets = case.inputs()
    weight = torch.rand(6, dtype=torch.float64)
    each = weight.reshape(-1, *[1] * (targets.dim() - 1)).expand_as(targets) * (targets != IGNORE)
    expected = reference(case, logits, targets)
    assert_close(case.call(logits, targets, weight=weight), (expected * each).sum() / each.sum())
    assert_close(case.call(logits, targets, weight=weight, reduction="sum"), (expected * each).sum())
    assert_close(case.call(logits, targets, weight=torch.ones(6)), case.call(logits, targets))
    assert case.call(logits, targets, weight=torch.zeros(6)) == 0
    broadcast = weight.reshape(-1, *[1] * (targets.dim() - 1))
    assert_close(
        case.call(logits, targets, weight=broadcast), case.call(logits, targets, weight=broadcast.expand_as(targets))
    )


# --- derivatives and transforms ---------------------------------------------------------------------------------------


@every_case
def test_derivatives(case: Case) -> None:
    logits, targets = case.inputs(n=3)
    logits.requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return case.call(logits, targets, weight=torch.tensor([1.0, 2.0, 0.5]))

    assert gradcheck(loss, logits, check_forward_ad=True)
    assert gradgradcheck(loss, logits)


@every_case
def test_jvp_is_the_gradient_along_the_tangent(case: Case) -> None:
    logits, targets = case.inputs()
    tangent = torch.randn_like(logits)
    value, pushed = jvp(lambda z: case.call(z, targets), (logits,), (tangent,))
    expected, gradient = value_and_grad(case, logits, targets)
    assert_close((value, pushed), (expected, (gradient * tangent).sum()))


@every_case
def test_vmap_is_a_loop(case: Case) -> None:
    members = [case.inputs(seed=seed) for seed in range(3)]
    logits, targets = (torch.stack([member[i] for member in members]) for i in range(2))
    gradients = vmap(grad(case.call))(logits, targets)
    assert_close(gradients, torch.stack([value_and_grad(case, *member)[1] for member in members]))
    weights = torch.rand(3, 6, dtype=torch.float64)
    weighted = vmap(lambda z, y, w: case.call(z, y, weight=w))(logits, targets, weights)
    looped = [case.call(*member, weight=weight) for member, weight in zip(members, weights, strict=True)]
    assert_close(weighted, torch.stack(looped))


@every_case
def test_compiled_is_eager(case: Case) -> None:
    logits, targets = case.inputs()
    compiled = torch.compile(case.call, fullgraph=True, backend="aot_eager")
    leaf = logits.clone().requires_grad_()
    loss = compiled(leaf, targets)
    loss.backward()
    assert_close((loss.detach(), leaf.grad), value_and_grad(case, logits, targets))


@every_case
def test_on_meta_tensors(case: Case) -> None:
    logits, targets = (tensor.to("meta") for tensor in case.inputs(dtype=torch.bfloat16))
    loss, gradient = value_and_grad(case, logits, targets)
    assert loss.is_meta
    assert (gradient.shape, gradient.dtype) == (logits.shape, logits.dtype)


COMPILED = """
import sys, torch
from torch.testing import assert_close
from imbalanced_losses import AsymmetricConfig, asymmetric

torch.set_num_threads(int(sys.argv[1]))
generator = torch.Generator().manual_seed(0)
logits = 4 * torch.randn(2000, 10, generator=generator)
targets = torch.rand(2000, 10, generator=generator).round()
targets[::7] = -100
logits[0], logits[1, 0], logits[2, :2] = torch.nan, 1e4, -1e4  # row 0 is ignored

def step(z, gamma_neg, margin):
    return asymmetric(z, targets, AsymmetricConfig(gamma_neg=gamma_neg, margin=margin, ignore_index=-100))

for gamma_neg, margin in ((4.0, 0.05), (0.5, 0.05), (4.0, 0.0), (0.5, 0.0)):
    results = []
    for function in (step, torch.compile(step, fullgraph=True)):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, gamma_neg, margin)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    assert_close(results[1][0], results[0][0])
    assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-9)
bad = logits.clone()
bad[1, 0] = torch.inf
bad.requires_grad_()
loss = torch.compile(step, fullgraph=True)(bad, 4.0, 0.05)
loss.backward()
assert not loss.isfinite() and not bad.grad[1, 0].isfinite()
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_default_backend_is_eager_mode(threads: int, tmp_path: Any) -> None:
    """In a process of its own, with the backend's caches empty."""
    script, output = tmp_path / "step.py", tmp_path / "output"
    script.write_text(COMPILED)
    failure = run_python([str(script), str(threads)], output, timeout=300)
    assert not failure, output.read_text()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gamma_pos": -1.0}, ValueError, "expected gamma_pos to be a finite number of at least 0"),
        ({"gamma_neg": math.inf}, ValueError, "expected gamma_neg to be a finite number of at least 0"),
        ({"gamma_neg": "4"}, TypeError, "expected gamma_neg to be a number"),
        ({"margin": -0.1}, ValueError, r"expected margin in \[0, 1\], got -0.1"),
        ({"margin": 1.5}, ValueError, r"expected margin in \[0, 1\], got 1.5"),
        ({"reduction": "max"}, ValueError, "expected reduction to be one of"),
        ({"ignore_index": 0.5}, TypeError, "expected ignore_index to be an int"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        AsymmetricConfig(**options)
    with pytest.raises(error, match=message):
        AsymmetricLoss(**options)


@pytest.mark.parametrize(
    ("logits", "targets", "weight", "error", "message"),
    [
        (torch.zeros(4, 3), torch.zeros(4), None, ValueError, r"expected targets of shape \[4, 3\] like the logits"),
        (torch.zeros(4).long(), torch.zeros(4), None, TypeError, "expected floating-point logits"),
        (torch.zeros(4), torch.zeros(4, dtype=torch.complex64), None, TypeError, "expected targets of a real dtype"),
        (torch.zeros(4), torch.zeros(4, device="meta"), None, ValueError, "expected targets on cpu like the logits"),
        (torch.zeros(4), torch.zeros(4), torch.ones(3), ValueError, r"expected sample_weight of shape \[4\]"),
    ],
)
def test_arguments_that_do_not_fit(
    logits: Tensor, targets: Tensor, weight: Tensor | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        asymmetric(logits, targets, AsymmetricConfig(), sample_weight=weight)
    with pytest.raises(error, match=message):
        AsymmetricLoss()(logits, targets, sample_weight=weight)
    with pytest.raises(TypeError, match="expected cfg to be a AsymmetricConfig"):
        asymmetric(logits, targets, None)  # type: ignore[arg-type]


# --- the module -------------------------------------------------------------------------------------------------------


def lives(loss_fn: AsymmetricLoss) -> Iterator[AsymmetricLoss]:
    """The module after what training code does with modules."""
    yield loss_fn
    yield copy.deepcopy(loss_fn)
    yield pickle.loads(pickle.dumps(loss_fn))
    yield loss_fn.half()
    with torch.device("meta"):
        module = AsymmetricLoss(**{name: getattr(loss_fn, name) for name in SETTINGS})
    module.to_empty(device="cpu").reset_parameters()
    yield module


SETTINGS = ("gamma_pos", "gamma_neg", "margin", "reduction", "ignore_index")


@every_case
def test_the_module_is_the_function(case: Case) -> None:
    """Bit for bit."""
    logits, targets = case.inputs(dtype=torch.float32)
    loss, gradient = value_and_grad(case, logits, targets)
    for module in lives(AsymmetricLoss(**{"ignore_index": IGNORE, **case.options})):
        assert module.config == case.config()
        leaf = logits.clone().requires_grad_()
        own = module(leaf, targets, sample_weight=None)
        assert torch.equal(own, loss)
        assert torch.equal(torch.autograd.grad(own, leaf)[0], gradient)
        weight = torch.rand(6)
        assert torch.equal(module(logits, targets, sample_weight=weight), case.call(logits, targets, weight=weight))


def test_settings_can_be_assigned() -> None:
    loss_fn = AsymmetricLoss()
    logits, targets = Case("").inputs()
    targets[0, 0] = 1
    loss_fn.gamma_neg, loss_fn.margin, loss_fn.gamma_pos = 0, 0.0, 0
    assert_close(loss_fn(logits, targets), F.binary_cross_entropy_with_logits(logits, targets))
    with pytest.raises(ValueError, match="expected margin in"):
        loss_fn.margin = 2
    assert "gamma_neg=0.0" in repr(loss_fn)
    assert not loss_fn.state_dict()


def test_the_module_checks_values() -> None:
    loss_fn, logits = AsymmetricLoss(), torch.zeros(2)
    with pytest.raises(ValueError, match="expected targets"):
        loss_fn(logits, torch.tensor([0.0, 2.0]))
    with pytest.raises(ValueError, match="sample_weight"):
        loss_fn(logits, torch.zeros(2), sample_weight=torch.tensor([1.0, -1.0]))
    loss_fn.validate_targets = False
    loss_fn(logits, torch.tensor([0.0, 2.0]))

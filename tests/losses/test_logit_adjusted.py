"""Logit-adjusted cross-entropy: the papers' formulas in NumPy, torch's own losses, and the contract of every loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import LogitAdjustedConfig, class_priors, init_class_counts, logit_adjusted, update_class_counts
from tests.compiled.worker import code_for

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

IGNORE = -100


@dataclass(frozen=True)
class Case:
    """The loss in one configuration, for logits ``[N, *rest]``."""

    name: str
    rest: tuple[int, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    soft: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def is_binary(self) -> bool:
        return bool(self.options.get("multilabel")) or not self.rest or self.rest[0] == 1

    def config(self, **changes: Any) -> LogitAdjustedConfig:
        return LogitAdjustedConfig(**{**self.options, **changes})

    def call(self, logits: Tensor, targets: Tensor, *, weight: Tensor | None = None, **changes: Any) -> Tensor:
        return logit_adjusted(logits, targets, self.config(**changes), sample_weight=weight)

    def inputs(self, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Logits, and targets of which the first is ignored."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(n, *self.rest, generator=generator, dtype=torch.float64)
        if self.is_binary:
            targets = torch.rand(n, *self.rest, generator=generator, dtype=torch.float64)
            targets = targets if self.soft else targets.round()
        else:
            targets = torch.randint(0, self.rest[0], (n, *self.rest[1:]), generator=generator)
        targets.view(-1)[:1] = IGNORE
        return logits.to(dtype), targets


COUNTS = (700, 250, 49, 1)
SHARES = (0.6, 0.02, 0.0, 1.0)
CASES = [
    Case("softmax", (4,), {"priors": COUNTS}),
    Case("softmax-tau", (4,), {"priors": COUNTS, "tau": 0.7, "label_smoothing": 0.1}),
    Case("softmax-vs", (4, 3), {"priors": (0.4, 0.3, 0.2, 0.1), "tau": 1.5, "gamma": 0.4}),
    Case("softmax-cdt", (4, 2, 3), {"priors": COUNTS, "tau": 0.0, "gamma": 0.2}),
    Case("softmax-unseen", (4,), {"priors": (10, 0, 5, 5), "gamma": 0.1}),
    Case("binary", (), {"priors": 0.05}),
    Case("binary-vs", (1,), {"priors": (0.1,), "gamma": 0.3}),
    Case("binary-counts", (1,), {"priors": (190, 10), "tau": 1.2, "gamma": 0.3}),
    Case("multilabel", (4,), {"priors": SHARES, "multilabel": True}),
    Case("multilabel-vs", (4, 2), {"priors": (0.6, 0.02, 0.1, 0.5), "gamma": 0.5, "multilabel": True}),
    Case("multilabel-soft", (4,), {"priors": SHARES, "multilabel": True}, soft=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def softmax_reference(z: Any, targets: Any, cfg: LogitAdjustedConfig) -> Any:
    """Kini et al., the multi-class VS loss without class weights, row by row."""
    n_classes = z.shape[1]
    counts = np.maximum(np.array(cfg.priors), 1e-12)
    pi, delta = counts / counts.sum(), (counts / counts.max()) ** cfg.gamma
    rows = np.moveaxis(z, 1, -1).reshape(-1, n_classes)
    losses = []
    for row, target in zip(rows, targets.reshape(-1), strict=True):
        if target == IGNORE:
            losses.append(0.0)
            continue
        adjusted = delta * row + cfg.tau * np.log(pi)
        log_p = adjusted - np.logaddexp.reduce(adjusted)
        losses.append(-(1 - cfg.label_smoothing) * log_p[target] - cfg.label_smoothing * log_p.mean())
    return np.array(losses).reshape(targets.shape)


def binary_reference(s: Any, targets: Any, cfg: LogitAdjustedConfig) -> Any:
    """Kini et al., the binary VS loss ``log(1 + exp(iota_y) exp(-Delta_y y s))`` with y in {-1, 1}, one by one."""
    assert cfg.priors is not None
    pairs = [cfg.priors] if len(cfg.priors) == 2 else [(1 - share, share) for share in cfg.priors]
    losses = np.zeros_like(s)
    for index in np.ndindex(*s.shape):
        label = targets[index]
        if label == IGNORE:
            continue
        pair = np.maximum(pairs[index[1] if len(index) > 1 else 0], 1e-12)
        delta = (pair / pair.max()) ** cfg.gamma
        log_odds = cfg.tau * np.log(pair[1] / pair[0])
        for share, y in ((label, 1), (1 - label, -1)):
            exponent = -y * (delta[(y + 1) // 2] * s[index] + log_odds)
            losses[index] += share * np.logaddexp(0, exponent)
    return losses


def reference(case: Case, logits: Tensor, targets: Tensor, **changes: Any) -> Tensor:
    function = binary_reference if case.is_binary else softmax_reference
    return torch.from_numpy(function(logits.double().numpy(), targets.numpy(), case.config(**changes)))


def value_and_grad(case: Case, logits: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = case.call(leaf, targets, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


# --- values -----------------------------------------------------------------------------------------------------------


@every_case
def test_it_is_the_papers_formula(case: Case) -> None:
    logits, targets = case.inputs(n=9)
    expected = reference(case, logits, targets)
    assert_close(case.call(logits, targets, reduction="none"), expected, rtol=1e-9, atol=1e-9)
    assert_close(case.call(logits, targets, reduction="sum"), expected.sum())
    assert_close(case.call(logits, targets), expected.sum() / (targets != IGNORE).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_case
def test_lower_precision_computes_in_float32(case: Case, dtype: torch.dtype) -> None:
    logits, targets = case.inputs(n=9, dtype=dtype)
    loss, gradient = value_and_grad(case, logits, targets, reduction="none")
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_close(loss.double(), reference(case, logits, targets), rtol=1e-6, atol=1e-6)


def test_numbers_by_hand() -> None:
    cfg = LogitAdjustedConfig(priors=[9, 1], reduction="none")
    rows = torch.zeros(2, 2), torch.tensor([0, 1])
    assert_close(logit_adjusted(*rows, cfg), -torch.tensor([0.9, 0.1]).log())
    assert_close(logit_adjusted(torch.zeros(2), rows[1], cfg), -torch.tensor([0.9, 0.1]).log())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("rest", [(4,), (4, 3), (4, 2, 3)])
def test_softmax_against_torch(rest: tuple[int, ...], smoothing: float) -> None:
    """``tau=1``: balanced softmax, by torch's cross-entropy; ``tau=gamma=0`` is the cross-entropy itself."""
    case = Case("", rest, {"priors": COUNTS, "label_smoothing": smoothing})
    logits, targets = case.inputs()
    shares = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    adjusted = logits + shares.log().reshape(-1, *[1] * (len(rest) - 1))
    assert_close(case.call(logits, targets), F.cross_entropy(adjusted, targets, label_smoothing=smoothing))
    assert_close(case.call(logits, targets, tau=0), F.cross_entropy(logits, targets, label_smoothing=smoothing))


def test_binary_against_torch() -> None:
    case = Case("", (4,), {"priors": (0.6, 0.02, 0.1, 0.5), "multilabel": True}, soft=True)
    logits, targets = case.inputs()
    targets.view(-1)[:1] = 0.3
    log_odds = torch.tensor(case.options["priors"], dtype=torch.float64).logit()
    assert_close(case.call(logits, targets), F.binary_cross_entropy_with_logits(logits + log_odds, targets))
    assert_close(case.call(logits, targets, tau=0), F.binary_cross_entropy_with_logits(logits, targets))


def test_two_classes_are_one_binary_logit() -> None:
    logits, targets = Case("", (2,), {}).inputs()
    targets[0] = 1
    cfg = LogitAdjustedConfig(priors=(30, 70), tau=0.8)
    pair = logit_adjusted(logits, targets, cfg)
    assert_close(logit_adjusted(logits[:, 1] - logits[:, 0], targets, cfg), pair)
    assert_close(logit_adjusted(logits[:, 1] - logits[:, 0], targets, LogitAdjustedConfig(priors=0.7, tau=0.8)), pair)


def test_scale_of_the_priors_does_not_count() -> None:
    logits, targets = CASES[2].inputs()
    expected = value_and_grad(CASES[2], logits, targets)
    assert_close(value_and_grad(CASES[2], logits, targets, priors=(4e6, 3e6, 2e6, 1e6)), expected)


def test_labels_between_interpolate_the_factor() -> None:
    cfg = LogitAdjustedConfig(priors=0.2, gamma=1.0, tau=0.0)  # factors 1/4 and 1
    loss = logit_adjusted(torch.tensor([2.0]), torch.tensor([0.6]), cfg)
    factor = 0.6 * 0.25 + 0.4
    assert_close(loss, F.binary_cross_entropy_with_logits(torch.tensor([2 * factor]), torch.tensor([0.6])))


def test_binary_targets_without_the_class_axis() -> None:
    case = CASES[6]
    logits, targets = case.inputs()
    assert_close(case.call(logits, targets[:, 0].long()), case.call(logits, targets))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda v: torch.tensor(v, dtype=torch.float64)])
def test_priors_of_any_sequence(kind: Any) -> None:
    assert LogitAdjustedConfig(priors=kind(COUNTS)).priors == COUNTS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@every_case
def test_priors_as_an_argument(case: Case, dtype: torch.dtype) -> None:
    priors = torch.tensor(case.config().priors)
    if dtype == torch.int64 and max(case.config().priors or ()) <= 1:
        return
    logits, targets = case.inputs(dtype=torch.float32)
    cfg = case.config(priors=None)
    assert_close(logit_adjusted(logits, targets, cfg, priors=priors.to(dtype)), case.call(logits, targets))


# --- extremes ---------------------------------------------------------------------------------------------------------


@every_case
def test_large_logits(case: Case) -> None:
    logits, targets = case.inputs(n=20, dtype=torch.float32)
    logits = logits.sign() * 1e4
    loss, gradient = value_and_grad(case, logits, targets, reduction="none")
    assert gradient.isfinite().all()
    assert_close(loss.double(), reference(case, logits, targets), rtol=1e-6, atol=2e-3)  # a rounding of 1e4


@every_case
def test_ignored_targets_get_no_gradient(case: Case) -> None:
    """Whatever their logits are."""
    logits, targets = case.inputs()
    expected, gradient = value_and_grad(case, logits, targets)
    is_ignored = (targets == IGNORE) if case.is_binary else (targets == IGNORE).unsqueeze(1).expand_as(logits)
    assert (gradient[is_ignored] == 0).all()
    for bad in (torch.nan, torch.inf, -torch.inf):
        loss, changed = value_and_grad(case, torch.where(is_ignored, bad, logits), targets)
        assert_close((loss, changed), (expected, gradient), rtol=0, atol=0)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@every_case
def test_a_logit_that_is_not_finite_shows(case: Case, bad: float, reduction: str) -> None:
    """In the loss and, for a GradScaler, in the gradient."""
    logits, targets = case.inputs()
    logits[-1] = bad
    loss, gradient = value_and_grad(case, logits, targets, reduction=reduction)
    assert not loss.isfinite().all()
    assert not gradient.isfinite().all()


def test_a_class_that_is_ruled_out() -> None:
    logits, targets = CASES[0].inputs()
    logits[:, 3], targets[targets == 3] = -torch.inf, 0
    loss, gradient = value_and_grad(CASES[0], logits, targets)
    assert loss.isfinite()
    assert (gradient[:, 3] == 0).all()
    assert_close(loss, Case("", (3,), {"priors": COUNTS[:3]}).call(logits[:, :3], targets))


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
    plain = case.call(logits, targets, reduction="none")
    assert_close(case.call(logits, targets, weight=weight), (plain * each).sum() / each.sum())
    assert_close(case.call(logits, targets, weight=weight, reduction="sum"), (plain * each).sum())
    assert_close(case.call(logits, targets, weight=torch.ones(6)), case.call(logits, targets))
    assert case.call(logits, targets, weight=torch.zeros(6)) == 0


@every_case
def test_weights_that_broadcast(case: Case) -> None:
    logits, targets = case.inputs()
    weight = torch.rand(6, *[1] * (targets.dim() - 1), dtype=torch.float64)
    expected = case.call(logits, targets, weight=weight.expand_as(targets))
    assert_close(case.call(logits, targets, weight=weight), expected)


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


def test_vmap_over_priors() -> None:
    logits, targets = CASES[2].inputs()
    priors = torch.rand(3, 4, dtype=torch.float64)
    cfg = CASES[2].config(priors=None)
    mapped = vmap(lambda p: logit_adjusted(logits, targets, cfg, priors=p))(priors)
    assert_close(mapped, torch.stack([logit_adjusted(logits, targets, cfg, priors=p) for p in priors]))


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


def step(z: Tensor, ids: Tensor, labels: Tensor, counts: Any) -> Any:
    """Every path of the loss, and both ways to count, at sizes that the compiler splits over threads."""
    softmax = LogitAdjustedConfig(gamma=0.2, label_smoothing=0.1)
    multilabel = LogitAdjustedConfig(gamma=0.2, multilabel=True)
    counts = update_class_counts(counts, ids)
    labelled = update_class_counts(init_class_counts(10), labels, multilabel=True)
    loss = logit_adjusted(z, ids, softmax, priors=class_priors(counts))
    loss = loss + logit_adjusted(z, labels, multilabel, priors=class_priors(labelled))
    return loss + logit_adjusted(z[:, 0], labels[:, 0], LogitAdjustedConfig(priors=0.1)), counts, labelled


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_default_backend_is_eager_mode(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 10, generator=generator)
    ids = torch.randint(0, 10, (2000,), generator=generator)
    labels = torch.rand(2000, 10, generator=generator).round()
    ids[::7], labels[::7] = IGNORE, IGNORE
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    expected, *states = step(leaves[0], ids, labels, init_class_counts(10))
    expected.backward()
    with code_for(threads):
        loss, *compiled_states = torch.compile(step, fullgraph=True)(leaves[1], ids, labels, init_class_counts(10))
        loss.backward()
    assert_close(loss, expected)
    assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-5, atol=1e-8)
    for state, compiled in zip(states, compiled_states, strict=True):
        assert torch.equal(state.positives, compiled.positives)
        assert torch.equal(state.labels, compiled.labels)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tau": -1.0}, ValueError, "expected tau to be a finite number of at least 0"),
        ({"gamma": math.inf}, ValueError, "expected gamma"),
        ({"reduction": "max"}, ValueError, "expected reduction to be one of"),
        ({"label_smoothing": 2}, ValueError, "expected label_smoothing in"),
        ({"label_smoothing": 0.1, "multilabel": True}, ValueError, "smooth the targets"),
        ({"multilabel": 1}, TypeError, "expected multilabel to be True or False"),
        ({"ignore_index": 0.5}, TypeError, "expected ignore_index to be an int"),
        ({"priors": (1, -1)}, ValueError, "expected every weight in priors"),
        ({"priors": (0, 0)}, ValueError, "expected priors with a class above 0"),
        ({"priors": ()}, ValueError, "expected priors with a class above 0"),
        ({"priors": "stream"}, TypeError, "expected priors to be a sequence of numbers"),
        ({"priors": torch.ones(2, 2)}, ValueError, r"expected priors of shape \[C\], got \[2, 2\]"),
        ({"priors": torch.ones(2, requires_grad=True)}, TypeError, "detach"),
        ({"priors": (5, 3), "multilabel": True}, ValueError, "divide the number of positives"),
        ({"priors": 7}, ValueError, "divide the number of positives"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LogitAdjustedConfig(**settings)


ROWS, IDS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ROWS, IDS), {}, ValueError, "expected priors, got none: give class counts"),
        ((ROWS, IDS), {"priors": torch.ones(2)}, ValueError, r"expected priors of shape \[3\], got \[2\]"),
        ((ROWS[:, 0], IDS), {"priors": torch.ones(3)}, ValueError, r"expected priors of shape \[1\], or \[2\]"),
        ((ROWS, IDS), {"priors": [1, 1, 1]}, TypeError, "expected priors to be a Tensor"),
        ((ROWS, IDS), {"priors": torch.ones(3, device="meta")}, ValueError, "expected priors on cpu like the logits"),
        ((ROWS.long(), IDS), {"priors": torch.ones(3)}, TypeError, "expected floating-point logits"),
        ((ROWS, IDS.float()), {"priors": torch.ones(3)}, TypeError, "use targets.long()"),
        ((ROWS, IDS[:2]), {"priors": torch.ones(3)}, ValueError, r"expected targets of shape \[4\]"),
        ((ROWS[:, 0], ROWS), {"priors": torch.ones(1)}, ValueError, r"expected targets of shape \[4\]"),
        ((ROWS, IDS), {"priors": torch.ones(3), "sample_weight": IDS[:2]}, ValueError, "expected sample_weight"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        logit_adjusted(*arguments, LogitAdjustedConfig(), **options)
    with pytest.raises(TypeError, match="expected cfg to be a LogitAdjustedConfig"):
        logit_adjusted(ROWS, IDS, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="smooth the targets"):
        logit_adjusted(ROWS[:, 0], IDS, LogitAdjustedConfig(priors=0.5, label_smoothing=0.1))


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_rarer_classes_need_a_larger_margin() -> None:
    """The loss of a tie grows as the target's class gets rarer."""
    cfg = LogitAdjustedConfig(priors=COUNTS, reduction="none")
    losses = logit_adjusted(torch.zeros(4, 4), torch.arange(4), cfg).tolist()
    assert all(frequent < rare for frequent, rare in pairwise(losses))

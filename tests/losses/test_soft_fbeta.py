"""The soft F-beta loss: the paper's counts in NumPy, scikit-learn's F-beta as its limit, and the contract."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import fbeta_score
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import (
    QueueState,
    SoftFBetaConfig,
    SoftFBetaLoss,
    init_queue,
    soft_fbeta,
    soft_fbeta_per_class,
    stack_states,
)
from tests.compiled.processes import run_python

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

IGNORE = -100


@dataclass(frozen=True)
class Case:
    name: str
    num_classes: int = 1
    multilabel: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name

    def config(self, **changes: Any) -> SoftFBetaConfig:
        kind = {"num_classes": self.num_classes, "multilabel": self.multilabel}
        return SoftFBetaConfig(**{**kind, **self.options, **changes})

    def rows(self, n: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, targets of which the last is ignored, and weights."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.randn(n, self.num_classes, generator=generator, dtype=torch.float64)
        highest = self.num_classes if self.num_classes > 1 and not self.multilabel else 2
        shape = (n, self.num_classes) if self.multilabel else (n,)
        targets = torch.randint(0, highest, shape, generator=generator)
        targets[:highest] = torch.arange(highest).reshape(-1, *[1] * (targets.dim() - 1))  # some of every class
        targets[-1:] = IGNORE
        return logits.to(dtype), targets, torch.rand(n, generator=generator, dtype=torch.float64) + 0.1

    def queue(self, size: int = 6, seed: int = 1) -> QueueState:
        empty = init_queue(size, self.num_classes, multilabel=self.multilabel, dtype=torch.float64)
        logits, targets, weight = self.rows(n=size + 1, seed=seed)
        return soft_fbeta(logits[:size], targets[:size], empty, self.config(), sample_weight=weight[:size])[1]


CASES = [
    Case("binary"),
    Case("f2", options={"beta": 2.0, "temperature": 0.3}),
    Case("offset", options={"beta": 0.5, "eta": -0.7}),
    Case("classes", 3, options={"eta": 0.4}),
    Case("multilabel", 3, multilabel=True, options={"beta": 1.5}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def reference(case: Case, logits: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Bénédict et al.: soft true and false positives and false negatives, row by row; one minus F-beta of each class.

    ``nan`` without a positive of positive weight.
    """
    cfg, losses = case.config(), []
    for c in range(case.num_classes):
        true_positives = false_positives = false_negatives = 0.0
        for i in range(len(logits)):
            target = int(targets[i, c] if case.multilabel else targets[i])
            if target == IGNORE:
                continue
            is_positive = target == (1 if case.multilabel or case.num_classes == 1 else c)
            w = 1.0 if weight is None else float(weight[i])
            soft = float(1 / (1 + np.exp(-(float(logits[i, c]) + cfg.eta) / cfg.temperature)))
            true_positives += w * soft * is_positive
            false_positives += w * soft * (not is_positive)
            false_negatives += w * (1 - soft) * is_positive
        if true_positives + false_negatives == 0:
            losses.append(np.nan)
            continue
        squared = cfg.beta**2
        top = (1 + squared) * true_positives
        losses.append(1 - top / (top + squared * false_negatives + false_positives))
    return torch.tensor(losses, dtype=torch.float64)


def call(case: Case, logits: Tensor, targets: Tensor, queue: QueueState | None = None, **options: Any) -> Tensor:
    changes = {name: options.pop(name) for name in ("reduction", "temperature", "max_pool_size") if name in options}
    queue = init_queue(0, case.num_classes, multilabel=case.multilabel) if queue is None else queue
    return soft_fbeta(logits, targets, queue, case.config(**changes), **options)[0]


def value_and_grad(case: Case, logits: Tensor, targets: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = call(case, leaf, targets, *args, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


# --- values -----------------------------------------------------------------------------------------------------------


@every_case
def test_it_is_the_papers_formula(case: Case) -> None:
    logits, targets, weight = case.rows()
    expected = reference(case, logits, targets)
    assert_close(call(case, logits, targets, reduction="none"), expected)
    assert_close(call(case, logits, targets), expected.mean())
    assert_close(call(case, logits, targets, reduction="sum"), expected.sum())
    weighted = call(case, logits, targets, reduction="none", sample_weight=weight)
    assert_close(weighted, reference(case, logits, targets, weight))
    scaled = call(case, logits, targets, reduction="none", sample_weight=1000 * weight)
    assert_close(scaled, weighted)


@every_case
def test_the_queue_is_part_of_the_pool(case: Case) -> None:
    logits, targets, weight = case.rows()
    queue = case.queue()
    pooled = [
        torch.cat(pair) for pair in ((logits, queue.logits), (targets, queue.targets), (weight, queue.sample_weight))
    ]
    loss, gradient = value_and_grad(case, logits, targets, queue, reduction="none", sample_weight=weight)
    assert_close(loss, reference(case, *pooled))
    whole = value_and_grad(case, pooled[0], pooled[1], reduction="none", sample_weight=pooled[2])[1]
    assert_close(gradient, whole[: len(logits)])


@every_case
def test_the_queue_gets_the_rows(case: Case) -> None:
    logits, targets, weight = case.rows()
    queue = case.queue(size=20)
    state = soft_fbeta(logits, targets, queue, case.config(), sample_weight=weight)[1]
    kept = [(state.logits, logits), (state.targets, targets), (state.sample_weight, weight)]
    for own, rows in kept:
        assert_close(own.roll(-int(state.cursor), 0)[-8:], rows.to(own.dtype))
    assert soft_fbeta(logits, targets, queue, case.config(), update_queue=False)[1] is queue


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_case
def test_lower_precision_computes_in_float32(case: Case, dtype: torch.dtype) -> None:
    logits, targets, weight = case.rows(dtype=dtype)
    loss, gradient = value_and_grad(case, logits, targets, reduction="none", sample_weight=weight.float())
    assert loss.dtype == torch.float32
    assert gradient.dtype == dtype
    assert_close(loss.double(), reference(case, logits, targets, weight.float()), rtol=1e-6, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-6, 6).filter(bool), st.booleans(), st.integers(0, 3)), min_size=1, max_size=12),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.integers(-3, 3),
)
def test_the_limit_is_scikit_learns(rows: list[tuple[int, bool, int]], beta: float, offset: int) -> None:
    """Of the decisions at ``-eta``, with sample weights; and diagnostics report it."""
    logits = torch.tensor([score / 2 - offset - 0.25 for score, _, _ in rows])
    targets, weight = torch.tensor([int(label) for _, label, _ in rows]), torch.tensor([float(w) for _, _, w in rows])
    cfg = SoftFBetaConfig(num_classes=1, beta=beta, eta=offset, temperature=1e-4)
    options = {"sample_weight": weight.numpy(), "zero_division": 0.0}
    per_class = soft_fbeta_per_class(logits, targets, init_queue(0, 1), cfg, sample_weight=weight)[0]
    assert bool(per_class.valid) == bool((targets * weight).sum() > 0)
    if per_class.valid:
        expected = fbeta_score(targets, (logits + offset > 0).int(), beta=beta, **options)
        assert per_class.loss.item() == pytest.approx(1 - expected, abs=1e-6)
        loss_fn = SoftFBetaLoss(1, beta=beta, eta=offset, temperature=0.5, queue_size=0)
        loss = loss_fn(logits, targets, sample_weight=weight)
        assert loss_fn.diagnostics()["gap"].item() == pytest.approx(loss.item() - (1 - expected), abs=1e-5)


def test_a_score_at_the_threshold_counts_by_half() -> None:
    """TP = 1/2, FN = 1/2, FP = 0: F1 = 2/3."""
    for temperature in (1.0, 1e-30):
        cfg = SoftFBetaConfig(num_classes=1, eta=-0.5, temperature=temperature)
        loss = soft_fbeta(torch.tensor([0.5]), torch.tensor([1]), init_queue(0, 1), cfg)[0]
        assert loss.item() == pytest.approx(1 / 3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(-20, 20, width=32), st.booleans()), min_size=1, max_size=10), st.randoms())
def test_range_and_order_of_rows(rows: list[tuple[float, bool]], random: Any) -> None:
    shuffled = random.sample(rows, len(rows))
    losses = []
    for some in (rows, shuffled):
        logits, targets = (torch.tensor([row[i] for row in some]) for i in range(2))
        losses.append(soft_fbeta(logits, targets, init_queue(0, 1), SoftFBetaConfig(num_classes=1))[0])
    assert 0 <= losses[0] <= 1
    assert_close(losses[0], losses[1])


def test_rows_that_are_not_iid_count() -> None:
    case = CASES[0]
    logits, targets, _ = case.rows()
    mask = torch.arange(8) % 2 == 0
    assert torch.equal(call(case, logits, targets, iid_mask=mask), call(case, logits, targets))


def test_a_sample_of_the_pool_estimates_its_counts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(3000, generator=generator), torch.randint(0, 20, (3000,), generator=generator) == 0
    cfg = SoftFBetaConfig(num_classes=1, max_pool_size=600)
    queue = init_queue(0, 1)
    exact = soft_fbeta(logits, targets, queue, SoftFBetaConfig(num_classes=1))[0]
    drawn = [soft_fbeta(logits, targets, queue, cfg, generator=generator)[0] for _ in range(40)]
    assert torch.stack(drawn).mean().item() == pytest.approx(exact.item(), abs=0.005)


# --- extremes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("temperature", [1e-30, 0.01, 1.0])
@every_case
def test_large_logits(case: Case, temperature: float, dtype: torch.dtype) -> None:
    logits, targets, _ = case.rows(dtype=dtype)
    loss, gradient = value_and_grad(case, logits.sign() * 1e4, targets, temperature=temperature)
    assert 0 <= loss <= 1
    assert gradient.isfinite().all()


def test_a_positive_that_is_missed_most_has_a_gradient() -> None:
    """Of ``exp(-30)``: in float32, ``y (1 - y)`` of the backward would be 0."""
    case = CASES[0]
    logits, targets = torch.tensor([-30.0, 3.0]), torch.tensor([1, 1])
    assert (value_and_grad(case, logits, targets)[1] < 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@every_case
def test_a_class_without_positives(case: Case, reduction: str) -> None:
    """It is invalid: 0 or nan, without gradient. So is one whose positives weigh nothing."""
    logits, targets, _ = case.rows()
    none = torch.full_like(targets, IGNORE)
    for z, y, weight in ((logits[:0], targets[:0], None), (logits, none, None), (logits, targets, torch.zeros(8))):
        loss, gradient = value_and_grad(case, z, y, reduction=reduction, sample_weight=weight)
        assert loss.isnan().all() if reduction == "none" else loss == 0
        assert (gradient == 0).all()
    if case.num_classes > 1:
        per_class, _ = soft_fbeta_per_class(
            logits, torch.where(targets == 1, targets, 0), init_queue(0, 3, multilabel=case.multilabel), case.config()
        )
        assert per_class.valid.any()


@every_case
def test_ignored_rows_get_no_gradient(case: Case) -> None:
    """Whatever their logits are."""
    logits, targets, _ = case.rows()
    expected = value_and_grad(case, logits, targets)
    assert (expected[1][-1] == 0).all()
    for bad in (torch.nan, torch.inf, -torch.inf):
        changed = logits.clone()
        changed[-1] = bad
        assert_close(value_and_grad(case, changed, targets), expected, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@every_case
def test_a_logit_that_is_not_finite_shows(case: Case, bad: float) -> None:
    """In loss and gradient of this step, and in no later one."""
    logits, targets, _ = case.rows()
    logits[3] = bad
    leaf = logits.clone().requires_grad_()
    loss, state = soft_fbeta(leaf, targets, case.queue(), case.config())
    gradient = torch.autograd.grad(loss, leaf)[0]
    assert not loss.isfinite()
    assert not gradient.isfinite().all()
    traced = grad(lambda z: call(case, z, targets))(logits)
    assert not traced.isfinite().all()
    assert soft_fbeta(*case.rows(seed=5)[:2], state, case.config())[0].isfinite()


# --- derivatives and transforms ---------------------------------------------------------------------------------------


@every_case
def test_derivatives(case: Case) -> None:
    logits, targets, weight = case.rows(n=5)
    queue = case.queue()
    logits.requires_grad_()

    def loss(logits: Tensor) -> Tensor:
        return call(case, logits, targets, queue, sample_weight=weight)

    assert gradcheck(loss, logits, check_forward_ad=True)
    assert gradgradcheck(loss, logits)


@every_case
def test_jvp_is_the_gradient_along_the_tangent(case: Case) -> None:
    logits, targets, _ = case.rows()
    tangent = torch.randn_like(logits)
    value, pushed = jvp(lambda z: call(case, z, targets), (logits,), (tangent,))
    expected, gradient = value_and_grad(case, logits, targets)
    assert_close((value, pushed), (expected, (gradient * tangent).sum()))


@every_case
def test_vmap_is_a_loop(case: Case) -> None:
    members = [case.rows(seed=seed) for seed in range(3)]
    queues = [case.queue(seed=seed) for seed in (4, 5, 6)]
    logits, targets, weights = (torch.stack([member[i] for member in members]) for i in range(3))

    def step(z: Tensor, y: Tensor, w: Tensor, queue: QueueState) -> tuple[Tensor, QueueState]:
        return soft_fbeta(z, y, queue, case.config(), sample_weight=w)

    gradients, states = vmap(grad(step, has_aux=True))(logits, targets, weights, stack_states(queues))
    for i, (member, queue) in enumerate(zip(members, queues, strict=True)):
        expected = value_and_grad(case, *member[:2], queue, sample_weight=member[2])[1]
        assert_close(gradients[i], expected)
        state = step(*member, queue)[1]
        assert torch.equal(states.logits[i], state.logits)
        assert torch.equal(states.cursor[i], state.cursor)


@every_case
def test_compiled_is_eager_in_one_compilation(case: Case) -> None:
    """For all temperatures."""
    logits, targets, _ = case.rows()
    queue, cfg = case.queue(), case.config()
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    compiled = torch.compile(soft_fbeta, fullgraph=True, backend=backend)
    for temperature in (0.5, 0.2, 0.1):
        at = torch.tensor(temperature)
        leaf = logits.clone().requires_grad_()
        loss, state = compiled(leaf, targets, queue, cfg, temperature=at)
        loss.backward()
        expected = value_and_grad(case, logits, targets, queue, temperature=temperature)
        assert_close((loss.detach(), leaf.grad), expected)
        assert_close(state.logits, soft_fbeta(logits, targets, queue, cfg)[1].logits)
    assert len(graphs) == 1


@every_case
def test_on_meta_tensors(case: Case) -> None:
    logits, targets = (tensor.to("meta") for tensor in case.rows(dtype=torch.bfloat16)[:2])
    queue = init_queue(5, case.num_classes, multilabel=case.multilabel, device="meta")
    loss, gradient = value_and_grad(case, logits, targets, queue)
    assert loss.is_meta
    assert (gradient.shape, gradient.dtype) == (logits.shape, logits.dtype)


COMPILED = """
import sys, torch
from torch.testing import assert_close
from imbalanced_losses import SoftFBetaConfig, init_queue, soft_fbeta

torch.set_num_threads(int(sys.argv[1]))
for classes, multilabel, batch, size in ((1, False, 32, 1024), (3, False, 600, 500), (3, True, 64, 40)):
    generator = torch.Generator().manual_seed(0)
    cfg = SoftFBetaConfig(num_classes=classes, multilabel=multilabel, beta=2.0, temperature=0.2)
    queue = init_queue(size, classes, multilabel=multilabel)
    def rows(n):
        shape = (n, classes) if multilabel else (n,)
        targets = torch.randint(0, 2 if multilabel else max(classes, 2), shape, generator=generator)
        targets[::5] = -100
        return torch.randn(n, classes, generator=generator), targets, torch.rand(n, generator=generator)
    def step(z, y, w, queue):
        return soft_fbeta(z, y, queue, cfg, sample_weight=w)
    z, y, w = rows(size)
    queue = step(z, y, w, queue)[1]
    z, y, w = rows(batch)
    for bad in (False, True):
        z[3] = torch.inf if bad else z[3]
        results = []
        for function in (step, torch.compile(step, fullgraph=True)):
            leaf = z.clone().requires_grad_()
            loss, state = function(leaf, y, w, queue)
            loss.backward()
            results.append((loss.detach(), leaf.grad, state.logits, state.targets, state.cursor))
        assert results[0][0].isfinite() != bad
        assert_close(results[1], results[0], rtol=1e-5, atol=1e-8, equal_nan=True)
"""


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_default_backend_is_eager_mode(threads: int, tmp_path: Any) -> None:
    """In a process of its own."""
    script, output = tmp_path / "step.py", tmp_path / "output"
    script.write_text(COMPILED)
    failure = run_python([str(script), str(threads)], output, timeout=300)
    assert not failure, output.read_text()


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"beta": 0}, ValueError, "expected beta to be a finite number above 0"),
        ({"beta": "1"}, TypeError, "expected beta to be a number"),
        ({"eta": float("nan")}, ValueError, "expected eta to be a finite number, got nan"),
        ({"eta": None}, TypeError, "expected eta to be a number"),
        ({"temperature": 0}, ValueError, "expected temperature to be a finite number above 0"),
        ({"num_classes": 0}, ValueError, "expected num_classes to be at least 1"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    for kind in (SoftFBetaConfig, SoftFBetaLoss):
        with pytest.raises(error, match=message):
            kind(**{"num_classes": 1, **options})


def test_arguments_that_do_not_fit() -> None:
    cfg, queue = SoftFBetaConfig(num_classes=3), init_queue(0, 3)
    with pytest.raises(ValueError, match=r"expected logits of shape \[N, 3\]"):
        soft_fbeta(torch.zeros(4, 2), torch.zeros(4).long(), queue, cfg)
    with pytest.raises(ValueError, match="expected a single-label queue of 3 classes"):
        soft_fbeta(torch.zeros(4, 3), torch.zeros(4).long(), init_queue(0, 2), cfg)
    with pytest.raises(TypeError, match="expected cfg to be a SoftFBetaConfig"):
        soft_fbeta(torch.zeros(4, 3), torch.zeros(4).long(), queue, None)  # type: ignore[arg-type]


# --- the module -------------------------------------------------------------------------------------------------------


@every_case
def test_the_module_is_the_function(case: Case) -> None:
    """Bit for bit, in loss, gradient and queue, over several steps."""
    loss_fn = SoftFBetaLoss(case.num_classes, multilabel=case.multilabel, queue_size=12, **case.options)
    with torch.device("meta"):
        made = SoftFBetaLoss(case.num_classes, multilabel=case.multilabel, queue_size=12, **case.options)
    made.to_empty(device="cpu").reset_parameters()
    modules = [
        loss_fn,
        copy.deepcopy(loss_fn),
        pickle.loads(pickle.dumps(loss_fn)),
        copy.deepcopy(loss_fn).half(),
        made,
    ]
    assert all(module.config == case.config() for module in modules)
    queue = init_queue(12, case.num_classes, multilabel=case.multilabel)
    for seed in range(4):
        logits, targets, weight = case.rows(seed=seed, dtype=torch.float32)
        leaf = logits.clone().requires_grad_()
        temperature = modules[0].temperature
        loss, queue = soft_fbeta(leaf, targets, queue, case.config(), temperature=temperature, sample_weight=weight)
        gradient = torch.autograd.grad(loss, leaf)[0]
        for module in modules:
            own_leaf = logits.clone().requires_grad_()
            own = module(own_leaf, targets, sample_weight=weight)
            assert torch.equal(own, loss)
            assert torch.equal(torch.autograd.grad(own, own_leaf)[0], gradient)
            assert torch.equal(module.queue_state.logits, queue.logits)


def test_settings_can_be_assigned() -> None:
    logits, targets, _ = CASES[0].rows(dtype=torch.float32)
    loss_fn = SoftFBetaLoss(1, queue_size=0)
    loss_fn.beta, loss_fn.eta, loss_fn.temperature = 0.5, -0.7, 0.3
    expected = call(Case("", options={"beta": 0.5, "eta": -0.7, "temperature": 0.3}), logits, targets)
    assert_close(loss_fn(logits, targets), expected)
    loss, per_class, valid = loss_fn(logits, targets, return_per_class=True)
    assert_close(per_class, loss[None])
    assert valid.all()


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_descent_reaches_the_perfect_decisions() -> None:
    """Scores that all start above the threshold are moved below it, for the negatives only."""
    targets = (torch.arange(20) < 3).long()
    scores = torch.full((20,), 0.5, requires_grad=True)
    optimizer = torch.optim.SGD([scores], lr=20.0)
    loss_fn = SoftFBetaLoss(1, queue_size=0)
    for _ in range(100):
        optimizer.zero_grad()
        loss_fn(scores, targets).backward()
        optimizer.step()
    assert ((scores > 0).long() == targets).all()

"""KL-DRO in every mode: derivatives, ``vmap``, compiled, on ``meta``, the backward traced alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from imbalanced_losses import PAUCAtBudgetConfig, init_queue, pauc_at_budget, stack_states, unstack_states
from tests.compiled.matrix import THREADS
from tests.compiled.processes import run_python
from tests.losses.dro_cases import KINDS, make_problem
from tests.losses.dro_worker import CASES

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own, of its forward mode

OPTIONS: dict[str, dict[str, Any]] = {
    "one-way": {"surrogate": "dro", "temperature": 0.4},
    "two-way": {"surrogate": "dro", "temperature": 0.4, "positive_temperature": 0.7},
    "floor": {"surrogate": "dro", "temperature": 0.4, "min_tpr": 0.45},
    "pairwise, floor": {"surrogate": "pairwise", "beta": 0.6, "temperature": 0.4, "min_tpr": 0.45},
    "trapezoid, floor": {"threshold_gradient": "implicit", "beta": 0.6, "temperature": 0.4, "min_tpr": 0.45},
}
over_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
over_dro = pytest.mark.parametrize("options", list(OPTIONS.values())[:3], ids=list(OPTIONS)[:3])
over_kinds = pytest.mark.parametrize("kind", KINDS)
WORKER = Path(__file__).with_name("dro_worker.py")


@over_dro
@over_kinds
def test_derivatives(kind: str, options: dict[str, Any]) -> None:
    """The scale does not follow the scores, so the queue alone is its reference: the live rows are not iid."""
    problem = make_problem(kind, n=12)
    cfg = problem.config(**options)

    def loss(logits: Tensor) -> Tensor:
        flags = torch.zeros(len(logits), dtype=torch.bool)
        return pauc_at_budget(logits, problem.targets, problem.state, cfg, iid_mask=flags)[0]

    logits = problem.logits.clone().requires_grad_()
    if "min_tpr" not in options:  # the cut follows the scores by steps
        assert gradcheck(loss, logits, check_forward_ad=True)
    assert gradgradcheck(loss, logits)


@over_options
def test_hessian_and_forward_mode(options: dict[str, Any]) -> None:
    problem = make_problem(n=12)
    cfg = problem.config(**options)
    logits, tangent = problem.logits, torch.randn(12, 1, dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return problem.loss(logits, cfg)

    gradient = grad(loss)(logits)
    value, moved = jvp(loss, (logits,), (tangent,))
    torch.testing.assert_close(value, loss(logits))
    torch.testing.assert_close(moved, (gradient * tangent).sum())
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(logits, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, moved)
    if "threshold_gradient" not in options:  # whose second derivatives are not those of the loss
        curvature = hessian(loss)(logits).reshape(12, 12)
        torch.testing.assert_close(curvature, curvature.mT)
        leaf = logits.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * tangent).sum(), leaf)
        torch.testing.assert_close(second[:, 0], curvature @ tangent[:, 0])


@over_options
@over_kinds
@pytest.mark.parametrize("backend", [None, "aot_eager"])
def test_ensembles(kind: str, options: dict[str, Any], backend: str | None) -> None:
    problems = [make_problem(kind, seed=seed) for seed in range(3)]
    cfg = problems[0].config(**options)

    def loss(logits: Tensor, targets: Tensor, state: Any, weight: Tensor, temperature: Tensor) -> Any:
        return pauc_at_budget(logits, targets, state, cfg, sample_weight=weight, temperature=temperature)

    temperatures = torch.tensor([0.1, 0.5, 2.0], dtype=torch.float64)
    stacked = [torch.stack([getattr(p, name) for p in problems]) for name in ("logits", "targets", "sample_weight")]
    mapped = vmap(grad(loss, has_aux=True))
    if backend is not None:
        mapped = torch.compile(mapped, backend=backend, fullgraph=True)
    gradients, states = mapped(*stacked[:2], stack_states([p.state for p in problems]), stacked[2], temperatures)
    for own, state, problem, temperature in zip(gradients, unstack_states(states), problems, temperatures, strict=True):
        logits = problem.logits.clone().requires_grad_()
        value, expected = loss(logits, problem.targets, problem.state, problem.sample_weight, temperature)
        torch.testing.assert_close(own, torch.autograd.grad(value, logits)[0])
        assert torch.equal(state.logits, expected.logits)


@over_options
def test_second_order_under_vmap(options: dict[str, Any]) -> None:
    if "threshold_gradient" in options:
        options = {**options, "threshold_gradient": "stop"}
    problem = make_problem(n=10)
    cfg = problem.config(**options)
    logits = torch.stack([problem.logits, 2 * problem.logits])
    mapped = vmap(hessian(lambda one: problem.loss(one, cfg)))(logits)
    for own, one in zip(mapped, logits, strict=True):
        torch.testing.assert_close(own, hessian(lambda one: problem.loss(one, cfg))(one))


@over_options
def test_the_backward_traced_alone(options: dict[str, Any]) -> None:
    problem = make_problem("multiclass")
    cfg = problem.config(reduction="none", **options)
    logits = problem.logits.clone().requires_grad_()
    loss = problem.loss(logits, cfg)
    cotangent = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)

    def backward(cotangent: Tensor) -> Tensor:
        return torch.autograd.grad(loss, logits, cotangent, retain_graph=True)[0]

    torch.testing.assert_close(make_fx(backward)(cotangent)(cotangent), backward(cotangent))
    batched = torch.autograd.grad(loss, logits, torch.eye(3).double(), is_grads_batched=True, retain_graph=True)[0]
    torch.testing.assert_close((batched * cotangent[:, None, None]).sum(0), backward(cotangent))


@over_options
@over_kinds
def test_meta(kind: str, options: dict[str, Any]) -> None:
    problem = make_problem(kind, dtype=torch.float32)
    cfg = problem.config(reduction="none", **options)
    logits = problem.logits.to("meta").requires_grad_()
    state = init_queue(8, problem.num_classes, multilabel=problem.multilabel, device="meta")
    loss = pauc_at_budget(logits, problem.targets.to("meta"), state, cfg)[0]
    assert loss.shape == (problem.num_classes,)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert gradient.shape == logits.shape
    assert gradient.dtype == logits.dtype


def test_one_graph_for_all_temperatures() -> None:
    problem = make_problem(dtype=torch.float32)
    cfg = PAUCAtBudgetConfig(num_classes=1, surrogate="dro", positive_temperature=0.5, min_tpr=0.2)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def step(logits: Tensor, temperature: Tensor) -> Tensor:
        return pauc_at_budget(logits, problem.targets, problem.state, cfg, temperature=temperature)[0]

    for temperature in (0.1, 0.2, 3.0):
        expected = pauc_at_budget(problem.logits, problem.targets, problem.state, cfg, temperature=temperature)[0]
        torch.testing.assert_close(step(problem.logits, torch.tensor(temperature)), expected)
    assert counter.frame_count == 1


def test_compiled_on_several_threads(tmp_path: Path) -> None:
    """By the default backend, in a process of its own, which bugs of the compiler may end."""
    report, output = tmp_path / "report", tmp_path / "output"
    end = run_python([str(WORKER), str(report)], output, timeout=900)
    assert not end, f"the process {end}: {output.read_text()[-2000:]}"
    lines = report.read_text().splitlines()
    assert len(lines) == (len(CASES) + 1) * len(THREADS)
    assert [line for line in lines if not line.endswith(": right")] == []

"""``torch.compile(fullgraph=True)`` over the ranking losses: equal to eager, and compiled once.

``aot_eager`` traces forward and backward as the default backend does and runs the result without generating code; the
default backend itself runs once per loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import grad, vmap
from torch.utils import _pytree

from imbalanced_losses import QueueState, SmoothAPConfig, init_queue, smooth_ap, stack_states
from imbalanced_losses.kernels.ranks.pair_sums import NEAR_LINEAR_FROM
from tests.transforms.cases import CASES, DIAGONAL, ONE_PER_LOSS, QUEUE_SIZE, SMOOTH_CASES, Case, Inputs

every_case = pytest.mark.parametrize("case", CASES, ids=str)
every_variant = pytest.mark.parametrize("case", DIAGONAL, ids=str)
every_loss = pytest.mark.parametrize("case", ONE_PER_LOSS, ids=str)


def compiled(function: Callable[..., Any], backend: Any = "aot_eager") -> Callable[..., Any]:
    return torch.compile(function, fullgraph=True, backend=backend)


def assert_close(actual: Any, expected: Any, rtol: float = 1e-9) -> None:
    """A compiler may fuse and reorder float64 sums, and nothing else."""
    torch.testing.assert_close(
        _pytree.tree_leaves(actual), _pytree.tree_leaves(expected), rtol=rtol, atol=rtol / 100, equal_nan=True
    )
    assert _pytree.tree_structure(actual) == _pytree.tree_structure(expected)


def arguments_of(inputs: Inputs) -> tuple[Tensor, Tensor, QueueState, Tensor]:
    return inputs.logits, inputs.targets, inputs.state, inputs.temperature


def stacked_arguments(case: Case, members: int = 2) -> tuple[Any, ...]:
    inputs = [case.inputs(seed) for seed in range(members)]
    logits, targets, temperature = (
        torch.stack([getattr(own, name) for own in inputs]) for name in ("logits", "targets", "temperature")
    )
    return logits, targets, stack_states([own.state for own in inputs]), temperature


def run_backward(function: Callable[..., Any], logits: Tensor, *rest: Any) -> tuple[Any, Tensor]:
    """All that the function gives, and the gradient of its first output through the autograd engine."""
    leaf = logits.detach().clone().requires_grad_()
    outputs = function(leaf, *rest)
    outputs[0].sum().backward()
    assert leaf.grad is not None
    return _pytree.tree_map(torch.detach, outputs), leaf.grad


# --- forward and backward, compiled once ------------------------------------------------------------------------------

STEPS = 20


@every_case
def test_one_compilation_serves_a_schedule_and_a_ring_that_wraps(case: Case) -> None:
    """Twenty temperatures, twenty other batches, 120 rows through a ring of eight: each step as in eager."""
    counter = CompileCounterWithBackend("aot_eager")
    step = compiled(case.call, counter)
    eager_state = compiled_state = case.empty_queue()
    for i, temperature in enumerate(torch.logspace(0, -2, STEPS)):
        inputs = case.inputs(i)
        targets = torch.full_like(inputs.targets, -100) if i == 7 else inputs.targets
        logits = torch.full_like(inputs.logits, torch.inf) if i == 11 else inputs.logits
        actual = run_backward(step, logits, targets, compiled_state, temperature)
        expected = run_backward(case.call, logits, targets, eager_state, temperature)
        assert_close(actual, expected)
        compiled_state, eager_state = actual[0][1], expected[0][1]
    assert counter.frame_count == 1


@every_variant
def test_one_compilation_of_an_ensemble_step(case: Case) -> None:
    """``compile(vmap(grad))`` over stacked states and temperatures."""
    counter = CompileCounterWithBackend("aot_eager")
    ensemble_step = vmap(grad(case.call, has_aux=True))
    step = compiled(ensemble_step, counter)
    states = stack_states([case.empty_queue()] * 2)
    for i, temperature in enumerate(torch.logspace(0, -2, STEPS)):
        inputs = case.inputs(i)
        logits = torch.stack([inputs.logits, inputs.logits * 2])
        targets = torch.stack([inputs.targets] * 2)
        arguments = (logits, targets, states, torch.stack([temperature, temperature / 2]))
        gradients, states = step(*arguments)
        assert_close((gradients, states), ensemble_step(*arguments))
    assert counter.frame_count == 1


# --- the other transforms ---------------------------------------------------------------------------------------------


@every_variant
def test_forward_alone(case: Case) -> None:
    """Of the per-class function with every keyword, without a gradient: as in a validation step."""
    inputs = case.inputs()
    config = case.config()

    def per_class(logits: Tensor, targets: Tensor, state: QueueState, iid_mask: Tensor, weight: Tensor) -> Any:
        return case.loss.per_class(
            logits, targets, state, config, temperature=0.4, iid_mask=iid_mask, sample_weight=weight, update_queue=False
        )

    arguments = (inputs.logits, inputs.targets, inputs.state, inputs.iid_mask, inputs.sample_weight)
    assert_close(compiled(per_class)(*arguments), per_class(*arguments))


@every_variant
def test_vmap(case: Case) -> None:
    arguments = stacked_arguments(case)
    assert_close(run_backward(compiled(vmap(case.call)), *arguments), run_backward(vmap(case.call), *arguments))


@every_variant
def test_vmap_over_temperatures(case: Case) -> None:
    """A sweep: everything else is shared."""
    logits, targets, state, temperature = arguments_of(case.inputs())
    sweep = vmap(case.call, in_dims=(None, None, None, 0))
    arguments = (logits, targets, state, temperature * torch.tensor([0.5, 1.0, 2.0]))
    assert_close(compiled(sweep)(*arguments), sweep(*arguments))


@every_variant
def test_grad(case: Case) -> None:
    arguments = arguments_of(case.inputs())
    gradient = grad(case.call, has_aux=True)
    assert_close(compiled(gradient)(*arguments), gradient(*arguments))


@pytest.mark.parametrize("case", SMOOTH_CASES, ids=str)
def test_grad_of_grad(case: Case) -> None:
    arguments = arguments_of(case.inputs())

    def curvature(logits: Tensor, *rest: Any) -> Tensor:
        return grad(lambda logits: grad(case.value)(logits, *rest).square().sum())(logits)

    assert curvature(*arguments).abs().sum() > 1e-3
    assert_close(compiled(curvature)(*arguments), curvature(*arguments))


@every_loss
@pytest.mark.parametrize("queue_size", [0, QUEUE_SIZE])
def test_no_rows(case: Case, queue_size: int) -> None:
    logits, targets, _, temperature = arguments_of(case.inputs())
    arguments = (logits[:0], targets[:0], case.empty_queue(queue_size=queue_size), temperature)
    assert_close(run_backward(compiled(case.call), *arguments), run_backward(case.call, *arguments))


@every_loss
def test_batches_of_other_sizes(case: Case) -> None:
    """An epoch ends on a shorter batch: the compiler then takes the size as a variable, and must still trace."""
    step = compiled(case.call)
    generator = torch.Generator().manual_seed(0)
    state = case.inputs().state
    for n_rows in (6, 5, 4, 7):
        logits = torch.randn(n_rows, case.num_classes, dtype=torch.float64, generator=generator)
        arguments = (logits, case.targets(generator, n_rows), state, torch.tensor(0.5))
        actual, expected = run_backward(step, *arguments), run_backward(case.call, *arguments)
        assert_close(actual, expected)
        state = expected[0][1]


def binary_smooth_ap(logits: Tensor, targets: Tensor, state: QueueState) -> tuple[Tensor, QueueState]:
    return smooth_ap(logits, targets, state, SmoothAPConfig(num_classes=1))


def test_pools_that_grow_into_near_linear_ranks() -> None:
    """The size becomes a variable, on either side of where all pairs end, and what it divides into changes.

    Traced only, since code for variable sizes takes the compiler a minute.
    """
    step = compiled(binary_smooth_ap, "eager")
    generator = torch.Generator().manual_seed(0)
    sizes = (
        NEAR_LINEAR_FROM - 60,
        NEAR_LINEAR_FROM - 1,
        NEAR_LINEAR_FROM,
        NEAR_LINEAR_FROM + 97,
        1549,
    )
    for size in sizes:
        logits = torch.randn(size, dtype=torch.float64, generator=generator)
        targets = (torch.rand(size, generator=generator) < 0.3).long()
        arguments = (logits, targets, init_queue(0, 1))
        assert_close(run_backward(step, *arguments), run_backward(binary_smooth_ap, *arguments))


@pytest.mark.parametrize("size", [100, NEAR_LINEAR_FROM])
def test_autocast_does_not_reach_the_ranks(size: int) -> None:
    logits, targets = torch.randn(size), (torch.rand(size) < 0.3).long()
    arguments = (logits, targets, init_queue(0, 1))
    expected = run_backward(binary_smooth_ap, *arguments)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(run_backward(compiled(binary_smooth_ap), *arguments), expected, rtol=2e-5)


@every_loss
def test_subsampling_compiles(case: Case) -> None:
    """It draws from torch's global generator then, which the compiler's graph follows."""
    logits, targets, state, temperature = arguments_of(case.inputs())
    function = compiled(lambda *arguments: case.call(*arguments, max_pool_size=9))
    torch.manual_seed(0)
    for n_rows in (len(logits), len(logits) - 1, len(logits) - 2):  # an epoch ends on a shorter batch
        (loss, _), gradient = run_backward(function, logits[:n_rows], targets[:n_rows], state, temperature)
        assert 0 <= loss <= case.most
        assert gradient.isfinite().all()


@pytest.mark.exhaustive  # tests/compiled does this for the first case of each loss
@every_loss
def test_default_backend(case: Case) -> None:
    """Generated code in float32, as a training step runs it."""
    arguments = arguments_of(case.inputs(dtype=torch.float32))
    actual, expected = (run_backward(function, *arguments) for function in (compiled(case.call, "inductor"), case.call))
    assert_close(actual, expected, rtol=2e-5)


# --- double backward through a compiled loss --------------------------------------------------------------------------


@pytest.mark.parametrize("case", SMOOTH_CASES[:1], ids=str)
def test_double_backward_through_a_compiled_loss_raises(case: Case) -> None:
    """torch compiles one backward only. It must say so: a silent 0 would be a wrong Hessian."""
    logits, *rest = arguments_of(case.inputs())
    leaf = logits.clone().requires_grad_()
    loss, _ = compiled(case.call)(leaf, *rest)
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match=r"double backward|does not require grad"):  # the latter by torch 2.8
        first.square().sum().backward()


# --- the shells -------------------------------------------------------------------------------------------------------


def shell_step(shell: Any, inputs: Inputs) -> tuple[Tensor, Tensor]:
    leaf = inputs.logits.float().clone().requires_grad_()
    loss = shell(leaf, inputs.targets, inputs.iid_mask, sample_weight=inputs.sample_weight)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad


@every_variant
def test_compiled_shell_equals_eager_shell(case: Case) -> None:
    """Losses, gradients and buffers, in training and in evaluation, while the temperature changes: two graphs."""
    eager, plain = case.shell(), case.shell()
    counter = CompileCounterWithBackend("aot_eager")
    fast = compiled(plain, counter)
    for i in range(6):
        training = i not in (2, 5)
        for shell in (eager, plain):
            shell.train(training)
            shell.temperature = 0.5 * 0.8**i
        inputs = case.inputs(i)
        assert_close(shell_step(fast, inputs), shell_step(eager, inputs), rtol=1e-4)
        assert_close(dict(plain.state_dict()), dict(eager.state_dict()), rtol=0)
    assert counter.frame_count == 2


@every_loss
def test_temperature_assigned_inside_the_compiled_step(case: Case) -> None:
    """From a 0-dim tensor, as a schedule gives it."""
    eager, plain = case.shell(), case.shell()

    def step(shell: Any, logits: Tensor, targets: Tensor, temperature: Tensor) -> Tensor:
        shell.temperature = temperature
        loss: Tensor = shell(logits, targets)
        return loss

    counter = CompileCounterWithBackend("aot_eager")
    fast = compiled(step, counter)
    for i in range(4):
        inputs = case.inputs(i, torch.float32)
        arguments = (inputs.logits, inputs.targets, torch.tensor(0.5 * 0.8**i))
        assert_close(fast(plain, *arguments), step(eager, *arguments), rtol=1e-4)
        assert_close(dict(plain.state_dict()), dict(eager.state_dict()), rtol=0)
    assert counter.frame_count == 1


@every_loss
def test_all_outputs_of_the_compiled_shell(case: Case) -> None:
    shell = case.shell(queue_size=4).eval()
    flags = {"return_per_class": True}
    if case.loss.returns_diagnostics:
        flags["return_diagnostics"] = True
    inputs = case.inputs(dtype=torch.float32)
    expected = shell(inputs.logits, inputs.targets, **flags)
    assert_close(compiled(shell)(inputs.logits, inputs.targets, **flags), expected, rtol=1e-4)


@every_loss
def test_compiled_reset(case: Case) -> None:
    shell = case.shell()
    inputs = case.inputs(dtype=torch.float32)

    def step(logits: Tensor, targets: Tensor) -> Tensor:
        shell.reset_queue()
        loss: Tensor = shell(logits, targets)
        return loss

    first, second = (compiled(step)(inputs.logits, inputs.targets) for _ in range(2))
    assert torch.equal(first, second)
    targets = shell.queue_state.targets
    assert (targets == init_queue(QUEUE_SIZE, case.num_classes).ignore_index).any()

"""``torch.func`` over the ranking losses: vmap == loop, gradients through every transform, second order."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vjp, vmap
from torch.utils import _pytree

from imbalanced_losses import QueueState, stack_states, unstack_states
from tests.transforms.cases import CASES, DIAGONAL, SMOOTH_CASES, Case, Inputs

# torch compiles its forward-mode decompositions with its own deprecated torch.jit on first use
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

MEMBERS = 3

every_case = pytest.mark.parametrize("case", CASES, ids=str)
smooth_cases = pytest.mark.parametrize("case", SMOOTH_CASES, ids=str)

# logits, targets, state, temperature: every mix of mapped and shared but "nothing is mapped"
IN_DIMS = [dims for dims in itertools.product((0, None), repeat=4) if any(dim == 0 for dim in dims)]


def assert_close(actual: Any, expected: Any) -> None:
    """To float64 rounding: a transform may change the order of a sum and nothing else."""
    torch.testing.assert_close(
        _pytree.tree_leaves(actual), _pytree.tree_leaves(expected), rtol=1e-9, atol=1e-11, equal_nan=True
    )


def arguments_of(inputs: Inputs) -> tuple[Tensor, Tensor, QueueState, Tensor]:
    return inputs.logits, inputs.targets, inputs.state, inputs.temperature


def stack(parts: list[Any]) -> Any:
    return torch.stack(parts) if isinstance(parts[0], Tensor) else stack_states(parts)


def ensemble(case: Case, in_dims: tuple[int | None, ...]) -> tuple[list[tuple[Any, ...]], tuple[Any, ...]]:
    """The arguments of each member, and the same stacked where ``in_dims`` maps."""
    members = [arguments_of(case.inputs(seed)) for seed in range(MEMBERS)]
    loop = [tuple(member[i] if dim == 0 else members[0][i] for i, dim in enumerate(in_dims)) for member in members]
    stacked = tuple(stack([member[i] for member in loop]) if dim == 0 else loop[0][i] for i, dim in enumerate(in_dims))
    return loop, stacked


def assert_vmap_equals_loop(function: Callable[..., Any], loop: list[Any], stacked: Any, in_dims: Any) -> None:
    mapped = vmap(function, in_dims=in_dims)(*stacked)
    expected = [function(*member) for member in loop]
    leaves, structure = _pytree.tree_flatten(mapped)
    assert structure == _pytree.tree_structure(expected[0])
    for i, single in enumerate(expected):
        assert_close([leaf[i] for leaf in leaves], single)


# --- vmap -----------------------------------------------------------------------------------------------------------


@every_case
def test_cases_are_worth_transforming(case: Case) -> None:
    """No class of theirs is invalid, no loss is at its bound and some gradient flows: else the rest proves nothing."""
    for seed in range(MEMBERS):
        inputs = case.inputs(seed)
        logits = inputs.logits.requires_grad_()
        result, _ = case.loss.per_class(
            logits, inputs.targets, inputs.state, case.config(), temperature=inputs.temperature
        )
        assert result.valid.all()
        assert ((result.loss > 0.01) & (result.loss < 0.99 * case.most)).all()
        result.loss.sum().backward()
        assert (logits.grad.abs().sum(0) > 1e-3).all()


@every_case
@pytest.mark.parametrize("in_dims", IN_DIMS, ids=str)
def test_vmap_equals_loop(case: Case, in_dims: tuple[int | None, ...]) -> None:
    loop, stacked = ensemble(case, in_dims)
    assert_vmap_equals_loop(case.call, loop, stacked, in_dims)


@every_case
def test_vmap_over_other_axes(case: Case) -> None:
    """Members need not be stacked in front."""
    loop, (logits, targets, state, temperature) = ensemble(case, (0, 0, 0, 0))
    moved = (logits.movedim(0, -1), targets.movedim(0, 1), state, temperature)
    assert_vmap_equals_loop(case.call, loop, moved, (2, 1, 0, 0))


@every_case
def test_vmap_over_two_axes(case: Case) -> None:
    """An ensemble (logits and states) in a sweep (temperatures)."""
    loop, (logits, targets, state, _) = ensemble(case, (0, None, 0, None))
    temperatures = torch.tensor([0.2, 0.9], dtype=torch.float64)
    ensembles = vmap(case.value, in_dims=(0, None, 0, None))
    sweep = vmap(ensembles, in_dims=(None, None, None, 0))(logits, targets, state, temperatures)
    expected = [[case.value(*member[:3], temperature) for member in loop] for temperature in temperatures]
    assert_close(sweep, torch.stack([torch.stack(row) for row in expected]))


@every_case
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_vmap_of_other_reductions(case: Case, reduction: str) -> None:
    loop, stacked = ensemble(case, (0, 0, 0, 0))
    assert_vmap_equals_loop(lambda *a: case.call(*a, reduction=reduction), loop, stacked, (0, 0, 0, 0))


@every_case
def test_vmap_of_per_class(case: Case) -> None:
    """The dataclass and its dict of diagnostics come out stacked."""

    def per_class(logits: Tensor, targets: Tensor, state: QueueState, temperature: Tensor) -> Any:
        return case.loss.per_class(logits, targets, state, case.config(), temperature=temperature)

    loop, stacked = ensemble(case, (0, 0, 0, 0))
    assert_vmap_equals_loop(per_class, loop, stacked, (0, 0, 0, 0))


@every_case
@pytest.mark.parametrize("in_dims", [(0, 0, 0, 0), (0, None, 0, None), (None, 0, None, 0)], ids=str)
def test_vmap_over_masks_and_weights(case: Case, in_dims: tuple[int | None, ...]) -> None:
    """A bootstrap: the same rows under other weights and other iid flags."""
    inputs = case.inputs(0)
    config = case.config()

    def weighted(logits: Tensor, state: QueueState, iid_mask: Tensor, sample_weight: Tensor) -> Any:
        return case.loss.function(
            logits, inputs.targets, state, config, temperature=0.5, iid_mask=iid_mask, sample_weight=sample_weight
        )

    seeds = [case.inputs(seed) for seed in range(MEMBERS)]
    masks = [torch.arange(len(inputs.logits)) != seed for seed in range(MEMBERS)]
    members = [(own.logits, own.state, mask, own.sample_weight) for own, mask in zip(seeds, masks, strict=True)]
    loop = [tuple(m[i] if dim == 0 else members[0][i] for i, dim in enumerate(in_dims)) for m in members]
    stacked = tuple(stack([m[i] for m in loop]) if dim == 0 else loop[0][i] for i, dim in enumerate(in_dims))
    assert_vmap_equals_loop(weighted, loop, stacked, in_dims)


@every_case
def test_vmap_where_only_some_members_are_valid(case: Case) -> None:
    """Nothing branches on what a batch contains."""
    loop, (logits, targets, _, temperature) = ensemble(case, (0, 0, None, None))
    targets = torch.stack([targets[0], torch.full_like(targets[0], -100), torch.zeros_like(targets[0])])
    loop = [(logits[i], targets[i], case.empty_queue(), temperature) for i in range(MEMBERS)]
    stacked = (logits, targets, case.empty_queue(), temperature)
    assert_vmap_equals_loop(case.call, loop, stacked, (0, 0, None, None))
    assert_vmap_equals_loop(grad(case.call, has_aux=True), loop, stacked, (0, 0, None, None))


@every_case
def test_vmap_without_queue_and_without_rows(case: Case) -> None:
    loop, (logits, targets, _, temperature) = ensemble(case, (0, 0, None, None))
    for rows in (slice(None), slice(0, 0)):
        state = case.empty_queue(queue_size=0)
        single = [(own[0][rows], own[1][rows], state, temperature) for own in loop]
        stacked = (logits[:, rows], targets[:, rows], state, temperature)
        assert_vmap_equals_loop(case.call, single, stacked, (0, 0, None, None))


# --- first derivatives ----------------------------------------------------------------------------------------------


@every_case
def test_grad_with_aux_equals_autograd(case: Case) -> None:
    logits, targets, state, temperature = arguments_of(case.inputs())
    gradient, new_state = grad(case.call, has_aux=True)(logits, targets, state, temperature)
    leaf = logits.clone().requires_grad_()
    loss, expected_state = case.call(leaf, targets, state, temperature)
    assert_close(gradient, torch.autograd.grad(loss, leaf)[0])
    assert_close(new_state, expected_state)
    assert type(new_state) is QueueState


@every_case
@pytest.mark.parametrize(
    "in_dims", [(0, 0, 0, 0), (0, None, None, None), (None, None, 0, 0), (0, None, 0, None)], ids=str
)
def test_vmap_of_grad_equals_loop(case: Case, in_dims: tuple[int | None, ...]) -> None:
    loop, stacked = ensemble(case, in_dims)
    assert_vmap_equals_loop(grad(case.call, has_aux=True), loop, stacked, in_dims)


@every_case
def test_grad_of_vmap_equals_vmap_of_grad(case: Case) -> None:
    _, stacked = ensemble(case, (0, 0, 0, 0))
    of_sum = grad(lambda *arguments: vmap(case.value)(*arguments).sum())(*stacked)
    assert_close(of_sum, vmap(grad(case.value))(*stacked))


@every_case
def test_backward_through_vmap(case: Case) -> None:
    """The autograd engine outside, a transform inside."""
    _, (logits, *rest) = ensemble(case, (0, 0, 0, 0))
    leaf = logits.clone().requires_grad_()
    vmap(case.value)(leaf, *rest).sum().backward()
    assert_close(leaf.grad, vmap(grad(case.value))(logits, *rest))


@every_case
def test_jvp_is_the_transpose_of_vjp(case: Case) -> None:
    logits, *rest = arguments_of(case.inputs())

    def per_class(logits: Tensor) -> tuple[Tensor, QueueState]:
        return case.call(logits, *rest, reduction="none")

    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(logits.shape, generator=generator, dtype=logits.dtype)
    value, tangent, state = jvp(per_class, (logits,), (direction,), has_aux=True)
    primal, pull, pulled_state = vjp(per_class, logits, has_aux=True)
    cotangent = torch.randn(value.shape, generator=generator, dtype=value.dtype)
    assert_close(value, primal)
    assert_close(state, pulled_state)
    assert_close((tangent * cotangent).sum(), (pull(cotangent)[0] * direction).sum())


def central_difference(function: Callable[[Tensor], Tensor], at: Tensor, along: Tensor, step: float = 1e-6) -> Tensor:
    return (function(at + step * along) - function(at - step * along)) / (2 * step)


@smooth_cases
def test_jvp_is_the_finite_difference(case: Case) -> None:
    """Of the loss that detaches nothing; the others' thresholds are constants by definition."""
    logits, *rest = arguments_of(case.inputs())
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
    value = lambda logits: case.value(logits, *rest)  # noqa: E731
    _, tangent = jvp(value, (logits,), (direction,))
    torch.testing.assert_close(tangent, central_difference(value, logits, direction), rtol=1e-6, atol=1e-9)


@every_case
def test_vmap_of_jvp_equals_loop(case: Case) -> None:
    """Forward-mode Jacobians are made of this."""
    logits, *rest = arguments_of(case.inputs())

    def tangent_along(direction: Tensor) -> Tensor:
        return jvp(lambda logits: case.value(logits, *rest), (logits,), (direction,))[1]

    basis = torch.eye(logits.numel(), dtype=logits.dtype).reshape(-1, *logits.shape)
    forward = vmap(tangent_along)(basis).reshape(logits.shape)
    assert_close(forward, grad(case.value)(logits, *rest))


# --- second derivatives ---------------------------------------------------------------------------------------------


def second_derivatives(case: Case) -> tuple[Callable[[Tensor], Tensor], Tensor, Tensor]:
    """The gradient as a function, a point and a direction."""
    logits, *rest = arguments_of(case.inputs())
    direction = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1), dtype=logits.dtype)
    return lambda logits: grad(case.value)(logits, *rest), logits, direction


@smooth_cases
def test_hessian_vector_product_in_every_mode(case: Case) -> None:
    gradient, logits, direction = second_derivatives(case)
    reverse_over_reverse = grad(lambda logits: (gradient(logits) * direction).sum())(logits)
    forward_over_reverse = jvp(gradient, (logits,), (direction,))[1]
    transposed = vjp(gradient, logits)[1](direction)[0]
    assert reverse_over_reverse.abs().sum() > 1e-2
    torch.testing.assert_close(
        reverse_over_reverse, central_difference(gradient, logits, direction), rtol=1e-5, atol=1e-8
    )
    assert_close(forward_over_reverse, reverse_over_reverse)
    assert_close(transposed, reverse_over_reverse)


@smooth_cases
def test_double_backward_equals_grad_of_grad(case: Case) -> None:
    gradient, logits, direction = second_derivatives(case)
    _, *rest = arguments_of(case.inputs())
    leaf = logits.clone().requires_grad_()
    (first,) = torch.autograd.grad(case.value(leaf, *rest), leaf, create_graph=True)
    (second,) = torch.autograd.grad((first * direction).sum(), leaf)
    assert_close(second, grad(lambda logits: (gradient(logits) * direction).sum())(logits))


@smooth_cases
def test_hessian_is_symmetric_and_made_of_products(case: Case) -> None:
    gradient, logits, direction = second_derivatives(case)
    _, *rest = arguments_of(case.inputs())
    matrix = hessian(lambda flat: case.value(flat.view_as(logits), *rest))(logits.flatten())
    assert_close(matrix, matrix.mT)
    assert_close(matrix @ direction.flatten(), jvp(gradient, (logits,), (direction,))[1].flatten())


@smooth_cases
def test_vmap_of_hessian_vector_product_equals_loop(case: Case) -> None:
    def product(logits: Tensor, *rest: Any) -> Tensor:
        return grad(lambda logits: grad(case.value)(logits, *rest).square().sum())(logits)

    loop, stacked = ensemble(case, (0, 0, 0, 0))
    assert_vmap_equals_loop(product, loop, stacked, (0, 0, 0, 0))


# --- in use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DIAGONAL, ids=str)
def test_ensemble_trains_like_its_members(case: Case) -> None:
    """Four steps of gradient descent on stacked models, queues and temperatures, against each member alone."""
    torch.manual_seed(0)
    models = [nn.Linear(4, case.num_classes).double() for _ in range(MEMBERS)]
    batches = [(torch.randn(6, 4, dtype=torch.float64), case.inputs(seed).targets) for seed in range(4)]
    temperatures = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)

    def objective(params: Any, state: QueueState, temperature: Tensor, rows: Tensor, targets: Tensor) -> Any:
        return case.call(functional_call(models[0], params, (rows,)), targets, state, temperature)

    gradient = grad(objective, has_aux=True)
    params, _ = stack_module_state(models)
    params = {name: value.detach() for name, value in params.items()}
    states = stack_states([case.empty_queue()] * MEMBERS)
    alone = [
        ({name: value.detach() for name, value in model.named_parameters()}, case.empty_queue()) for model in models
    ]

    def descend(params: Any, gradients: Any) -> Any:
        return {name: value - 0.5 * gradients[name] for name, value in params.items()}

    for rows, targets in batches:
        gradients, states = vmap(gradient, in_dims=(0, 0, 0, None, None))(params, states, temperatures, rows, targets)
        params = descend(params, gradients)
        for i, (own, state) in enumerate(alone):
            own_gradients, state = gradient(own, state, temperatures[i], rows, targets)
            alone[i] = (descend(own, own_gradients), state)
    for i, (state, (own, expected)) in enumerate(zip(unstack_states(states), alone, strict=True)):
        assert_close({name: value[i] for name, value in params.items()}, own)
        assert_close(state, expected)

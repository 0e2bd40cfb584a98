"""Properties of the contract: how a loss is checked against one, and those that all losses share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.errors import Flaky, HypothesisException
from hypothesis.strategies import SearchStrategy
from torch import Tensor
from torch.func import grad, vmap
from torch.utils import _pytree

from imbalanced_losses.testing.batches import Batch, ElementwiseBatch, RankingBatch

__all__ = [
    "FINITE",
    "NOT_FINITE",
    "ContractError",
    "Loss",
    "Outcome",
    "Property",
    "call",
    "check_compiled",
    "check_finite",
    "check_pure",
    "check_vmap",
    "compiled",
    "evaluate",
    "hold",
    "orders",
    "require",
    "require_close",
    "require_same_state",
    "with_optional",
]

Loss = Callable[..., Any]
AnyBatch = RankingBatch | ElementwiseBatch

TOLERANCE = 1e-5  # relative to the largest element: a loss may compute in float32
FINITE, NOT_FINITE = (1e4, -1e4), (float("nan"), float("inf"))  # logits to put into ignored rows


@dataclass(frozen=True)
class Property:
    """One property of the contract.

    Attributes
    ----------
    name : str
        The name for ``skip``.
    statement : str
        What must hold, in one sentence.
    check : callable
        Called with the loss and a batch; raises if the property does not hold.
    batches : mapping
        Arguments of the strategy that draws the batches.
    all_optional : bool
        Whether every batch has all optional arguments that the loss takes.
    """

    name: str
    statement: str
    check: Callable[[Loss, Any], None]
    batches: Mapping[str, Any] = field(default_factory=dict)
    all_optional: bool = False


class ContractError(AssertionError):
    """A loss breaks a property of the contract.

    Attributes
    ----------
    property_name : str
        The property's name for ``skip``.
    batch : RankingBatch or ElementwiseBatch
        The smallest failing batch.

    Examples
    --------
    >>> import torch
    >>> from imbalanced_losses.testing import ContractError, check_elementwise_loss
    >>> try:
    ...     check_elementwise_loss(lambda logits, targets: (logits * targets).log().mean())
    ... except ContractError as error:
    ...     print(error.property_name, list(error.batch.logits.shape))
    finite [1, 1]
    """

    def __init__(self, broken: Property, batch: AnyBatch, cause: Exception) -> None:
        self.property_name, self.batch = broken.name, batch
        detail = str(cause) if isinstance(cause, AssertionError) else f"{type(cause).__name__}: {cause}"
        values = "\n".join(f"  {own.name} = {getattr(batch, own.name)}" for own in dataclasses.fields(batch))
        super().__init__(f"{broken.name}: {broken.statement}\n{detail}\nSmallest failing batch:\n{values}")


def hold(broken: Property, loss: Loss, batches: SearchStrategy[Any], max_examples: int) -> None:
    """Search for batches that break the property, and raise :class:`ContractError` with the smallest."""
    failures: list[ContractError] = []

    @settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,  # the same batches in every run
        database=None,
        report_multiple_bugs=False,
        verbosity=Verbosity.quiet,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(batch=batches)
    def search(batch: AnyBatch) -> None:
        try:
            broken.check(loss, batch)
        except HypothesisException:
            raise
        except Exception as error:
            failures.append(ContractError(broken, batch, error))
            raise failures[-1] from (None if isinstance(error, AssertionError) else error)

    try:
        search()
    except (ContractError, Flaky):  # flaky: a batch failed once and not again
        failure = _leave_out_rows(broken, loss, failures[-1])
    else:
        return
    vars(failure).pop("__notes__", None)  # they say how to reproduce a test that the user does not see
    raise failure.with_traceback(None)


def _leave_out_rows(broken: Property, loss: Loss, failure: ContractError) -> ContractError:
    """Remove each row that the failure does not need: hypothesis does not shorten a list of maximal length."""
    row, fewest = 0, broken.batches.get("min_rows", 1)
    while row < len(failure.batch.logits) > fewest:
        smaller = failure.batch.rows(torch.arange(len(failure.batch.logits)) != row)
        try:
            broken.check(loss, smaller)
        except Exception as error:
            failure = ContractError(broken, smaller, error)
        else:
            row += 1
    return failure


# --- calls and comparisons --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """The result of a call: the loss, the gradient of its sum, the new state (``()`` if there is none)."""

    loss: Tensor
    gradient: Tensor
    state: Any


def call(loss: Loss, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """Call the loss and return its value and its new state."""
    result = loss(*args, **kwargs)
    if not isinstance(result, tuple):
        return result, ()
    require(len(result) == 2, f"expected (loss, new_state), got a tuple of {len(result)}")
    return result


def evaluate(loss: Loss, batch: AnyBatch) -> Outcome:
    """Call the loss and differentiate its sum, without the classes of a ``[C]`` loss that are nan."""
    logits = batch.logits.detach().clone().requires_grad_()
    value, state = call(loss, logits, *batch.args[1:], **batch.kwargs)
    require(value.requires_grad, "expected a loss that is connected to the logits, got one without a gradient")
    (gradient,) = torch.autograd.grad(_total(value), logits)
    return Outcome(value.detach(), gradient, _pytree.tree_map(torch.detach, state))


def _total(value: Tensor) -> Tensor:
    return value.nansum() if value.dim() > 0 else value


def require(holds: bool, message: str) -> None:
    """Raise ``AssertionError`` with the message unless ``holds``."""
    if not holds:
        raise AssertionError(message)


def require_close(what: str, actual: Tensor, expected: Tensor) -> None:
    """Check that two tensors are equal up to rounding in float32, relative to the largest element."""
    require(actual.shape == expected.shape, f"expected {what} of shape {expected.shape}, got {actual.shape}")
    one, other = actual.double(), expected.double()
    size = max(1.0, other.abs().nan_to_num().max().item()) if other.numel() else 1.0
    close = torch.isclose(one, other, rtol=0, atol=TOLERANCE * size, equal_nan=True)
    require(bool(close.all()), f"expected {what}:\n  {expected}\ngot:\n  {actual}")


def require_same_state(what: str, actual: Any, expected: Any) -> None:
    """Check that all leaves are equal up to rounding."""
    for one, other in zip(_pytree.tree_leaves(actual), _pytree.tree_leaves(expected), strict=True):
        require_close(what, one, other)


def orders(n: int) -> list[Tensor]:
    """Return two permutations of ``n`` rows: reversed, and every other row first."""
    index = torch.arange(n)
    return [index.flip(0), torch.cat([index[::2], index[1::2]])]


def with_optional(batch: Batch, names: list[str]) -> Batch:
    """Return the batch with ones for the optional arguments in ``names`` that it lacks."""
    n, wide = len(batch.logits), torch.promote_types(batch.logits.dtype, torch.float32)
    ones = {"iid_mask": torch.ones(n, dtype=torch.bool), "sample_weight": torch.ones(n, dtype=wide)}
    changes: dict[str, Any] = {name: ones[name] for name in names if getattr(batch, name) is None}
    return dataclasses.replace(batch, **changes)


# --- properties that all losses share ---------------------------------------------------------------------------------


def check_pure(loss: Loss, batch: AnyBatch) -> None:
    """Check that two calls with the same arguments agree and do not change the arguments."""
    before = _pytree.tree_map(torch.clone, (batch.args, batch.kwargs))
    first, second = (_pytree.tree_leaves(call(loss, *batch.args, **batch.kwargs)) for _ in range(2))
    after = _pytree.tree_leaves((batch.args, batch.kwargs))
    require(_equal(after, _pytree.tree_leaves(before)), "expected arguments as before the call, got changed ones")
    require(_equal(first, second), f"expected the same from two calls, got:\n  {first[0]}\nand:\n  {second[0]}")


def _equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(bool(((a == b) | (a != a) & (b != b)).all()) for a, b in zip(left, right, strict=True))


def check_finite(loss: Loss, batch: AnyBatch) -> None:
    """Check that loss and gradient are finite; a ``[C]`` loss may be nan at invalid classes."""
    outcome = evaluate(loss, batch)
    by_class = isinstance(batch, RankingBatch) and outcome.loss.dim() > 0
    finite = outcome.loss.isfinite() | (outcome.loss.isnan() & by_class)
    require(bool(finite.all()), f"expected a finite loss, got {outcome.loss}")
    require(bool(outcome.gradient.isfinite().all()), f"expected a finite gradient, got:\n  {outcome.gradient}")


def check_vmap(loss: Loss, batch: Any) -> None:
    """Check that ``vmap(grad(loss))`` over two members equals a loop over them."""
    rolled = batch.rows(torch.arange(len(batch.logits)).roll(1))
    members = [batch, dataclasses.replace(rolled, logits=-rolled.logits)]

    def objective(logits: Tensor, rest: Any, kwargs: Any) -> tuple[Tensor, Any]:
        value, state = call(loss, logits, *rest, **kwargs)
        return _total(value), (value, state)

    trees = [(own.logits, own.args[1:], own.kwargs) for own in members]
    stacked = _pytree.tree_map(lambda *leaves: torch.stack(leaves), *trees)
    gradients, (values, states) = vmap(grad(objective, has_aux=True))(*stacked)
    for i, member in enumerate(members):
        expected = evaluate(loss, member)
        require_close(f"the loss of member {i}", values[i], expected.loss)
        require_close(f"the gradient of member {i}", gradients[i], expected.gradient)
        own = [leaf[i] for leaf in _pytree.tree_leaves(states)]
        require_same_state(f"the state of member {i}", own, _pytree.tree_leaves(expected.state))


def compiled(loss: Loss, backend: str) -> Loss:
    """Return the loss under ``torch.compile(fullgraph=True)``."""

    def step(*args: Any, **kwargs: Any) -> Any:
        return loss(*args, **kwargs)

    return torch.compile(step, fullgraph=True, backend=backend)


def check_compiled(compiled_loss: Loss, loss: Loss, batch: AnyBatch) -> None:
    """Check that the compiled loss equals the loss."""
    actual, expected = evaluate(compiled_loss, batch), evaluate(loss, batch)
    require_close("the loss", actual.loss, expected.loss)
    require_close("the gradient", actual.gradient, expected.gradient)
    require_same_state("the state", actual.state, expected.state)

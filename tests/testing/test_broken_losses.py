"""Losses with one small fault each: the check names the property that is broken, and shows a small batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from imbalanced_losses import (
    QueueState,
    SigmoidFocalConfig,
    SmoothAPConfig,
    SoftmaxFocalConfig,
    init_queue,
    sigmoid_focal,
    smooth_ap,
    softmax_focal,
)
from imbalanced_losses.testing import (
    ELEMENTWISE_PROPERTIES,
    RANKING_PROPERTIES,
    ContractError,
    check_elementwise_loss,
    check_ranking_loss,
)

Result = tuple[Tensor, QueueState]
CONFIG = SmoothAPConfig(num_classes=1, temperature=0.5)


def right(logits: Tensor, targets: Tensor, queue_state: QueueState, **extras: Any) -> Result:
    return smooth_ap(logits, targets, queue_state, CONFIG, **extras)


# --- ranking losses ---------------------------------------------------------------------------------------------------


def loss_only(*args: Any, **extras: Any) -> Tensor:
    return right(*args, **extras)[0]


def detached(*args: Any, **extras: Any) -> Result:
    loss, state = right(*args, **extras)
    return loss.detach(), state


def adds_noise(logits: Tensor, *args: Any, **extras: Any) -> Result:
    return right(logits + torch.randn_like(logits), *args, **extras)


def pushes_in_place(logits: Tensor, targets: Tensor, queue_state: QueueState, **extras: Any) -> Result:
    loss, state = right(logits, targets, queue_state, **extras)
    return loss, replace(state, targets=queue_state.targets.copy_(state.targets))


def scales_in_place(logits: Tensor, *args: Any, **extras: Any) -> Result:
    return right(logits.sub_(logits.detach().mean()), *args, **extras)


def narrows_the_queue(*args: Any, **extras: Any) -> Result:
    loss, state = right(*args, **extras)
    return loss, replace(state, logits=state.logits.to(torch.float16))


def grows_the_queue(*args: Any, **extras: Any) -> Result:
    loss, state = right(*args, **extras)
    return loss, replace(state, iid=torch.cat([state.iid, state.iid[-1:]]))


def forgets_to_detach(logits: Tensor, targets: Tensor, queue_state: QueueState, **extras: Any) -> Result:
    loss, state = right(logits, targets, queue_state, **extras)
    return loss, replace(state, logits=torch.cat([queue_state.logits, logits])[len(logits) :])


def nan_gradient(*args: Any, **extras: Any) -> Result:
    """The slope of a square root at 0 is infinite."""
    loss, state = right(*args, **extras)
    return loss.sqrt(), state


def wrong_sign(*args: Any, **extras: Any) -> Result:
    loss, state = right(*args, **extras)
    return -loss, state


def wrong_sign_of_the_gradient(*args: Any, **extras: Any) -> Result:
    loss, state = right(*args, **extras)
    return 2 * loss.detach() - loss, state


def mean_of_nothing(logits: Tensor, *args: Any, **extras: Any) -> Result:
    loss, state = right(logits, *args, **extras)
    return loss + 0 * logits.nan_to_num().mean(), state


def counts_ignored_rows(logits: Tensor, targets: Tensor, *args: Any, **extras: Any) -> Result:
    return right(logits, targets.clamp(min=0), *args, **extras)


def gradient_at_ignored_rows(logits: Tensor, targets: Tensor, *args: Any, **extras: Any) -> Result:
    loss, state = right(logits, targets, *args, **extras)
    pull = logits.nan_to_num(0, 0, 0).mul(1e-3).sum()
    return loss + pull - pull.detach(), state


def slope_of_nan(logits: Tensor, *args: Any, **extras: Any) -> Result:
    """A gradient of 0 times the slope at nan is nan."""
    return right(logits + logits.tanh() - logits.tanh().detach(), *args, **extras)


def depends_on_row_order(logits: Tensor, *args: Any, sample_weight: Tensor | None = None, **extras: Any) -> Result:
    weight = torch.ones(len(logits)) if sample_weight is None else sample_weight
    return right(logits, *args, sample_weight=weight / (1 + torch.arange(len(logits))), **extras)


def ignores_weights(*args: Any, sample_weight: Tensor | None = None, **extras: Any) -> Result:
    return right(*args, **extras)


def live_rows_twice(logits: Tensor, targets: Tensor, queue_state: QueueState, **extras: Any) -> Result:
    """Pushes before the loss is there."""
    _, state = right(logits, targets, queue_state, **extras)
    return right(logits, targets, state, **extras)[0], state


def looks_at_the_batch_alone(logits: Tensor, targets: Tensor, queue_state: QueueState, **extras: Any) -> Result:
    return right(logits, targets, init_queue(0, 1), **extras)[0], right(logits, targets, queue_state, **extras)[1]


def never_pushes(*args: Any, **extras: Any) -> Result:
    return right(*args, update_queue=False, **extras)


def forgets_the_flags(*args: Any, iid_mask: Tensor | None = None, **extras: Any) -> Result:
    return right(*args, **extras)


def off_by_one_in_the_ring(*args: Any, **extras: Any) -> Result:
    loss, state = right(*args, **extras)
    size = max(len(state.logits), 1)
    return loss, replace(state, cursor=(state.cursor + 1) % size)


def squashes(logits: Tensor, targets: Tensor, queue_state: QueueState, **extras: Any) -> Result:
    squashed = replace(queue_state, logits=queue_state.logits.tanh())
    return right(logits.nan_to_num().tanh(), targets, squashed, **extras)[0], right(
        logits, targets, queue_state, **extras
    )[1]


def reads_data(logits: Tensor, targets: Tensor, queue_state: QueueState, **extras: Any) -> Result:
    if (targets == 1).any() or (queue_state.targets == 1).any():
        return right(logits, targets, queue_state, **extras)
    loss, state = right(logits, targets, queue_state, **extras)
    return 0 * loss, state


def wrong_when_compiled(*args: Any, **extras: Any) -> Result:
    loss, state = right(*args, **extras)
    return (loss / 2 if torch.compiler.is_compiling() else loss), state


def does_not_compile(*args: Any, **extras: Any) -> Result:
    torch._dynamo.graph_break()
    return right(*args, **extras)


RANKING = {
    loss_only: "result",
    detached: "result",
    adds_noise: "pure",
    pushes_in_place: "pure",
    scales_in_place: "pure",
    narrows_the_queue: "state",
    grows_the_queue: "state",
    forgets_to_detach: "state",
    nan_gradient: "finite",
    wrong_sign: "range",
    mean_of_nothing: "empty",
    counts_ignored_rows: "ignored",
    gradient_at_ignored_rows: "empty",
    slope_of_nan: "ignored_nonfinite",
    depends_on_row_order: "order",
    ignores_weights: "weights",
    live_rows_twice: "order",  # which of them the queue then holds depends on it
    looks_at_the_batch_alone: "pool",
    never_pushes: "queue",
    forgets_the_flags: "queue",
    off_by_one_in_the_ring: "queue",
    squashes: "shift",
    wrong_sign_of_the_gradient: "direction",
    reads_data: "vmap",
    wrong_when_compiled: "compile",
    does_not_compile: "compile",
}


def name_of(part: Any) -> str:
    return getattr(part, "__name__", part)


@pytest.mark.parametrize(("loss", "broken"), RANKING.items(), ids=name_of)
def test_broken_ranking_losses(loss: Callable[..., Any], broken: str) -> None:
    with pytest.raises(ContractError, match=rf"^{broken}: ") as caught:
        check_ranking_loss(loss)
    assert str(caught.value).startswith(f"{broken}: {RANKING_PROPERTIES[broken]}\n")
    assert caught.value.property_name == broken
    assert "Smallest failing batch:\n  logits = tensor(" in str(caught.value)


@pytest.mark.parametrize(("loss", "broken"), RANKING.items(), ids=name_of)
def test_the_ranking_property_alone_finds_it(loss: Callable[..., Any], broken: str) -> None:
    """Without the properties before it, which take longer."""
    with pytest.raises(ContractError, match=rf"^{broken}: "):
        check_ranking_loss(loss, skip=RANKING_PROPERTIES.keys() - {broken})


def test_every_ranking_property_finds_something() -> None:
    assert set(RANKING.values()) == set(RANKING_PROPERTIES)


# --- elementwise losses -----------------------------------------------------------------------------------------------


def focal(logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None, **options: Any) -> Tensor:
    cfg = SoftmaxFocalConfig(**options)
    return softmax_focal(logits, targets, cfg, sample_weight=sample_weight)


def a_tuple(*args: Any, **weights: Any) -> Any:
    return focal(*args, **weights), None


def one_loss_too_many(*args: Any, **weights: Any) -> Tensor:
    loss = focal(*args, **weights, reduction="none")
    return torch.cat([loss, loss[-1:]])


def noise(logits: Tensor, *args: Any, **weights: Any) -> Tensor:
    return focal(logits + torch.randn_like(logits), *args, **weights)


def in_place(logits: Tensor, targets: Tensor, **weights: Any) -> Tensor:
    loss = focal(logits, targets, **weights)
    targets.clamp_(min=0)
    return loss


def log_of_softmax(logits: Tensor, targets: Tensor, **weights: Any) -> Tensor:
    return focal(logits.double().softmax(1).log(), targets, **weights)


def nan_for_no_rows(logits: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(logits.double(), targets)


def takes_ignored_for_background(logits: Tensor, targets: Tensor, **weights: Any) -> Tensor:
    counted = (targets >= 0).any().to(logits.dtype)
    return focal(logits, targets.clamp(min=0), **weights) * counted


def slope_at_nan(logits: Tensor, targets: Tensor, **weights: Any) -> Tensor:
    return focal(1.5 * logits.tanh(), targets, **weights)


def previous_row(logits: Tensor, targets: Tensor, **weights: Any) -> Tensor:
    return focal(logits, targets, **weights) * (1 + (targets[1:] == targets[:-1]).any())


def unweighted(logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    return focal(logits, targets)


def divides_by_rows(logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
    total = focal(logits, targets, sample_weight, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)


def sign(*args: Any, **weights: Any) -> Tensor:
    return -focal(*args, **weights)


def reads(logits: Tensor, targets: Tensor, **weights: Any) -> Tensor:
    scale = 1.0 if len(targets) == 0 else 1 + targets.double().max().clamp(0, 0).item()
    return focal(logits, targets, **weights) * scale


def half_when_compiled(*args: Any, **weights: Any) -> Tensor:
    loss = focal(*args, **weights)
    return loss / 2 if torch.compiler.is_compiling() else loss


ELEMENTWISE = {
    a_tuple: "result",
    one_loss_too_many: "result",
    noise: "pure",
    in_place: "pure",
    log_of_softmax: "finite",
    nan_for_no_rows: "empty",
    takes_ignored_for_background: "ignored",
    slope_at_nan: "ignored_nonfinite",
    previous_row: "order",
    unweighted: "weights",
    divides_by_rows: "weights",
    sign: "direction",
    reads: "vmap",
    half_when_compiled: "compile",
}


@pytest.mark.parametrize(("loss", "broken"), ELEMENTWISE.items(), ids=name_of)
def test_broken_elementwise_losses(loss: Callable[..., Any], broken: str) -> None:
    with pytest.raises(ContractError, match=rf"^{broken}: ") as caught:
        check_elementwise_loss(loss, num_classes=3)
    assert caught.value.property_name == broken


@pytest.mark.parametrize(("loss", "broken"), ELEMENTWISE.items(), ids=name_of)
def test_the_elementwise_property_alone_finds_it(loss: Callable[..., Any], broken: str) -> None:
    with pytest.raises(ContractError, match=rf"^{broken}: "):
        check_elementwise_loss(loss, num_classes=3, skip=ELEMENTWISE_PROPERTIES.keys() - {broken})


def test_every_elementwise_property_finds_something() -> None:
    assert set(ELEMENTWISE.values()) == set(ELEMENTWISE_PROPERTIES)


def test_the_batch_is_small() -> None:
    with pytest.raises(ContractError) as caught:
        check_ranking_loss(counts_ignored_rows, skip=RANKING_PROPERTIES.keys() - {"ignored"})
    batch = caught.value.batch
    assert len(batch.logits) == 1
    assert len(batch.queue_state.logits) == 0


# --- what the checks can be told --------------------------------------------------------------------------------------


def test_skipped_properties_are_not_checked() -> None:
    check_ranking_loss(wrong_when_compiled, skip={"compile"}, max_examples=5)
    check_elementwise_loss(half_when_compiled, num_classes=3, skip=["compile"], max_examples=5)


@pytest.mark.parametrize("check", [check_ranking_loss, check_elementwise_loss])
@pytest.mark.parametrize("skip", ["shfit", ["order", "shfit"]])
def test_unknown_names_in_skip(check: Callable[..., None], skip: Any) -> None:
    with pytest.raises(ValueError, match=r"expected names of properties in skip \(result, .*\), got shfit"):
        check(right, skip=skip)


def test_optional_arguments_that_a_loss_lacks_are_left_out() -> None:
    check_ranking_loss(lambda logits, targets, queue: right(logits, targets, queue), max_examples=5)
    cfg = SigmoidFocalConfig()
    check_elementwise_loss(lambda z, y: sigmoid_focal(z, y, cfg), ignore_index=None, max_examples=5)


def test_the_backend_is_the_callers() -> None:
    seen = []

    def backend(graph: Any, inputs: Any) -> Any:
        seen.append(graph)
        return graph

    check_elementwise_loss(focal, num_classes=3, skip=ELEMENTWISE_PROPERTIES.keys() - {"compile"}, backend=backend)
    assert len(seen) == 1


def test_an_error_of_the_loss_is_its_cause() -> None:
    def fails(logits: Tensor, targets: Tensor) -> Tensor:
        raise RuntimeError("no such thing")

    with pytest.raises(ContractError, match=r"^result: .*\nRuntimeError: no such thing\nSmallest") as caught:
        check_elementwise_loss(fails)
    assert isinstance(caught.value.__cause__, RuntimeError)

"""The properties in the contract of a ranking loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree

from imbalanced_losses import QueueState, reset_queue
from imbalanced_losses.testing.batches import RankingBatch
from imbalanced_losses.testing.properties import (
    FINITE,
    NOT_FINITE,
    Loss,
    Property,
    call,
    check_finite,
    check_pure,
    check_vmap,
    evaluate,
    orders,
    require,
    require_close,
)
from imbalanced_losses.testing.strategies import FLOAT_DTYPES

__all__ = ["PROPERTIES"]

ROW_FIELDS = ("logits", "targets", "iid", "sample_weight")
SHIFTS = (0.5, -64.0)
SLACK = 1e-6  # for rounding in float32


def _check_result(loss: Loss, batch: RankingBatch) -> None:
    logits = batch.logits.clone().requires_grad_() * 1  # not a leaf, so that only "pure" fails on an in-place change
    result = loss(logits, *batch.args[1:], **batch.kwargs)
    require(
        isinstance(result, tuple) and len(result) == 2,
        f"expected (loss, new_state), got {type(result).__name__}",
    )
    value, _ = result
    require(isinstance(value, Tensor), f"expected the loss to be a Tensor, got {type(value).__name__}")
    require(value.is_floating_point(), f"expected a floating-point loss, got {value.dtype}")
    by_class = [batch.num_classes]
    require(list(value.shape) in ([], by_class), f"expected a loss of shape [] or {by_class}, got {list(value.shape)}")
    require(value.requires_grad, "expected a loss with a gradient, got one that is detached from the logits")


def _check_state(loss: Loss, batch: RankingBatch) -> None:
    old = batch.queue_state
    _, new = call(loss, batch.logits.clone().requires_grad_(), *batch.args[1:], **batch.kwargs)
    require(
        _pytree.tree_structure(new) == _pytree.tree_structure(old),
        f"expected a new state of the structure of {type(old).__name__}, got {new}",
    )
    for name in (own.name for own in dataclasses.fields(old)):
        now, before = getattr(new, name), getattr(old, name)
        require(
            (now.shape, now.dtype, now.device) == (before.shape, before.dtype, before.device),
            f"expected queue_state.{name} {before.dtype} {list(before.shape)} on {before.device}, "
            f"got {now.dtype} {list(now.shape)} on {now.device}",
        )
        require(not now.requires_grad, f"expected queue_state.{name} without a gradient: detach the rows")


def _check_range(loss: Loss, batch: RankingBatch) -> None:
    value = call(loss, *batch.args, **batch.kwargs)[0]
    counted = value[~value.isnan()] if value.dim() > 0 else value
    require(bool(((counted >= -SLACK) & (counted <= 1 + SLACK)).all()), f"expected a loss in [0, 1], got {value}")


def _check_empty(loss: Loss, batch: RankingBatch) -> None:
    nothing = batch.rows(torch.arange(0))
    check_finite(loss, nothing)
    state = evaluate(loss, nothing).state
    for name in ROW_FIELDS:
        require_close(f"queue_state.{name} as before", getattr(state, name), getattr(batch.queue_state, name))
    ignored = torch.full_like(batch.targets, int(batch.queue_state.ignore_index))
    _require_zero(loss, dataclasses.replace(nothing, queue_state=reset_queue(batch.queue_state)))
    _require_zero(loss, dataclasses.replace(batch, targets=ignored, queue_state=reset_queue(batch.queue_state)))


def _require_zero(loss: Loss, batch: RankingBatch) -> None:
    """Check that the loss and its gradient are 0; a ``[C]`` loss may be nan at invalid classes."""
    outcome = evaluate(loss, batch)
    value = outcome.loss.nan_to_num(nan=0.0) if outcome.loss.dim() > 0 else outcome.loss
    require(bool((value == 0).all()), f"expected a loss of 0, got {outcome.loss} for\n  {batch}")
    require(bool((outcome.gradient == 0).all()), f"expected a gradient of 0, got {outcome.gradient} for\n  {batch}")


def _check_ignored(contents: Sequence[float], loss: Loss, batch: RankingBatch) -> None:
    expected = evaluate(loss, batch)
    ignore_index = int(batch.queue_state.ignore_index)
    masked = (batch.targets == ignore_index).reshape(len(batch.logits), -1).expand_as(batch.logits)
    for content in contents:
        outcome = evaluate(loss, _with_ignored_rows(batch, content, ignore_index))
        where = f"after two ignored rows with logits {content}"
        require_close(f"the loss {where}", outcome.loss, expected.loss)
        require_close(f"the gradient {where}", outcome.gradient[1:-1], expected.gradient)
        require(bool((outcome.gradient[[0, -1]] == 0).all()), f"expected no gradient at ignored rows, {where}")
        changed = dataclasses.replace(batch, logits=torch.where(masked, content, batch.logits))
        outcome, where = evaluate(loss, changed), f"with {content} as the ignored logits"
        require_close(f"the loss {where}", outcome.loss, expected.loss)
        require_close(f"the gradient {where}", outcome.gradient, torch.where(masked, 0, expected.gradient))


def _with_ignored_rows(batch: RankingBatch, content: float, ignore_index: int) -> RankingBatch:
    """Return the batch with an ignored row added before and after it."""

    def around(values: Tensor, filling: float) -> Tensor:
        row = torch.full_like(values[:1], filling)
        return torch.cat([row, values, row])

    filling = {"iid_mask": True, "sample_weight": 3.0}
    extras: dict[str, Any] = {name: around(value, filling[name]) for name, value in batch.kwargs.items()}
    logits, targets = around(batch.logits, content), around(batch.targets, ignore_index)
    return dataclasses.replace(batch, logits=logits, targets=targets, **extras)


def _check_order(loss: Loss, batch: RankingBatch) -> None:
    expected = evaluate(loss, batch)
    for order in orders(len(batch.logits)):
        outcome, where = evaluate(loss, batch.rows(order)), f"with the rows in the order {order.tolist()}"
        require_close(f"the loss {where}", outcome.loss, expected.loss)
        require_close(f"the gradient {where}", outcome.gradient, expected.gradient[order])


def _with_queue(batch: RankingBatch, **fields: Tensor) -> RankingBatch:
    return dataclasses.replace(batch, queue_state=dataclasses.replace(batch.queue_state, **fields))


def _check_weights(loss: Loss, batch: RankingBatch) -> None:
    weight, queued = batch.kwargs["sample_weight"], batch.queue_state.sample_weight
    plain = evaluate(loss, dataclasses.replace(batch, sample_weight=None))
    ones = evaluate(loss, dataclasses.replace(batch, sample_weight=torch.ones_like(weight)))
    require_close("the loss with weights of one", ones.loss, plain.loss)
    require_close("the gradient with weights of one", ones.gradient, plain.gradient)
    doubled = _with_queue(dataclasses.replace(batch, sample_weight=2 * weight), sample_weight=2 * queued)
    require_close("the loss with all weights doubled", evaluate(loss, doubled).loss, evaluate(loss, batch).loss)
    zeros = dataclasses.replace(batch, sample_weight=torch.zeros_like(weight))
    _require_zero(loss, _with_queue(zeros, sample_weight=torch.zeros_like(queued)))


def _check_pool(loss: Loss, batch: RankingBatch) -> None:
    state, n = batch.queue_state, len(batch.logits)
    none = {name: getattr(state, name)[:0] for name in ROW_FIELDS}
    queued = {"iid_mask": state.iid, "sample_weight": state.sample_weight}
    extras: dict[str, Any] = {name: torch.cat([value, queued[name]]) for name, value in batch.kwargs.items()}
    joined = dataclasses.replace(
        batch,
        logits=torch.cat([batch.logits, state.logits]),
        targets=torch.cat([batch.targets, state.targets]),
        queue_state=dataclasses.replace(state, **none, cursor=torch.zeros_like(state.cursor)),
        **extras,
    )
    outcome, expected = evaluate(loss, batch), evaluate(loss, joined)
    require_close("the loss of the queue's rows moved into the batch", outcome.loss, expected.loss)
    require_close("the gradient of the queue's rows moved into the batch", outcome.gradient, expected.gradient[:n])
    reversed_slots = {name: getattr(batch.queue_state, name).flip(0) for name in ROW_FIELDS}
    moved = evaluate(loss, _with_queue(batch, **reversed_slots))
    require_close("the loss with the queue's slots reversed", moved.loss, outcome.loss)
    require_close("the gradient with the queue's slots reversed", moved.gradient, outcome.gradient)


def _check_queue(loss: Loss, batch: RankingBatch) -> None:
    old, n = batch.queue_state, len(batch.logits)
    new = call(loss, *batch.args, **batch.kwargs)[1]
    live = {
        "logits": batch.logits,
        "targets": batch.targets,
        "iid": torch.ones(n, dtype=torch.bool) if batch.iid_mask is None else batch.iid_mask,
        "sample_weight": torch.ones(n) if batch.sample_weight is None else batch.sample_weight,
    }
    stored = {
        name: torch.cat([_by_age(old, name), rows.to(getattr(old, name).dtype)])[n:] for name, rows in live.items()
    }
    valid = stored["targets"] != old.ignore_index
    counts = valid.any(1) if batch.multilabel else valid
    require_close("queue_state.targets, oldest first", _by_age(new, "targets"), stored["targets"])
    for name in ROW_FIELDS:
        actual, expected = _by_age(new, name)[counts], stored[name][counts]
        require_close(f"queue_state.{name} of the rows that count, oldest first", actual, expected)


def _by_age(state: QueueState, name: str) -> Tensor:
    values: Tensor = getattr(state, name)
    return values.roll(-int(state.cursor), 0)


def _check_shift(loss: Loss, batch: RankingBatch) -> None:
    expected = evaluate(loss, batch)
    for shift in SHIFTS:
        shifted = dataclasses.replace(batch, logits=batch.logits + shift)
        outcome = evaluate(loss, _with_queue(shifted, logits=batch.queue_state.logits + shift))
        require_close(f"the loss of all scores plus {shift}", outcome.loss, expected.loss)
        require_close(f"the gradient of all scores plus {shift}", outcome.gradient, expected.gradient)


def _check_direction(loss: Loss, batch: RankingBatch) -> None:
    if batch.multilabel or batch.num_classes == 1:
        positive = batch.targets.reshape(batch.logits.shape) == 1
    else:
        positive = batch.targets[:, None] == torch.arange(batch.num_classes)
    gradient = evaluate(loss, batch).gradient
    slope = torch.where(positive, gradient, 0).sum(0)
    tolerance = SLACK * max(1.0, gradient.abs().max().item())
    require(
        bool((slope <= tolerance).all()),
        f"expected no class whose positives, raised together, raise the loss, got slopes {slope.tolist()}",
    )


_EVERY_DTYPE = {"dtypes": FLOAT_DTYPES}

PROPERTIES = [
    Property("result", "a call returns (loss, new_state), the loss a Tensor [] or [C] with a gradient.", _check_result),
    Property("pure", "a call changes no argument, and a second call returns the same.", check_pure),
    Property("state", "the new state has the old one's structure, shapes, dtypes and device.", _check_state),
    Property("finite", "loss and gradient are finite, also at scores of +-1e4.", check_finite, _EVERY_DTYPE),
    Property("range", "the loss lies in [0, 1].", _check_range, _EVERY_DTYPE),
    Property("order", "the order of the batch's rows changes nothing.", _check_order),
    Property("empty", "without rows that count the loss is 0, and so is its gradient.", _check_empty),
    Property("ignored", "ignored rows change nothing and get no gradient.", partial(_check_ignored, FINITE)),
    Property(
        "ignored_nonfinite",
        "ignored rows change nothing and get no gradient, even if their logits are nan or inf.",
        partial(_check_ignored, NOT_FINITE),
    ),
    Property("weights", "weights are relative: ones equal no weights, and all zeros give 0.", _check_weights, {}, True),
    Property("pool", "a row counts the same in the batch and in the queue, in any slot.", _check_pool, {}, True),
    Property("queue", "the new state holds the last rows: the queue's, then the batch's.", _check_queue),
    Property("shift", "adding a number to all scores changes nothing.", _check_shift),
    Property(
        "direction",
        "raising all positives of a class together does not raise the loss.",
        _check_direction,
        {"max_queue": 0, "extremes": False},
    ),
    Property("vmap", "vmap(grad(loss)) equals a loop.", check_vmap),
]

"""The properties in the contract of an elementwise loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from imbalanced_losses.testing.batches import ElementwiseBatch
from imbalanced_losses.testing.properties import (
    FINITE,
    NOT_FINITE,
    Loss,
    Outcome,
    Property,
    check_finite,
    check_pure,
    check_vmap,
    evaluate,
    orders,
    require,
    require_close,
)
from imbalanced_losses.testing.strategies import FLOAT_DTYPES

__all__ = ["make_properties"]

SLACK = 1e-6  # for rounding in float32


def _check_result(loss: Loss, batch: ElementwiseBatch) -> None:
    logits = batch.logits.clone().requires_grad_() * 1  # not a leaf, so that only "pure" fails on an in-place change
    value = loss(logits, batch.targets, **batch.kwargs)
    require(isinstance(value, Tensor), f"expected a Tensor, got {type(value).__name__}")
    require(value.is_floating_point(), f"expected a floating-point loss, got {value.dtype}")
    rows = value.dim() == 0 or len(value) == len(batch.logits)
    require(rows, f"expected a loss of shape [] or [{len(batch.logits)}, ...], got {list(value.shape)}")
    require(value.requires_grad, "expected a loss with a gradient, got one that is detached from the logits")


def _check_empty(ignore_index: int | None, loss: Loss, batch: ElementwiseBatch) -> None:
    _require_zero(loss, batch.rows(torch.arange(0)))
    if ignore_index is not None:
        _require_zero(loss, dataclasses.replace(batch, targets=torch.full_like(batch.targets, ignore_index)))


def _require_zero(loss: Loss, batch: ElementwiseBatch) -> None:
    outcome = evaluate(loss, batch)
    require(bool((outcome.loss == 0).all()), f"expected a loss of 0, got {outcome.loss} for\n  {batch}")
    require(bool((outcome.gradient == 0).all()), f"expected a gradient of 0, got {outcome.gradient} for\n  {batch}")


def _check_ignored(ignore_index: int, contents: Sequence[float], loss: Loss, batch: ElementwiseBatch) -> None:
    expected = evaluate(loss, batch)
    masked = _like_logits(batch.targets == ignore_index, batch)
    for content in contents:
        outcome = evaluate(loss, _with_ignored_rows(batch, content, ignore_index))
        where, own = f"after two ignored rows with logits {content}", torch.arange(1, len(batch.logits) + 1)
        _require_same(where, _rows_of(outcome, own), expected)
        around = _rows_of(outcome, torch.tensor([0, -1]))
        require(bool((around.gradient == 0).all()), f"expected no gradient at ignored rows, {where}")
        require(outcome.loss.dim() == 0 or bool((around.loss == 0).all()), f"expected no loss at ignored rows, {where}")
        changed = dataclasses.replace(batch, logits=torch.where(masked, content, batch.logits))
        outcome = evaluate(loss, changed)
        kept = dataclasses.replace(expected, gradient=torch.where(masked, 0, expected.gradient))
        _require_same(f"with {content} as the ignored logits", outcome, kept)


def _like_logits(of_targets: Tensor, batch: ElementwiseBatch) -> Tensor:
    return of_targets if of_targets.dim() == batch.logits.dim() else of_targets[:, None].expand_as(batch.logits)


def _with_ignored_rows(batch: ElementwiseBatch, content: float, ignore_index: int) -> ElementwiseBatch:
    """Return the batch with an ignored row added before and after it."""

    def around(values: Tensor, filling: float) -> Tensor:
        row = torch.full_like(values[:1], filling)
        return torch.cat([row, values, row])

    extras: dict[str, Any] = {name: around(value, 3.0) for name, value in batch.kwargs.items()}
    logits, targets = around(batch.logits, content), around(batch.targets, ignore_index)
    return dataclasses.replace(batch, logits=logits, targets=targets, **extras)


def _rows_of(outcome: Outcome, index: Tensor) -> Outcome:
    """Return the rows at ``index``; a scalar loss is returned as it is."""
    loss = outcome.loss[index] if outcome.loss.dim() > 0 else outcome.loss
    return dataclasses.replace(outcome, loss=loss, gradient=outcome.gradient[index])


def _require_same(where: str, actual: Outcome, expected: Outcome) -> None:
    require_close(f"the loss {where}", actual.loss, expected.loss)
    require_close(f"the gradient {where}", actual.gradient, expected.gradient)


def _check_order(loss: Loss, batch: ElementwiseBatch) -> None:
    expected = evaluate(loss, batch)
    for order in orders(len(batch.logits)):
        where = f"with the rows in the order {order.tolist()}"
        _require_same(where, evaluate(loss, batch.rows(order)), _rows_of(expected, order))


def _check_weights(loss: Loss, batch: ElementwiseBatch) -> None:
    weight = batch.kwargs["sample_weight"]
    plain = evaluate(loss, dataclasses.replace(batch, sample_weight=None))
    ones = evaluate(loss, dataclasses.replace(batch, sample_weight=torch.ones_like(weight)))
    _require_same("with weights of one", ones, plain)
    outcome = evaluate(loss, batch)
    heavy = (weight > 0).nonzero()[:, 0]
    light = _rows_of(outcome, (weight == 0).nonzero()[:, 0])
    require(bool((light.gradient == 0).all()), f"expected no gradient at rows of weight 0, got {light.gradient}")
    require(outcome.loss.dim() == 0 or bool((light.loss == 0).all()), "expected no loss at rows of weight 0")
    _require_same("as without the rows of weight 0", _rows_of(outcome, heavy), evaluate(loss, batch.rows(heavy)))


def _check_direction(loss: Loss, batch: ElementwiseBatch) -> None:
    gradient, targets = evaluate(loss, batch).gradient, batch.targets
    if targets.dim() == gradient.dim():
        sign = 2 * targets - 1
    else:
        classes = torch.arange(gradient.shape[1]).reshape(-1, *[1] * (gradient.dim() - 2))
        sign = 2.0 * (targets[:, None] == classes) - 1
    wrong = _like_logits(targets >= 0, batch) & (sign * gradient > SLACK * max(1.0, gradient.abs().max().item()))
    require(not bool(wrong.any()), f"expected a gradient towards the labels, got:\n  {gradient}")


def make_properties(ignore_index: int | None) -> list[Property]:
    """Return the contract of a loss that ignores targets of ``ignore_index`` (None: ignores none)."""
    return [
        Property("result", "a call returns a floating-point Tensor [] or [N, ...] with a gradient.", _check_result),
        Property("pure", "a call changes no argument, and a second call returns the same.", check_pure),
        Property(
            "finite",
            "loss and gradient are finite, also at scores of +-1e4.",
            check_finite,
            {"dtypes": FLOAT_DTYPES, "ignore_index": None},
        ),
        Property("order", "the order of rows changes nothing.", _check_order),
        Property(
            "empty",
            "without elements that count the loss is 0, and so is its gradient.",
            partial(_check_empty, ignore_index),
        ),
        *([] if ignore_index is None else _ignored(ignore_index)),
        Property("weights", "ones equal no weights, and a row of weight 0 equals no row.", _check_weights, {}, True),
        Property(
            "direction",
            "the gradient raises the label's logit and lowers the others.",
            _check_direction,
            {"soft_labels": False, "extremes": False},
        ),
        Property("vmap", "vmap(grad(loss)) equals a loop.", check_vmap),
    ]


def _ignored(ignore_index: int) -> list[Property]:
    check = partial(_check_ignored, ignore_index)
    return [
        Property("ignored", "ignored elements change nothing and get no gradient.", partial(check, FINITE)),
        Property(
            "ignored_nonfinite",
            "ignored elements change nothing and get no gradient, even if their logits are nan or inf.",
            partial(check, NOT_FINITE),
        ),
    ]

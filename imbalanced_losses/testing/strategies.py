"""Hypothesis strategies for the arguments of the losses: batches and queue states.

Scores are multiples of 1/8: they tie often, are exact in every floating dtype, and adding a multiple of 1/8 or
multiplying by a power of two is exact in float32 and float64. So tests can require exact equality where the mathematics
gives it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses import QueueState, init_queue
from imbalanced_losses.testing.batches import ElementwiseBatch, RankingBatch

__all__ = [
    "FLOAT_DTYPES",
    "elementwise_batches",
    "flags",
    "queue_states",
    "ranking_batches",
    "rows",
    "scores",
    "weights",
]

FLOAT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# Simple values first: hypothesis shrinks towards the front of a list.
TIES = [0.0, 1.0, -1.0, 0.5, -0.5]
GRID = sorted((i / 8 for i in range(-24, 25)), key=abs)
HARD_LABELS, SOFT_LABELS = (0, 1), (0, 1, 0.25)
EXTREMES = [1e4, -1e4] * 5  # about one score in twelve


@dataclass(frozen=True)
class Rows:
    """Drawn rows, in float64 (iid is bool): logits [N, ...], labels [N, ...], iid [N], sample_weight [N]."""

    logits: Tensor
    labels: Tensor
    iid: Tensor
    sample_weight: Tensor


# --- rows -------------------------------------------------------------------------------------------------------------


def scores(extremes: bool = True) -> st.SearchStrategy[float]:
    """Draw multiples of 1/8, half of them from five values so that they tie; with ``extremes`` also ``+-1e4``."""
    return st.one_of(st.sampled_from(TIES), st.sampled_from(GRID + EXTREMES if extremes else GRID))


def weights() -> st.SearchStrategy[float]:
    """Draw sample weights, including zero."""
    return st.sampled_from([1.0, 1.0, 0.0, 0.5, 2.0, 3.0])


def flags() -> st.SearchStrategy[bool]:
    """Draw flags, two thirds of them True."""
    return st.sampled_from([True, True, False])


@st.composite
def rows(
    draw: st.DrawFn,
    scores_shape: Sequence[int],
    labels_shape: Sequence[int],
    min_size: int,
    max_size: int,
    *,
    labels: Sequence[float],
    ignore_index: int | None,
    extremes: bool,
) -> Rows:
    """Draw rows one by one, so that hypothesis can remove any of them."""
    row = st.tuples(
        _lists(scores(extremes), scores_shape),
        _lists(draw(_labels(labels, ignore_index)), labels_shape),
        flags(),
        weights(),
    )
    drawn = draw(st.lists(row, min_size=min_size, max_size=max_size))
    n = len(drawn)
    logits, targets, iid, weight = zip(*drawn, strict=True) if drawn else ((), (), (), ())
    return Rows(
        logits=torch.tensor(logits, dtype=torch.float64).reshape(n, *scores_shape),
        labels=torch.tensor(targets, dtype=torch.float64).reshape(n, *labels_shape),
        iid=torch.tensor(iid, dtype=torch.bool),
        sample_weight=torch.tensor(weight, dtype=torch.float64),
    )


def _lists(elements: st.SearchStrategy[Any], shape: Sequence[int]) -> st.SearchStrategy[list[Any]]:
    size = math.prod(shape)
    return st.lists(elements, min_size=size, max_size=size)


@st.composite
def _labels(draw: st.DrawFn, values: Sequence[float], ignore_index: int | None) -> st.SearchStrategy[float]:
    """Draw a strategy for labels. About one label in four is ignored; sometimes all labels are the same."""
    ignored = [] if ignore_index is None else [ignore_index]
    free = st.sampled_from([*values] * 3 + ignored * len(values))
    only = [st.just(label) for label in [*values, *ignored]]
    return draw(st.sampled_from([free] * (4 * len(only)) + only))


# --- batches and queues -----------------------------------------------------------------------------------------------


@st.composite
def queue_states(
    draw: st.DrawFn,
    num_classes: int = 1,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    min_size: int = 0,
    max_size: int = 8,
    dtype: torch.dtype = torch.float32,
    extremes: bool = True,
    ignored: bool = True,
    sample_weights: bool = True,
    iid_masks: bool = True,
) -> QueueState:
    """Draw queue states that pushes can lead to: without slots, empty, partly full, full, wrapped.

    Parameters
    ----------
    num_classes, multilabel, ignore_index, dtype
        As in :func:`imbalanced_losses.init_queue`.
    min_size, max_size : int
        Limits of the number of slots.
    extremes : bool
        Whether some logits are +-1e4.
    ignored : bool
        Whether some stored rows (multi-label: elements) are ignored.
    sample_weights, iid_masks : bool
        Whether the stored rows have weights other than 1, and flags other than True.

    Examples
    --------
    >>> from hypothesis import given
    >>> from imbalanced_losses.testing import queue_states
    >>> @given(state=queue_states(num_classes=3, max_size=4))
    ... def test_at_most_four_rows(state):
    ...     assert state.valid.sum() <= 4
    >>> test_at_most_four_rows()
    """
    shape = (num_classes,) if multilabel else ()
    values, mark = _label_values(num_classes, multilabel), ignore_index if ignored else None
    stored = draw(rows((num_classes,), shape, 0, max_size, labels=values, ignore_index=mark, extremes=extremes))
    filled = len(stored.logits)
    size = draw(st.integers(max(min_size, filled), max_size))
    cursor = draw(st.integers(0, size - 1)) if filled == size > 0 else filled
    filling = {
        "logits": stored.logits,
        "targets": stored.labels,
        "iid": stored.iid if iid_masks else torch.ones_like(stored.iid),
        "sample_weight": stored.sample_weight if sample_weights else torch.ones_like(stored.sample_weight),
    }
    empty = init_queue(size, num_classes, multilabel=multilabel, ignore_index=ignore_index, dtype=dtype)
    fields = {}
    for name, own in filling.items():
        unfilled = getattr(empty, name)
        fields[name] = torch.cat([own.to(unfilled.dtype), unfilled[filled:]])
    return dataclasses.replace(empty, **fields, cursor=torch.tensor(cursor))


@st.composite
def ranking_batches(
    draw: st.DrawFn,
    num_classes: int = 1,
    *,
    multilabel: bool = False,
    ignore_index: int = -100,
    min_rows: int = 0,
    max_rows: int = 10,
    min_queue: int = 0,
    max_queue: int = 8,
    dtypes: Sequence[torch.dtype] = FLOAT_DTYPES,
    extremes: bool = True,
    ignored: bool = True,
    sample_weights: bool = True,
    iid_masks: bool = True,
) -> RankingBatch:
    """Draw batches for ranking losses, each with a queue state.

    Scores tie often. Batches may be empty, all positive, all negative or all ignored. The queue's logits are in the
    batch's dtype, or in float32 if that is narrower.

    Parameters
    ----------
    num_classes : int
        With 1 targets are binary labels, else class ids.
    multilabel : bool
        Draw a 0/1 label for each class instead.
    ignore_index : int
        The target of ignored rows (multi-label: elements).
    min_rows, max_rows, min_queue, max_queue : int
        Limits of the number of rows and of the queue's slots.
    dtypes : sequence of torch.dtype
        Dtypes of the logits.
    extremes : bool
        Whether some logits are +-1e4.
    ignored : bool
        Whether some rows are ignored.
    sample_weights, iid_masks : bool
        Whether some batches have these optional arguments, and queue rows such flags and weights.

    Examples
    --------
    >>> from hypothesis import given
    >>> from imbalanced_losses import SmoothAPConfig, smooth_ap
    >>> from imbalanced_losses.testing import configs, ranking_batches
    >>> @given(batch=ranking_batches(), cfg=configs(SmoothAPConfig, num_classes=1))
    ... def test_the_loss_is_a_share(batch, cfg):
    ...     loss, _ = smooth_ap(batch.logits, batch.targets, batch.queue_state, cfg, **batch.kwargs)
    ...     assert ((loss >= 0) & (loss <= 1) | loss.isnan()).all()
    >>> test_the_loss_is_a_share()
    """
    dtype = draw(st.sampled_from(list(dtypes)))
    wide = torch.promote_types(dtype, torch.float32)
    shape = (num_classes,) if multilabel else ()
    values, mark = _label_values(num_classes, multilabel), ignore_index if ignored else None
    state = queue_states(
        num_classes,
        multilabel=multilabel,
        ignore_index=ignore_index,
        min_size=min_queue,
        max_size=max_queue,
        dtype=wide,
        extremes=extremes,
        ignored=ignored,
        sample_weights=sample_weights,
        iid_masks=iid_masks,
    )
    has_flags, has_weights = iid_masks and draw(st.booleans()), sample_weights and draw(st.booleans())
    queue_state = draw(state)
    # drawn last: hypothesis cannot remove rows from a list of maximal length if it draws more after it
    live = draw(rows((num_classes,), shape, min_rows, max_rows, labels=values, ignore_index=mark, extremes=extremes))
    return RankingBatch(
        logits=live.logits.to(dtype),
        targets=live.labels.long(),
        queue_state=queue_state,
        iid_mask=live.iid if has_flags else None,
        sample_weight=live.sample_weight.to(wide) if has_weights else None,
    )


@st.composite
def elementwise_batches(
    draw: st.DrawFn,
    num_classes: int = 1,
    *,
    multilabel: bool = False,
    positions: Sequence[int] = (),
    ignore_index: int | None = -100,
    min_rows: int = 0,
    max_rows: int = 6,
    dtypes: Sequence[torch.dtype] = FLOAT_DTYPES,
    extremes: bool = True,
    soft_labels: bool = True,
    sample_weights: bool = True,
) -> ElementwiseBatch:
    """Draw batches for elementwise losses such as the focal ones.

    Parameters
    ----------
    num_classes : int
        With 1 logits and targets are [N, 1, ...], else logits are [N, C, ...] and targets class ids [N, ...].
    multilabel : bool
        Draw labels in [0, 1] of the logits' shape [N, C, ...] instead of class ids.
    positions : sequence of int
        The axes after the classes, such as (H, W).
    ignore_index : int, optional
        The target of ignored elements; with None no element is ignored.
    min_rows, max_rows : int
        Limits of N.
    dtypes : sequence of torch.dtype
        Dtypes of the logits, and of labels in [0, 1].
    extremes : bool
        Whether some logits are +-1e4.
    soft_labels : bool
        Whether some labels lie between 0 and 1.
    sample_weights : bool
        Whether some batches have weights.

    Examples
    --------
    >>> from hypothesis import given
    >>> from imbalanced_losses import SoftmaxFocalConfig, softmax_focal
    >>> from imbalanced_losses.testing import configs, elementwise_batches
    >>> @given(batch=elementwise_batches(num_classes=3), cfg=configs(SoftmaxFocalConfig))
    ... def test_the_loss_is_not_negative(batch, cfg):
    ...     assert (softmax_focal(batch.logits, batch.targets, cfg, **batch.kwargs) >= 0).all()
    >>> test_the_loss_is_not_negative()
    """
    dtype = draw(st.sampled_from(list(dtypes)))
    shape = (num_classes, *positions)
    class_ids = num_classes > 1 and not multilabel
    values = range(num_classes) if class_ids else SOFT_LABELS if soft_labels else HARD_LABELS
    labels_shape = positions if class_ids else shape
    has_weights = sample_weights and draw(st.booleans())
    sizes = shape, labels_shape, min_rows, max_rows
    drawn = draw(rows(*sizes, labels=values, ignore_index=ignore_index, extremes=extremes))
    wide = torch.promote_types(dtype, torch.float32)
    return ElementwiseBatch(
        logits=drawn.logits.to(dtype),
        targets=drawn.labels.long() if class_ids else drawn.labels.to(dtype),
        sample_weight=drawn.sample_weight.to(wide) if has_weights else None,
    )


def _label_values(num_classes: int, multilabel: bool) -> Sequence[int]:
    return HARD_LABELS if multilabel or num_classes == 1 else range(num_classes)

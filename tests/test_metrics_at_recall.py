"""Exact precision and false-positive rate at a recall against scikit-learn's curves; ties, weights, ignored rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_curve, roc_curve
from torch import Tensor

from imbalanced_losses import metrics, thresholds

IGNORE = -100

every_metric = pytest.mark.parametrize("metric", [metrics.precision_at_recall, metrics.fpr_at_recall])


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with ties or without, labels with a positive, a negative and ignored ones, weights in halves."""
    labels = [0, 1, *draw(st.lists(st.sampled_from((0, 0, 1, IGNORE)), max_size=30))]
    n = len(labels)
    elements = draw(st.sampled_from((st.integers(-4, 4).map(float), st.floats(-1e300, 1e300))))
    scores = draw(st.lists(elements, min_size=n, max_size=n))
    weight = [1.0, 1.0, *draw(st.lists(st.sampled_from((0.0, 0.5, 1.0, 2.0)), min_size=n - 2, max_size=n - 2))]
    return torch.tensor(scores, dtype=torch.float64), torch.tensor(labels), torch.tensor(weight, dtype=torch.float64)


def for_scikit_learn(scores: Tensor, targets: Tensor, weight: Tensor) -> tuple[np.ndarray, ...]:
    """Its curves have no use for rows without weight."""
    kept = (targets != IGNORE) & (weight > 0)
    return tuple(values[kept].numpy() for values in (targets, scores, weight))


@given(rows=rows(), percent=st.integers(1, 100))
def test_precision_is_a_point_of_the_precision_recall_curve(rows: tuple[Tensor, ...], percent: int) -> None:
    labels, scores, weight = for_scikit_learn(*rows)
    precisions, recalls, _ = precision_recall_curve(labels, scores, sample_weight=weight)
    enough = np.flatnonzero(recalls >= percent / 100 - 1e-12)[-1]  # from the lowest threshold to the highest
    actual = metrics.precision_at_recall(rows[0], rows[1], percent / 100, sample_weight=rows[2])
    assert actual.item() == pytest.approx(precisions[enough], abs=1e-12)


@given(rows=rows(), percent=st.integers(1, 100))
def test_rate_is_a_point_of_the_roc_curve(rows: tuple[Tensor, ...], percent: int) -> None:
    labels, scores, weight = for_scikit_learn(*rows)
    rates, recalls, _ = roc_curve(labels, scores, sample_weight=weight, drop_intermediate=False)
    actual = metrics.fpr_at_recall(rows[0], rows[1], percent / 100, sample_weight=rows[2])
    assert actual.item() == pytest.approx(rates[recalls >= percent / 100 - 1e-12].min(), abs=1e-12)


@given(rows=rows(), percent=st.integers(1, 100))
def test_precision_is_that_of_the_chosen_threshold(rows: tuple[Tensor, ...], percent: int) -> None:
    """``thresholds.for_recall_floor`` on the same rows, by another way."""
    scores, targets, weight = rows
    point = thresholds.for_recall_floor(scores, targets, percent / 100, sample_weight=weight)
    actual = metrics.precision_at_recall(scores, targets, percent / 100, sample_weight=weight)
    assert actual.item() == pytest.approx(point.precision.item(), abs=1e-12)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Three problems of 41 rows and 3 classes."""
    scores = torch.randn(3, 41, 3).mul(2).round().div(2)
    targets = torch.randint(0, 3, (3, 41))
    targets[:, ::9] = IGNORE
    return scores, targets


@every_metric
def test_classes_are_binary_problems(metric: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> None:
    scores, targets = batch[0][0], batch[1][0]
    expected = []
    for label in range(3):
        binary = torch.where(targets == IGNORE, IGNORE, (targets == label).long())
        expected.append(metric(scores[:, label], binary))
    torch.testing.assert_close(metric(scores, targets), torch.stack(expected))
    hot = torch.stack([torch.where(targets == IGNORE, IGNORE, (targets == k).long()) for k in range(3)], 1)
    torch.testing.assert_close(metric(scores, hot, multilabel=True), torch.stack(expected))


@every_metric
def test_vmap_is_a_loop(metric: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> None:
    loop = torch.stack([metric(*problem) for problem in zip(*batch, strict=True)])
    torch.testing.assert_close(torch.vmap(metric)(*batch), loop, rtol=0, atol=0)


@every_metric
def test_compiled_is_eager(metric: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> None:
    problem = batch[0][0], batch[1][0]
    compiled = torch.compile(metric, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*problem), metric(*problem), rtol=0, atol=0)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_and_devices(metric: Callable[..., Tensor], batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> None:
    scores, targets = batch[0][0].to(dtype).requires_grad_(), batch[1][0]
    actual = metric(scores, targets)
    assert actual.dtype == torch.promote_types(dtype, torch.float32)
    assert not actual.requires_grad
    torch.testing.assert_close(actual, metric(scores.detach().double(), targets).to(actual.dtype))
    on_meta = metric(scores.to("meta"), targets.to("meta"))
    assert (on_meta.shape, on_meta.dtype) == (actual.shape, actual.dtype)


@every_metric
@pytest.mark.parametrize("labels", [[], [0, 0], [IGNORE, IGNORE]], ids=["empty", "negative", "ignored"])
def test_without_positives_there_is_no_answer(metric: Callable[..., Tensor], labels: list[int]) -> None:
    assert metric(torch.randn(len(labels)), torch.tensor(labels, dtype=torch.int64)).isnan()


@every_metric
def test_without_negatives(metric: Callable[..., Tensor]) -> None:
    answer = metric(torch.tensor([1.0, 2.0]), torch.tensor([1, 1])).item()
    assert answer == 1.0 if metric is metrics.precision_at_recall else math.isnan(answer)


@every_metric
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_are_not_finite(metric: Callable[..., Tensor], value: float) -> None:
    scores = torch.tensor([[1.0, value], [2.0, 1.0], [0.0, 0.0], [1.0, 2.0]])
    targets = torch.tensor([0, 1, 1, 0])
    assert metric(scores, targets).isnan().tolist() == [False, True]
    assert metric(scores, targets.index_fill(0, torch.tensor([0]), IGNORE)).isfinite().all()


@every_metric
def test_bad_recalls(metric: Callable[..., Tensor]) -> None:
    scores, targets = torch.rand(4), torch.tensor([0, 1, 0, 1])
    assert torch.equal(metric(scores, targets, np.float64(0.5)), metric(scores, targets, torch.tensor(0.5)))
    for recall in (0.0, 1.5, math.nan):
        with pytest.raises(ValueError, match="expected recall above 0 and at most 1, got"):
            metric(scores, targets, recall)
    with pytest.raises(TypeError, match=r"expected recall to be a number, got '0\.5'"):
        metric(scores, targets, "0.5")

"""The exact metrics against scikit-learn (ties, weights, ignored rows), and that they are pure and vectorised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, recall_score, roc_auc_score
from torch import Tensor

from imbalanced_losses import metrics as exact
from imbalanced_losses.metrics._functions import _allowed

IGNORE = -100
INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")

METRICS: dict[str, Callable[..., Tensor]] = {
    "average_precision": exact.average_precision,
    "recall": partial(exact.recall_at_quantile, quantile=0.2),
    "partial_auc": partial(exact.partial_auc, alpha=0.1, beta=0.6),
    "coverage_of_population": partial(exact.coverage_at_budget, budget=0.2),
    "coverage_of_negatives": partial(exact.coverage_at_budget, budget=0.2, budget_basis="fpr"),
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS.keys())


@dataclass(frozen=True)
class Rows:
    """A binary problem with ignored rows, at least one positive and one negative."""

    scores: Tensor
    targets: Tensor
    weight: Tensor

    @property
    def kept(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Labels, scores and weights for scikit-learn. Only positives are weighted; ranks stay counts."""
        kept = self.targets != IGNORE
        labels, scores, weight = (t[kept].numpy() for t in (self.targets, self.scores, self.weight))
        return labels, scores, np.where(labels == 1, weight, 1.0)


@st.composite
def binary_rows(draw: st.DrawFn, weighted: bool = False) -> Rows:
    labels = [0, 1, *draw(st.lists(st.sampled_from((0, 0, 0, 1, IGNORE)), max_size=30))]
    n = len(labels)
    tied = st.integers(-4, 4).map(float)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    scores = draw(st.lists(draw(st.sampled_from((tied, finite))), min_size=n, max_size=n))
    weights = st.floats(0.125, 8) if weighted else st.just(1.0)
    weight = draw(st.lists(weights, min_size=n, max_size=n))
    return Rows(torch.tensor(scores, dtype=torch.float64), torch.tensor(labels), torch.tensor(weight).double())


def close(actual: Tensor, expected: float) -> bool:
    return actual.item() == pytest.approx(expected, abs=1e-12)


@given(binary_rows())
def test_average_precision_is_scikit_learns(rows: Rows) -> None:
    labels, scores, _ = rows.kept
    assert close(exact.average_precision(rows.scores, rows.targets), average_precision_score(labels, scores))


@given(binary_rows(weighted=True))
def test_weights_of_average_precision_weigh_the_positives_precisions(rows: Rows) -> None:
    labels, scores, weight = rows.kept
    alerts = scores[None] >= scores[labels == 1][:, None]
    expected = np.average((alerts & (labels == 1)).sum(1) / alerts.sum(1), weights=weight[labels == 1])
    assert close(exact.average_precision(rows.scores, rows.targets, sample_weight=rows.weight), expected)


@given(binary_rows(weighted=True), st.integers(0, 20), st.sampled_from(INTERPOLATIONS))
def test_recall_at_quantile_is_scikit_learns_recall(rows: Rows, twentieths: int, interpolation: str) -> None:
    labels, scores, weight = rows.kept
    quantile = twentieths / 20
    threshold = torch.from_numpy(scores).quantile(1 - quantile, interpolation=interpolation).item()
    expected = recall_score(labels, scores >= threshold, sample_weight=weight)
    actual = exact.recall_at_quantile(rows.scores, rows.targets, quantile, interpolation, sample_weight=rows.weight)
    assert close(actual, expected)


def area_up_to(max_fpr: float, rows: Rows) -> float:
    """Area under the ROC curve from 0 to ``max_fpr``: scikit-learn's, with McClish's standardisation undone."""
    if max_fpr == 0:
        return 0.0
    labels, scores, weight = rows.kept
    standardised = roc_auc_score(labels, scores, sample_weight=weight, max_fpr=max_fpr)
    if max_fpr == 1:
        return standardised
    chance = max_fpr**2 / 2
    return chance + (2 * standardised - 1) * (max_fpr - chance)


@given(binary_rows(weighted=True), st.lists(st.integers(0, 20), min_size=2, max_size=2, unique=True))
def test_partial_auc_is_scikit_learns(rows: Rows, twentieths: list[int]) -> None:
    alpha, beta = sorted(k / 20 for k in twentieths)
    expected = (area_up_to(beta, rows) - area_up_to(alpha, rows)) / (beta - alpha)
    assert close(exact.partial_auc(rows.scores, rows.targets, alpha, beta, sample_weight=rows.weight), expected)


@pytest.mark.parametrize("basis", ["population", "fpr"])
@given(rows=binary_rows(weighted=True), percent=st.integers(0, 100))
def test_coverage_is_the_best_recall_within_the_budget(rows: Rows, percent: int, basis: str) -> None:
    labels, scores, weight = rows.kept
    paid = np.ones_like(labels, dtype=bool) if basis == "population" else labels == 0
    affordable = [
        recall_score(labels, scores >= threshold, sample_weight=weight)
        for threshold in scores
        if (paid & (scores >= threshold)).sum() <= Fraction(percent, 100) * int(paid.sum())
    ]
    actual = exact.coverage_at_budget(rows.scores, rows.targets, percent / 100, basis, sample_weight=rows.weight)
    assert close(actual, max(affordable, default=0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_budget_of_whole_rows_is_spent_in_full(dtype: torch.dtype) -> None:
    scores, targets = torch.arange(100, dtype=dtype), torch.ones(100, dtype=torch.int64)
    # 0.29 * 100 is 28.999999999999996
    spent = [exact.coverage_at_budget(scores, targets, percent / 100) for percent in range(101)]
    torch.testing.assert_close(torch.stack(spent), torch.arange(101, dtype=dtype) / 100)


def test_a_budget_is_not_overspent_in_a_long_column() -> None:
    """The one positive is the first row after the budget, and float32 is too coarse to tell the two apart."""
    n, budget = 4_400_000, 0.5
    scores, targets = torch.arange(n, 0, -1).float(), torch.zeros(n, dtype=torch.int64)
    targets[int(budget * n)] = 1
    assert exact.coverage_at_budget(scores, targets, budget) == 0


@pytest.mark.parametrize(("total", "budget", "allowed"), [(10**7, 0.5, 5 * 10**6), (10**9 + 1, 0.29, 290_000_000)])
def test_a_budget_is_a_whole_number_of_rows(total: int, budget: float, allowed: int) -> None:
    assert _allowed(torch.tensor([total]), budget) == allowed


@st.composite
def columns(draw: st.DrawFn, multilabel: bool) -> tuple[Tensor, Tensor, Tensor]:
    n = draw(st.integers(0, 20))
    scores = draw(st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=n, max_size=n))
    labels = st.sampled_from((0, 1, IGNORE) if multilabel else (0, 1, 2, IGNORE))
    shape = (n, 3) if multilabel else (n,)
    flat = draw(st.lists(labels, min_size=math.prod(shape), max_size=math.prod(shape)))
    weight = draw(st.lists(st.sampled_from((0.0, 1.0, 2.5)), min_size=n, max_size=n))
    return (
        torch.tensor(scores, dtype=torch.float32).reshape(n, 3),
        torch.tensor(flat, dtype=torch.int64).reshape(shape),
        torch.tensor(weight),
    )


@every_metric
@settings(max_examples=30)
@given(problem=columns(multilabel=False))
def test_classes_are_binary_problems_one_against_the_rest(metric, problem) -> None:
    scores, ids, weight = problem
    labels = [torch.where(ids == IGNORE, IGNORE, (ids == c).long()) for c in range(3)]
    binary = [metric(scores[:, c], labels[c], sample_weight=weight) for c in range(3)]
    actual = metric(scores, ids, sample_weight=weight)
    torch.testing.assert_close(actual, torch.stack(binary), equal_nan=True, rtol=0, atol=0)


@every_metric
@settings(max_examples=30)
@given(problem=columns(multilabel=True))
def test_labels_are_binary_problems(metric, problem) -> None:
    scores, labels, weight = problem
    binary = [metric(scores[:, c], labels[:, c], sample_weight=weight) for c in range(3)]
    actual = metric(scores, labels, multilabel=True, sample_weight=weight)
    torch.testing.assert_close(actual, torch.stack(binary), equal_nan=True, rtol=0, atol=0)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    """Five problems of three classes with many ties."""
    return torch.randn(5, 60, 3).round(decimals=1), torch.randint(0, 3, (5, 60)).where(torch.rand(5, 60) > 0.1, IGNORE)


@every_metric
def test_shapes_of_the_result(metric, batch) -> None:
    scores, targets = batch[0][0], batch[1][0]
    binary = (targets == 1).long()
    assert metric(scores, targets).shape == (3,)
    assert metric(scores[:, 0], binary).shape == metric(scores[:, :1], binary[:, None]).shape == ()
    assert metric(scores[:, :1], binary[:, None], multilabel=True).shape == (1,)


@every_metric
def test_vmap_is_a_loop(metric, batch) -> None:
    loop = torch.stack([metric(*problem) for problem in zip(*batch, strict=True)])
    torch.testing.assert_close(torch.vmap(metric)(*batch), loop, rtol=0, atol=0)


@every_metric
def test_compiled_is_eager(metric, batch) -> None:
    problem = batch[0][0], batch[1][0]
    compiled = torch.compile(metric, fullgraph=True)
    torch.testing.assert_close(compiled(*problem), metric(*problem))


@every_metric
def test_runs_without_data(metric, batch) -> None:
    scores, targets = (t[0].to("meta") for t in batch)
    assert metric(scores, targets).shape == (3,)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_is_computed_in_float32_or_wider(metric, batch, dtype: torch.dtype) -> None:
    scores, targets = batch[0][0].to(dtype), batch[1][0]
    actual = metric(scores, targets)
    assert actual.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(actual, metric(scores.double(), targets).to(actual.dtype))


@every_metric
def test_carries_no_gradient_and_changes_nothing(metric, batch) -> None:
    scores, targets = batch[0][0].requires_grad_(), batch[1][0]
    before = scores.detach().clone(), targets.clone()
    assert not metric(scores, targets).requires_grad
    assert torch.equal(scores, before[0])
    assert torch.equal(targets, before[1])


@every_metric
@pytest.mark.parametrize("targets", [[], [0, 0, 0], [IGNORE, IGNORE, IGNORE]], ids=["empty", "negative", "ignored"])
def test_without_positives_there_is_no_answer(metric, targets: list[int]) -> None:
    assert metric(torch.randn(len(targets)), torch.tensor(targets, dtype=torch.int64)).isnan()


@every_metric
def test_without_positive_weight_there_is_no_answer(metric) -> None:
    scores, targets = torch.randn(4), torch.tensor([0, 1, 1, 0])
    assert metric(scores, targets, sample_weight=torch.tensor([1.0, 0.0, 0.0, 1.0])).isnan()


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("average_precision", 1.0),
        ("recall", 0.25),
        ("partial_auc", math.nan),
        ("coverage_of_population", 0.0),
        ("coverage_of_negatives", math.nan),
    ],
)
def test_without_negatives(name: str, answer: float) -> None:
    actual = METRICS[name](torch.arange(4.0), torch.ones(4, dtype=torch.int64))
    torch.testing.assert_close(actual, torch.tensor(answer), equal_nan=True)


@every_metric
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_not_swallowed(metric, batch, bad: float) -> None:
    scores, targets = batch[0][0], torch.arange(60) % 3
    clean = metric(scores, targets)
    scores[7, 1] = bad
    actual = metric(scores, targets)
    assert actual.isnan().tolist() == [False, True, False]
    assert torch.equal(actual[[0, 2]], clean[[0, 2]])


@every_metric
def test_ignored_scores_do_not_matter(metric, batch) -> None:
    scores, targets = batch[0][0], batch[1][0]
    clean = metric(scores, targets)
    assert torch.equal(metric(scores.where((targets != IGNORE)[:, None], math.nan), targets), clean)
    assert torch.equal(metric(scores, targets.where(targets != IGNORE, 99), ignore_index=99), clean)


BAD_CALLS = [
    (
        exact.average_precision,
        {"scores": torch.zeros(2, 2, 2)},
        ValueError,
        r"scores of shape \[N\] or \[N, C\], got \[2, 2, 2\]",
    ),
    (exact.average_precision, {"targets": torch.tensor([-1, 1, -1, 1])}, ValueError, r"expected labels in \{0, 1\}"),
    (exact.average_precision, {"ignore_index": 2**70}, ValueError, "expected ignore_index to be at most"),
    (exact.average_precision, {"scores": torch.zeros(4).long()}, TypeError, "scores, got torch.int64"),
    (exact.average_precision, {"targets": torch.zeros(5).long()}, ValueError, r"targets of shape \[4\], got \[5\]"),
    (exact.average_precision, {"sample_weight": torch.ones(3)}, ValueError, r"sample_weight of shape \[4\], got \[3\]"),
    (exact.recall_at_quantile, {"quantile": 1.5}, ValueError, r"quantile in \[0, 1\], got 1.5"),
    (exact.recall_at_quantile, {"interpolation": "cubic"}, ValueError, "interpolation to be one of .* got 'cubic'"),
    (exact.average_precision, {"scores": [0.5, 0.1]}, TypeError, "expected scores to be a Tensor, got list"),
    (exact.average_precision, {"targets": [0, 1]}, TypeError, "expected targets to be a Tensor, got list"),
    (exact.partial_auc, {"alpha": "a"}, TypeError, "expected alpha to be a number, got 'a'"),
    (exact.partial_auc, {"beta": None}, TypeError, "expected beta to be a number, got None"),
    (exact.partial_auc, {"alpha": 0.5, "beta": 0.5}, ValueError, "0 <= alpha < beta <= 1, got alpha=0.5 and beta=0.5"),
    (exact.partial_auc, {"beta": 1.1}, ValueError, "0 <= alpha < beta <= 1, got alpha=0.0 and beta=1.1"),
    (exact.coverage_at_budget, {"budget": -0.1}, ValueError, r"budget in \[0, 1\], got -0.1"),
    (exact.coverage_at_budget, {"budget_basis": "rows"}, ValueError, "budget_basis to be one of .* got 'rows'"),
]


@pytest.mark.parametrize(("metric", "change", "error", "message"), BAD_CALLS)
def test_says_what_was_expected_and_what_came(metric, change, error, message) -> None:
    arguments = {"scores": torch.zeros(4), "targets": torch.zeros(4).long()} | change
    with pytest.raises(error, match=message):
        metric(**arguments)

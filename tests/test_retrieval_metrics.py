"""The exact metrics of retrieval, against scikit-learn and loops over ranked lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.testing import assert_close

from imbalanced_losses import retrieval_metrics
from imbalanced_losses.retrieval_metrics import map_at_r, mean_average_precision, recall_at_k

IGNORE = -100
METRICS: dict[str, Callable[..., Tensor]] = {
    "map": mean_average_precision,
    "recall": lambda *args, **options: recall_at_k(*args, k=2, **options),
    "share": lambda *args, **options: recall_at_k(*args, k=2, found="share", **options),
    "map@r": map_at_r,
}
every_metric = pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))


@st.composite
def labelled(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Rows of few integers, so with ties, and of few classes; some are ignored."""
    labels = draw(st.lists(st.sampled_from([0, 1, 2, IGNORE]), min_size=1, max_size=10))
    values = st.lists(st.integers(-2, 2), min_size=3, max_size=3)
    rows = draw(st.lists(values, min_size=len(labels), max_size=len(labels)))
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(labels)


def queries_of(embeddings: Tensor, labels: Tensor, *, cosine: bool = False) -> Any:
    """Yield the scores of the keys and whether they are positives, for each query that has one."""
    rows, ids = embeddings.double().numpy(), labels.numpy()
    if cosine:
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for q in range(len(rows)):
        keys = [j for j in range(len(rows)) if j != q and ids[j] != IGNORE]
        relevant = np.array([ids[j] == ids[q] for j in keys], dtype=bool)
        if ids[q] != IGNORE and relevant.any():
            yield np.array([rows[q] @ rows[j] for j in keys]), relevant


def mean(values: list[float]) -> Tensor:
    return torch.tensor(np.mean(values) if values else np.nan, dtype=torch.float64)


@given(labelled())
def test_map_is_the_mean_of_scikit_learns_average_precision(rows: tuple[Tensor, Tensor]) -> None:
    expected = mean([average_precision_score(relevant, scores) for scores, relevant in queries_of(*rows)])
    assert_close(mean_average_precision(*rows, similarity="dot"), expected, equal_nan=True)


def worst_list(scores: Any, relevant: Any) -> Any:
    """The keys from near to far; of tied ones the negatives come first."""
    return relevant[np.lexsort((relevant, -scores))]


@given(labelled(), st.integers(1, 5))
def test_recall_at_k_by_ranked_lists(rows: tuple[Tensor, Tensor], k: int) -> None:
    found, shares = [], []
    for scores, relevant in queries_of(*rows):
        # a positive counts if all keys that score as much are within the first k
        within = [np.sum(scores >= s) <= k for s in scores[relevant]]
        found.append(float(any(within)))
        shares.append(float(np.mean(within)))
    assert_close(recall_at_k(*rows, k, similarity="dot"), mean(found), equal_nan=True)
    assert_close(recall_at_k(*rows, k, "share", similarity="dot"), mean(shares), equal_nan=True)


@pytest.mark.parametrize("seed", range(3))
def test_without_ties_they_are_those_of_the_ranked_list(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 7, (60,), generator=generator)
    labels[:3] = IGNORE
    lists = [worst_list(*query) for query in queries_of(embeddings, labels, cosine=True)]
    for k in (1, 4, 100):
        assert_close(recall_at_k(embeddings, labels, k), mean([float(ranked[:k].any()) for ranked in lists]))
        shares = [ranked[:k].sum() / ranked.sum() for ranked in lists]
        assert_close(recall_at_k(embeddings, labels, k, "share"), mean(shares))
    at_r = []
    for ranked in lists:
        r = ranked.sum()
        at_r.append(sum(ranked[: i + 1].mean() for i in range(r) if ranked[i]) / r)
    assert_close(map_at_r(embeddings, labels), mean(at_r))


@every_metric
def test_perfect_and_worst(metric: Callable[..., Tensor]) -> None:
    labels = torch.arange(12) // 3
    assert metric(torch.eye(4)[labels], labels) == 1
    assert metric(torch.zeros(12, 4), labels) < 0.2


@every_metric
def test_blocks_of_queries_change_nothing(metric: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    embeddings, labels = torch.randn(23, 4), torch.randint(0, 4, (23,))
    expected = metric(embeddings, labels)
    monkeypatch.setattr(retrieval_metrics, "CHUNK", 23 * 4)
    assert_close(metric(embeddings, labels), expected)


@every_metric
def test_ignored_rows_and_their_nan(metric: Callable[..., Tensor]) -> None:
    embeddings, labels = torch.randn(20, 4), torch.randint(0, 4, (20,))
    expected = metric(embeddings[3:], labels[3:])
    embeddings[:3], labels[:3] = torch.nan, IGNORE
    assert_close(metric(embeddings, labels), expected)
    embeddings[5] = torch.nan
    assert metric(embeddings, labels).isnan()


@every_metric
@pytest.mark.parametrize("n", [0, 1, 4])
def test_nothing_to_find(metric: Callable[..., Tensor], n: int) -> None:
    assert metric(torch.randn(n, 3), torch.arange(n)).isnan()


@every_metric
def test_order_dtype_and_gradient(metric: Callable[..., Tensor]) -> None:
    embeddings, labels = torch.randn(30, 4).half(), torch.randint(0, 4, (30,))
    order = torch.randperm(30)
    value = metric(embeddings.requires_grad_(), labels[:, None])
    assert value.dtype == torch.float32
    assert not value.requires_grad
    assert_close(metric(embeddings[order], labels[order]), value)


@every_metric
def test_transforms_and_meta(metric: Callable[..., Tensor]) -> None:
    embeddings, labels = torch.randn(3, 12, 4), torch.randint(0, 4, (3, 12))
    expected = torch.stack([metric(*member) for member in zip(embeddings, labels, strict=True)])
    assert_close(torch.func.vmap(metric)(embeddings, labels), expected)
    compiled = torch.compile(metric, fullgraph=True, backend="aot_eager")
    assert_close(compiled(embeddings[0], labels[0]), expected[0])
    assert metric(embeddings[0].to("meta"), labels[0].to("meta")).is_meta


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"embeddings": torch.zeros(5)}, ValueError, "embeddings of shape"),
        ({"labels": torch.zeros(4, dtype=torch.int64)}, ValueError, r"labels of shape \[5\]"),
        ({"labels": torch.zeros(5)}, TypeError, "labels.long"),
        ({"similarity": "l2"}, ValueError, "expected similarity"),
        ({"k": 0}, ValueError, "expected k to be at least 1"),
        ({"found": "all"}, ValueError, "expected found"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"embeddings": torch.zeros(5, 2), "labels": torch.zeros(5, dtype=torch.int64)}
    with pytest.raises(error, match=message):
        recall_at_k(**{**arguments, **change})

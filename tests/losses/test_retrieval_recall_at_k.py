"""What only the recall@k loss has; what it shares with the AP loss is in test_retrieval_ap.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from imbalanced_losses import RecallAtKConfig, init_queue, retrieval_recall_at_k
from imbalanced_losses.retrieval_metrics import recall_at_k
from tests.losses.retrieval_cases import RECALL_CASES, Case, batch


@pytest.mark.parametrize("case", RECALL_CASES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_its_limit_is_recall_at_k(case: Case, k: int) -> None:
    """The loss counts rank k by half, so its limit lies halfway between two exact ones."""
    embeddings, labels = batch(40)
    similarity = case.cfg().similarity
    below = recall_at_k(embeddings, labels, k - 1, "share", similarity=similarity) if k > 1 else 0
    exact = (recall_at_k(embeddings, labels, k, "share", similarity=similarity) + below) / 2
    loss = case.call(embeddings, labels, k=k, temperature=1e-7, rank_temperature=1e-2)
    assert_close(loss, 1 - exact, rtol=1e-5, atol=1e-5)


def test_several_k_are_their_mean() -> None:
    embeddings, labels = batch(20)
    case = RECALL_CASES[0]
    each = torch.stack([case.call(embeddings, labels, k=k) for k in (1, 4, 9)])
    assert_close(case.call(embeddings, labels, k=(1, 4, 9)), each.mean())


def test_numbers_by_hand() -> None:
    """One positive of soft rank 1 + 1/2: it ties with a negative, and another is far away."""
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.6, -0.8], [-1.0, 0.0]], dtype=torch.float64)
    cfg = RecallAtKConfig(embedding_size=2, k=(1, 2), rank_temperature=0.5, reduction="none")
    loss, _ = retrieval_recall_at_k(embeddings, torch.tensor([0, 0, 1, 2]), init_queue(0, 2), cfg)
    sigmoids = [1 / (1 + np.exp(-(k - 1.5) / 0.5)) for k in (1, 2)]
    assert_close(loss[0].item(), 1 - sum(sigmoids) / 2)


@pytest.mark.parametrize("k", [3, np.int64(3), torch.tensor(3), [3], torch.tensor([3]), np.array([3]), (3,)])
def test_k_of_any_kind(k: Any) -> None:
    assert RecallAtKConfig(embedding_size=2, k=k).k == (3,)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"k": 0}, ValueError, "expected every number in k to be at least 1, got 0"),
        ({"k": ()}, TypeError, "expected k to be an int or a sequence of ints"),
        ({"k": "12"}, TypeError, "expected k"),
        ({"k": 1.5}, TypeError, "expected k"),
        ({"k": (1, 2.5)}, TypeError, "expected every number in k to be an int"),
        ({"k": True}, TypeError, "expected every number in k to be an int"),
        ({"rank_temperature": 0.0}, ValueError, "expected rank_temperature"),
    ],
)
def test_bad_configurations(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RecallAtKConfig(**{"embedding_size": 3, **settings})

"""Results do not depend on torch's default dtype, which trainers in half precision set during a step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.func import vmap
from torch.utils import _pytree

from imbalanced_losses import (
    ClassCounts,
    RecallAtKConfig,
    RetrievalAPConfig,
    class_priors,
    init_queue,
    retrieval_ap,
    retrieval_recall_at_k,
)
from imbalanced_losses.metrics import average_precision, fpr_at_recall, partial_auc, recall_at_quantile
from imbalanced_losses.pool import pool_of_scores
from imbalanced_losses.sampling import subsample
from imbalanced_losses.thresholds import for_precision_floor
from tests.contracts import elements
from tests.contracts.cases import Case, example, over
from tests.default_dtype import default_dtype

every_default = pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float64], ids=str)


def assert_same_under(default: torch.dtype, compute: Callable[[], Any]) -> None:
    """Equal to the bit, and of the same dtypes."""
    expected = _pytree.tree_leaves(compute())
    with default_dtype(default):
        results = _pytree.tree_leaves(compute())
    torch.testing.assert_close(results, expected, rtol=0, atol=0, equal_nan=True)


@every_default
@over["cases"]
@pytest.mark.parametrize("max_pool_size", [None, 12])
def test_ranking_losses(case: Case, max_pool_size: int | None, default: torch.dtype) -> None:
    problem = example("multiclass", dtype=torch.float32)

    def compute() -> Any:
        extras = {} if max_pool_size is None else {"generator": torch.Generator().manual_seed(0)}
        result = case.run(problem, extras, max_pool_size=max_pool_size)
        return result.loss, result.gradient, result.state

    assert_same_under(default, compute)


@every_default
@over["losses"]
def test_a_step_of_a_ranking_module(case: Case, default: torch.dtype) -> None:
    problem = example("multiclass", with_queue=False, dtype=torch.float32)

    def compute() -> Any:
        loss_fn = made[0]
        loss_fn.reset_queue()
        loss = loss_fn(problem.logits, problem.targets, **problem.extras)
        return loss, loss_fn.diagnostics(), copy.deepcopy(loss_fn.queue_state)

    made = [case.shell(problem)]
    assert_same_under(default, compute)


@every_default
@elements.on_every_path
@pytest.mark.parametrize("mode", ["eager", "vmap"])
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_elementwise_losses(case: elements.Case, mode: str, reduction: str, default: torch.dtype) -> None:
    logits, targets = case.inputs(dtype=torch.float32)

    def loss_of(logits: Any, targets: Any) -> Any:
        return case.call(logits, targets, reduction=reduction)

    def compute() -> Any:
        if mode == "vmap":
            return vmap(loss_of)(logits[None], targets[None])
        return elements.value_and_grad(loss_of, logits, targets)

    assert_same_under(default, compute)


@every_default
@elements.every_module
def test_a_step_of_an_elementwise_module(case: elements.Case, default: torch.dtype) -> None:
    loss_fn, batch = elements.made(case)
    loss_fn.eval()
    assert_same_under(default, lambda: elements.value_and_grad(loss_fn, *batch))


@every_default
@pytest.mark.parametrize(
    ("loss", "config"),
    [(retrieval_ap, RetrievalAPConfig), (retrieval_recall_at_k, RecallAtKConfig)],
)
@pytest.mark.parametrize("spoilt", [False, True])
def test_retrieval_losses(loss: Any, config: Any, spoilt: bool, default: torch.dtype) -> None:
    embeddings, labels = torch.randn(8, 3), torch.arange(8) % 3
    embeddings[0, 0] = torch.nan if spoilt else 0
    queue = init_queue(4, 3)
    assert_same_under(default, lambda: loss(embeddings, labels, queue, config(embedding_size=3, reduction="none")))


@every_default
def test_priors_of_many_labels(default: torch.dtype) -> None:
    """More than float16 can count, as one segmented image has."""
    counts = ClassCounts(positives=torch.tensor([70_000, 3]), labels=torch.tensor([300_000, 300_000]))
    assert_same_under(default, lambda: class_priors(counts))
    assert class_priors(counts)[0] == pytest.approx(70_000 / 300_000, rel=1e-5)


@every_default
def test_a_sample_of_a_large_pool(default: torch.dtype) -> None:
    """256 levels of bfloat16 are not enough to shuffle 100,000 rows."""
    targets = (torch.arange(100_000) % 100 == 0).long()
    pool = pool_of_scores(torch.randn(100_000), targets, False, -100, None)
    assert_same_under(default, lambda: subsample(pool, 400, False, torch.Generator().manual_seed(0)).row_index)


@every_default
@pytest.mark.parametrize(
    "metric",
    [
        average_precision,
        fpr_at_recall,
        partial_auc,
        recall_at_quantile,
        lambda scores, targets: (
            for_precision_floor(
                scores, targets, 0.5, n_bootstrap=20, generator=torch.Generator().manual_seed(0)
            ).intervals
        ),
    ],
)
def test_measures(metric: Any, default: torch.dtype) -> None:
    scores, targets = torch.randn(400), (torch.arange(400) % 5 == 0).long()
    assert_same_under(default, lambda: metric(scores, targets))

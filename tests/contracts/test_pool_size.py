"""``max_pool_size``: bounded, a quota for every observed class, uniform otherwise, reproducible.

With all scores equal, every rank is the middle one and Smooth-AP tells how many rows it saw: ``AP = (P + 1) / (M + 1)``
for ``P`` positives in a pool of ``M``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from imbalanced_losses import init_queue
from imbalanced_losses.queue import push
from tests.contracts.cases import Case, assert_close, assert_same_state, case_named, example, over
from tests.strategies import IGNORE, Problem

SMOOTH_AP = case_named("smooth_ap")


def generator(seed: int = 0) -> dict[str, torch.Generator]:
    return {"generator": torch.Generator().manual_seed(seed)}


def tied_pool(class_sizes: Sequence[int], ignored: int = 0, n_live: int = 10) -> Problem:
    """Rows of equal scores, ``class_sizes[c]`` of class c, shuffled over batch and queue."""
    ids = [torch.full((size,), label) for label, size in enumerate(class_sizes)]
    targets = torch.cat([*ids, torch.full((ignored,), IGNORE)])
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(1))]
    num_classes = 1 if len(class_sizes) == 2 else len(class_sizes)
    logits = torch.zeros(len(targets), num_classes, dtype=torch.float64)
    state = init_queue(len(targets) - n_live, num_classes, dtype=torch.float64)
    every = torch.ones(len(targets) - n_live)
    state = push(state, logits[n_live:], targets[n_live:], every.bool(), every)
    return Problem(logits[:n_live], targets[:n_live], state, None, None)


def positives_seen(problem: Problem, pool: int, max_pool_size: int, seed: int = 0) -> Tensor:
    """Positives per class, on the assumption that the pool had ``pool`` rows; integers if it is true."""
    config = SMOOTH_AP.config(problem, max_pool_size=max_pool_size)
    per_class, _ = SMOOTH_AP.loss.per_class(problem.logits, problem.targets, problem.state, config, **generator(seed))
    assert per_class.valid.all()
    counts = (1 - per_class.loss) * (pool + 1) - 1
    assert_close(counts, counts.round())
    return counts.round()


@pytest.mark.parametrize("seed", range(10))
def test_rare_positives_are_all_kept(seed: int) -> None:
    """57 negatives and 3 positives into 16 rows: the quota is 16 // 4."""
    assert positives_seen(tied_pool([57, 3]), 16, 16, seed).tolist() == [3]


@pytest.mark.parametrize("seed", range(10))
def test_every_class_keeps_its_quota(seed: int) -> None:
    """20, 37 and 3 rows into 24: the quota is 24 // 6, and the pool is full."""
    counts = positives_seen(tied_pool([20, 37, 3]), 24, 24, seed)
    assert counts.sum() == 24
    assert (counts >= torch.tensor([4, 4, 3])).all()


@pytest.mark.parametrize("seed", range(3))
def test_classes_without_rows_claim_no_quota(seed: int) -> None:
    """Of four classes two are observed: the quota is 16 // 4 and not 16 // 8."""
    config = SMOOTH_AP.config(problem := tied_pool([0, 4, 56, 0]), max_pool_size=16, reduction="none")
    loss, _ = SMOOTH_AP.loss.function(problem.logits, problem.targets, problem.state, config, **generator(seed))
    torch.testing.assert_close(
        (1 - loss) * 17 - 1, torch.tensor([torch.nan, 4, 12, torch.nan]).double(), equal_nan=True
    )


@pytest.mark.parametrize("seed", range(3))
def test_ignored_rows_take_no_place(seed: int) -> None:
    assert positives_seen(tied_pool([37, 3], ignored=30), 16, 16, seed).tolist() == [3]


@over["cases"]
@over["kinds"]
def test_gradient_reaches_a_bounded_number_of_rows(case: Case, kind: str) -> None:
    problem = example(kind, with_queue=False, n=60)
    reached = case.run(problem, generator(), max_pool_size=20).gradient.ne(0).any(1).sum()
    assert 2 <= reached <= 20
    assert case.run(problem).gradient.ne(0).any(1).sum() > 20


@over["cases"]
@over["kinds"]
def test_reproducible_with_a_generator(case: Case, kind: str) -> None:
    problem = example(kind, n=40)
    runs = [case.run(problem, generator(seed), max_pool_size=16) for seed in (3, 3, 4)]
    assert torch.equal(runs[0].loss, runs[1].loss)
    assert torch.equal(runs[0].gradient, runs[1].gradient)
    assert not torch.equal(runs[0].gradient, runs[2].gradient)


@over["cases"]
@over["kinds"]
@pytest.mark.parametrize("max_pool_size", [30, 31, 1000])
def test_nothing_happens_to_a_pool_that_fits(case: Case, kind: str, max_pool_size: int) -> None:
    problem = example(kind)  # 14 live rows and 16 slots
    result, expected = case.run(problem, generator(), max_pool_size=max_pool_size), case.run(problem)
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.gradient, expected.gradient)


@over["cases"]
@over["kinds"]
def test_ignored_rows_and_unfilled_slots_are_not_pool(case: Case, kind: str) -> None:
    """25 of 30 rows count (one live row and four slots do not): a bound of 25 is none."""
    problem = example(kind)
    result, expected = case.run(problem, generator(), max_pool_size=25), case.run(problem)
    assert_close(result.loss, expected.loss)
    assert_close(result.gradient, expected.gradient)


@over["cases"]
def test_the_queue_gets_every_live_row(case: Case) -> None:
    problem = example("multiclass", n=40)
    assert_same_state(case.run(problem, generator(), max_pool_size=8).state, case.run(problem).state)


def test_the_rest_is_filled_uniformly() -> None:
    """28 negatives share 8 places: each is kept in two of seven draws, within five standard deviations."""
    n, draws = 30, 400
    problem = Problem(
        torch.linspace(-1, 1, n, dtype=torch.float64)[:, None],
        torch.arange(n).eq(7).logical_or(torch.arange(n) == 21).long(),
        init_queue(0, 1),
        None,
        None,
    )
    kept = torch.zeros(n)
    for seed in range(draws):
        kept += SMOOTH_AP.run(problem, generator(seed), max_pool_size=10).gradient[:, 0].ne(0)
    negatives = kept[problem.targets == 0]
    assert (kept[problem.targets == 1] == draws).all()
    assert negatives.sum() == 8 * draws
    deviation = (draws * (2 / 7) * (5 / 7)) ** 0.5
    assert ((negatives - draws * 2 / 7).abs() < 5 * deviation).all()

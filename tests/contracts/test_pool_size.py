"""``max_pool_size``: bounded, a quota for every observed class, uniform otherwise, reproducible, an honest estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from imbalanced_losses import init_queue
from imbalanced_losses.kernels.ranks import soft_counts
from imbalanced_losses.losses._ranking import ranking_step
from imbalanced_losses.pool import Pool
from imbalanced_losses.queue import push
from imbalanced_losses.rows import parse_rows
from tests.contracts.cases import CASES, Case, assert_close, assert_same_state, case_named, example, over
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


def sampled(problem: Problem, max_pool_size: int, seed: int = 0) -> Pool:
    config = SMOOTH_AP.config(problem, max_pool_size=max_pool_size)
    rows = parse_rows(problem.logits, problem.targets, config)
    pool = ranking_step(lambda pool, _: pool, rows, problem.state, config, **generator(seed)).pool
    assert pool.scores.shape[1] == max_pool_size
    return pool


def positives_seen(problem: Problem, max_pool_size: int, seed: int = 0) -> Tensor:
    """Positives per class."""
    return sampled(problem, max_pool_size, seed).positive.sum(-1)


@pytest.mark.parametrize("seed", range(10))
def test_rare_positives_are_all_kept(seed: int) -> None:
    """57 negatives and 3 positives into 16 rows: the quota is 16 // 4."""
    assert positives_seen(tied_pool([57, 3]), 16, seed).tolist() == [3]


@pytest.mark.parametrize("seed", range(10))
def test_every_class_keeps_its_quota(seed: int) -> None:
    """20, 37 and 3 rows into 24: the quota is 24 // 6, and the pool is full."""
    counts = positives_seen(tied_pool([20, 37, 3]), 24, seed)
    assert counts.sum() == 24
    assert (counts >= torch.tensor([4, 4, 3])).all()


@pytest.mark.parametrize("seed", range(3))
def test_classes_without_rows_claim_no_quota(seed: int) -> None:
    """Of four classes two are observed: the quota is 16 // 4 and not 16 // 8."""
    assert positives_seen(tied_pool([0, 4, 56, 0]), 16, seed).tolist() == [0, 4, 12, 0]


@pytest.mark.parametrize("seed", range(3))
def test_ignored_rows_take_no_place(seed: int) -> None:
    assert positives_seen(tied_pool([37, 3], ignored=30), 16, seed).tolist() == [3]


@over["cases"]
@over["kinds"]
def test_gradient_reaches_a_bounded_number_of_rows(case: Case, kind: str) -> None:
    problem = example(kind, with_queue=False, n=100)
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


# --- each kept row stands for as many as it was drawn from ------------------------------------------------------------


def rare_positives(n: int = 4000) -> Problem:
    """0.5 % positives that score a little higher."""
    random = torch.Generator().manual_seed(0)
    targets = (torch.arange(n) < n // 200).long()
    scores = torch.randn(n, dtype=torch.float64, generator=random) + 2.5 * targets
    return Problem(scores[:, None], targets, init_queue(0, 1, dtype=torch.float64), None, None)


def losses_of_samples(case: Case, problem: Problem, draws: int) -> Tensor:
    return torch.stack([case.run(problem, generator(seed), max_pool_size=400).loss for seed in range(draws)])


POPULATION = {"beta": 0.05, "budget_basis": "population"}  # the share of negatives alone is right in any sample


@pytest.mark.parametrize(
    "case",
    [
        Case("smooth_ap", "smooth_ap", {"temperature": 0.1}),
        Case("recall", "recall", {"temperature": 0.1, "quantile": 0.02}),
        Case("trapezoid", "pauc", POPULATION),
        Case("pairwise", "pauc", {"surrogate": "pairwise", **POPULATION}),
    ],
    ids=lambda case: case.name,
)
def test_the_loss_of_a_sample_estimates_the_loss_of_the_pool(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 0.5 % positives; if the kept rows count for one each, every loss is off by far more than chance."""
    problem = rare_positives()
    full = case.run(problem).loss
    honest = losses_of_samples(case, problem, 100)
    monkeypatch.setattr(
        "imbalanced_losses.sampling._inclusion_probability", lambda groups, *_: torch.ones(groups.shape[1])
    )
    plain = losses_of_samples(case, problem, 100)
    before, after = (plain.mean() - full).abs(), (honest.mean() - full).abs()
    print(f"{case.name}: pool {full:.4f}, samples before {plain.mean():.4f}, after {honest.mean():.4f}")
    assert before > 10 * plain.std() / 10  # standard errors
    assert after < 0.25 * before


def test_the_expected_soft_rank_is_that_of_the_pool() -> None:
    """Within four standard errors, for every positive."""
    problem, draws, temperature = rare_positives(), 200, torch.tensor(0.1, dtype=torch.float64)

    def ranks(pool: Pool) -> Tensor:
        sums = soft_counts(pool.scores, pool.count(pool.valid)[:, None], temperature, pool.positive)
        return 1 + sums[0, 0, pool.positive[0]][pool.scores[0, pool.positive[0]].argsort()]

    estimates = torch.stack([ranks(sampled(problem, 400, seed)) for seed in range(draws)])
    error = (estimates.mean(0) - ranks(sampled(problem, 4000))).abs()
    assert estimates.shape == (draws, 20)
    assert (error <= 4 * estimates.std(0) / draws**0.5).all()


def test_the_expected_rank_beside_other_sampled_positives() -> None:
    """A kept positive sees others with the chance that they are kept when it is: within four standard errors."""
    n, draws = 500, 400
    targets = (torch.arange(n) < 150).long()
    problem = Problem(torch.zeros(n, 1, dtype=torch.float64), targets, init_queue(0, 1), None, None)

    def others(pool: Pool) -> Tensor:
        return pool.rank_weights(pool.negative)[0].sum(-1) - torch.tensor([1, 0]) * pool.pair_weight[0]

    estimates = torch.stack([others(sampled(problem, 16, seed)) for seed in range(draws)])
    error = (estimates.mean(0) - torch.tensor([149, 350])).abs()
    assert (error <= 4 * estimates.std(0) / draws**0.5 + 1e-9).all()


@pytest.mark.parametrize("case", [case for case in CASES if case.loss_name != "smooth_ap"], ids=lambda case: case.name)
@over["kinds"]
def test_a_row_that_stands_for_several_is_as_many_rows(case: Case, kind: str) -> None:
    """Not so in Smooth-AP, where a positive is not compared with itself, but would be with its copies."""
    problem = example(kind)
    cfg = case.config(problem)
    rows = parse_rows(problem.logits, problem.targets, cfg, problem.iid_mask, problem.sample_weight)
    pool = ranking_step(lambda pool, _: pool, rows, problem.state, cfg).pool
    counts = 1 + torch.arange(pool.scores.shape[1]) % 3
    index = torch.arange(len(counts)).repeat_interleave(counts)

    def loss_and_gradient(copies: bool) -> tuple[Tensor, Tensor]:
        leaf = pool.scores.clone().requires_grad_()
        if copies:
            names = ("valid", "positive", "iid", "sample_weight")
            fields = {name: getattr(pool, name)[..., index] for name in names}
            own = replace(pool, scores=leaf[:, index], n_live=int(counts[: pool.n_live].sum()), **fields)
        else:
            own = replace(pool, scores=leaf, inclusion_weight=counts.double())
        loss = case.loss.shell._objective(own, cfg).loss
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

    for actual, expected in zip(loss_and_gradient(copies=False), loss_and_gradient(copies=True), strict=True):
        assert_close(actual, expected)


def test_ties_make_the_estimate_exact() -> None:
    problem = tied_pool([57, 3])
    assert_close(SMOOTH_AP.run(problem, generator(), max_pool_size=16).loss, SMOOTH_AP.run(problem).loss)


def test_rows_stand_for_one_over_their_chance() -> None:
    """Rows with several labels have several chances: within five standard deviations of as many draws."""
    n, draws = 60, 1000
    labels = torch.stack([torch.arange(n) < 12, torch.arange(n) % 5 == 0, torch.arange(n) == 7], 1).long()
    problem = Problem(
        torch.linspace(-1, 1, 3 * n, dtype=torch.float64).reshape(n, 3),
        labels,
        init_queue(0, 3, multilabel=True),
        None,
        None,
    )
    kept, chance = torch.zeros(n, dtype=torch.float64), torch.full((n,), torch.nan, dtype=torch.float64)
    for seed in range(draws):
        pool = sampled(problem, 16, seed)
        kept[pool.row_index] += 1
        chance[pool.row_index] = 1 / pool.inclusion_weight
    assert len(chance.unique()) > 3
    assert ((kept / draws - chance).abs() <= 5 * (chance * (1 - chance) / draws).sqrt() + 0.01).all()

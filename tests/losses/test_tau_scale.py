"""``tau_scale``: the temperature in units of the spread of the scores."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from imbalanced_losses import PAUCAtBudgetConfig, init_queue
from imbalanced_losses.pool import Pool
from imbalanced_losses.spread import scaled_temperature, spread
from imbalanced_losses.testing import RankingBatch, ranking_batches
from tests.losses.tau_scale_cases import CASES, IGNORE, SPREADS, Case, batch_of, scaled, scores_of_unit, unit

every_case = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
first_cases = pytest.mark.parametrize("case", [CASES["smooth_ap"], CASES["recall"]], ids=["smooth_ap", "recall"])
every_spread = pytest.mark.parametrize("tau_scale", SPREADS)
every_kind = pytest.mark.parametrize(("classes", "multilabel"), [(1, False), (3, False), (3, True)])


def units_of(case: Case, batch: RankingBatch, tau_scale: str) -> list[float]:
    cfg = case.configured(tau_scale=tau_scale)
    return [unit(scores_of_unit(case, batch, label, cfg), cfg) for label in range(batch.num_classes)]


def has_spread(case: Case, batch: RankingBatch) -> Tensor:
    """Bool ``[C]``: whether the scores that make the unit are not all equal."""
    scores = [scores_of_unit(case, batch, label, case.configured()) for label in range(batch.num_classes)]
    return torch.tensor([len(own) > 0 and own.min() < own.max() for own in scores])


# --- the definition ---------------------------------------------------------------------------------------------------


@every_case
@every_spread
@every_kind
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_it_is_the_loss_at_the_temperature_times_the_spread(
    case: Case, tau_scale: str, classes: int, multilabel: bool, data: st.DataObject
) -> None:
    """The spread by NumPy; queue, ignored rows, weights and iid masks among the rows."""
    batch = data.draw(ranking_batches(classes, multilabel=multilabel, dtypes=[torch.float64]))
    loss, gradient = case.run(batch, tau_scale=tau_scale)
    for label, size in enumerate(units_of(case, batch, tau_scale)):
        in_scores, own = case.run(batch, tau_scale="none", temperature=0.4 * size)
        assert_close(loss[label], in_scores[label], rtol=1e-10, atol=1e-12, equal_nan=True)
        assert_close(gradient[:, label], own[:, label], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", [CASES[name] for name in ("smooth_ap", "recall", "recall_implicit")])
def test_none_is_the_default_and_touches_nothing(case: Case) -> None:
    batch = batch_of(classes=3, queue_size=16)
    for plain, none in zip(case.run(batch), case.run(batch, tau_scale="none"), strict=True):
        assert torch.equal(plain, none)
    pool = pool_of(batch.logits.mT, torch.ones(3, 40, dtype=torch.bool))
    assert scaled_temperature(pool, "none") is pool.temperature
    assert case.configured().tau_scale == "none"
    assert PAUCAtBudgetConfig(num_classes=1).tau_scale == "iqr"


# --- the property that defines it -------------------------------------------------------------------------------------


@every_case
@every_spread
@every_kind
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_scaling_and_shifting_all_scores_changes_nothing(
    case: Case, tau_scale: str, classes: int, multilabel: bool, data: st.DataObject
) -> None:
    """The gradient has the inverse factor. Powers of 2 round nothing: they go from 1e-30 (pAUC: 1e-9) to 1e30."""
    batch = data.draw(ranking_batches(classes, multilabel=multilabel, dtypes=[torch.float64]))
    lowest = -30 if case.config is PAUCAtBudgetConfig else -99
    factor = 2.0 ** data.draw(st.integers(lowest, 99), label="exponent")
    shift = data.draw(st.sampled_from([0.0, 0.5, -64.0, 1000.0]), label="shift")
    moves = has_spread(case, batch)
    expected, expected_gradient = case.run(batch, tau_scale=tau_scale)
    loss, gradient = case.run(scaled(batch, factor, shift), tau_scale=tau_scale)
    assert_close(loss[moves], expected[moves], rtol=1e-7, atol=1e-9, equal_nan=True)
    assert_close(gradient[:, moves] * factor, expected_gradient[:, moves], rtol=1e-6, atol=1e-8)


@every_case
@every_spread
@pytest.mark.parametrize(("n", "classes"), [(40, 1), (1500, 1), (1500, 3), (6000, 1)])
def test_large_pools_in_float32(case: Case, tau_scale: str, n: int, classes: int) -> None:
    """Every evaluator. Factors that are rounded."""
    batch = batch_of(n, classes, torch.float32, queue_size=20)
    expected, expected_gradient = case.run(batch, tau_scale=tau_scale)
    assert expected.isfinite().all()
    assert (expected_gradient.abs().sum(0) > 0).all()
    for factor in (1e-9 if case.config is PAUCAtBudgetConfig else 1e-30, 3e-6, 7e5, 1e30):
        loss, gradient = case.run(scaled(batch, factor), tau_scale=tau_scale)
        assert_close(loss, expected, rtol=1e-5, atol=1e-6)
        error = (gradient.double() * factor - expected_gradient).abs().max()
        assert error <= 1e-4 * expected_gradient.abs().max()


@every_case
@every_spread
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("factor", [2.0**-8, 1.0, 2.0**13])
def test_half_types_are_computed_in_float32(case: Case, tau_scale: str, dtype: torch.dtype, factor: float) -> None:
    """Scores of up to 3e4, whose squares leave float16."""
    batch = scaled(batch_of(60, 3, dtype, queue_size=10), factor)
    wide = dataclasses.replace(batch, logits=batch.logits.float())
    loss, gradient = case.run(batch, tau_scale=tau_scale)
    expected, expected_gradient = case.run(wide, tau_scale=tau_scale)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert torch.equal(gradient, expected_gradient.to(dtype))


# --- no spread --------------------------------------------------------------------------------------------------------


@every_case
@every_spread
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("level", [0.0, 1000.1, -3e4])
def test_equal_scores_have_the_unit_one(case: Case, tau_scale: str, dtype: torch.dtype, level: float) -> None:
    """A head that starts at zero gets a gradient. 1000.1 has a mean that is rounded."""
    batch = batch_of(41, dtype=dtype)
    batch = dataclasses.replace(batch, logits=torch.full_like(batch.logits, level))
    results = [case.run(batch, tau_scale=own) for own in (tau_scale, "none")]
    assert_close(*(loss for loss, _ in results), rtol=0, atol=0)
    assert_close(*(gradient for _, gradient in results), rtol=0, atol=0)
    assert results[0][1].count_nonzero() > 0


@every_case
@every_spread
def test_no_rows_that_count(case: Case, tau_scale: str) -> None:
    empty = RankingBatch(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), init_queue(0, 2))
    ignored = dataclasses.replace(batch_of(5, 2), targets=torch.full((5,), IGNORE))
    for batch in (empty, ignored):
        loss, gradient = case.run(batch, tau_scale=tau_scale)
        assert loss.isnan().all()  # invalid
        assert (gradient == 0).all()
        assert case.run(batch, tau_scale=tau_scale, reduction="mean")[0] == 0


def test_mostly_equal_scores_have_no_interquartile_range() -> None:
    scores, targets = torch.zeros(20, 1), torch.zeros(20, dtype=torch.long)
    scores[:2], targets[0] = torch.tensor([[0.1], [0.6]]), 1
    batch = RankingBatch(scores, targets, init_queue(0, 1))
    for case in CASES.values():
        of_iqr, of_std = (case.run(batch, tau_scale=tau_scale) for tau_scale in ("iqr", "std"))
        assert torch.equal(of_iqr[0], of_std[0])
        assert torch.equal(of_iqr[1], of_std[1])


@pytest.mark.parametrize("tiny", [1e-38, 1e-45])
@every_spread
def test_a_temperature_that_underflows_stays_a_number(tau_scale: str, tiny: float) -> None:
    batch = batch_of(20, dtype=torch.float32)
    spiky = dataclasses.replace(batch, logits=batch.logits.sign() * tiny)
    for name in ("smooth_ap", "recall", "recall_implicit"):
        loss, _ = CASES[name].run(spiky, tau_scale=tau_scale, temperature=1e-6)
        assert 0 <= loss <= 1


@every_case
@every_spread
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("n", [30, 1500])
def test_a_score_that_is_not_finite_spoils_its_own_class_only(case: Case, tau_scale: str, bad: float, n: int) -> None:
    batch = batch_of(n, 3, torch.float32)
    expected, expected_gradient = case.run(batch, tau_scale=tau_scale)
    logits = batch.logits.clone()
    logits[4, 0] = bad
    logits[-1] = torch.nan  # ignored
    leaf = logits.requires_grad_()
    cfg = case.configured(num_classes=3, tau_scale=tau_scale)
    result, _ = case.per_class(leaf, batch.targets, batch.queue_state, cfg)
    (gradient,) = torch.autograd.grad(result.loss.sum(), leaf)
    assert not result.loss[0].isfinite()
    assert not gradient[4, 0].isfinite()
    assert (gradient[-1] == 0).all()
    assert_close(result.loss[1:].detach(), expected[1:], rtol=1e-6, atol=1e-7)
    assert_close(gradient[:, 1:], expected_gradient[:, 1:], rtol=1e-5, atol=1e-8)


# --- a sampled pool ---------------------------------------------------------------------------------------------------


def pool_of(scores: Tensor, valid: Tensor, weight: Tensor | None = None) -> Pool:
    c, m = scores.shape
    return Pool(
        scores=torch.where(valid, scores, 0),
        valid=valid,
        positive=valid & (torch.arange(m) % 4 == 0),
        iid=torch.ones(m, dtype=torch.bool),
        sample_weight=torch.ones(m, dtype=scores.dtype),
        n_live=m,
        temperature=torch.tensor(0.5, dtype=scores.dtype),
        inclusion_weight=weight,
        pair_weight=None if weight is None else torch.ones(c, dtype=scores.dtype),
    )


@every_spread
@pytest.mark.parametrize("seed", range(5))
def test_a_row_that_stands_for_several_counts_as_often(tau_scale: Any, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(2, 17, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, 17, generator=generator) < 0.8
    counts = torch.randint(1, 5, (17,), generator=generator)
    actual = scaled_temperature(pool_of(scores, valid, counts.double()), tau_scale)
    cfg = CASES["smooth_ap"].configured(tau_scale=tau_scale)
    repeated = [np.repeat(own[kept].numpy(), counts[kept].numpy()) for own, kept in zip(scores, valid, strict=True)]
    expected = torch.tensor([0.5 * unit(own, cfg) for own in repeated], dtype=torch.float64)
    assert_close(actual, expected, rtol=1e-12, atol=0)


@every_case
@every_spread
def test_a_sample_of_the_pool_estimates_the_loss(case: Case, tau_scale: str) -> None:
    batch = batch_of(4000, dtype=torch.float32)
    whole, sample = (case.run(batch, tau_scale=tau_scale, max_pool_size=size)[0] for size in (None, 2000))
    assert abs(whole - sample) < 0.03


def test_an_outlier_far_away_does_not_cost_precision() -> None:
    scores = torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).add(1e4)
    valid = torch.ones_like(scores, dtype=torch.bool)
    assert_close(
        spread(pool_of(scores, valid), valid).double(), scores.double().std(correction=0)[None], rtol=1e-6, atol=0
    )

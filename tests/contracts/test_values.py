"""What every value must be: its range, its reductions, its dtype, finite at extremes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from tests.contracts.cases import Case, assert_close, example, over
from tests.strategies import Problem, few_examples, problems


@over["cases"]
@over["kinds"]
@over["queue"]
def test_the_matrix_is_not_empty(case: Case, kind: str, with_queue: bool) -> None:
    """Guards the other tests: in the fixed problem every class is valid, with a loss and a gradient to get wrong."""
    problem = example(kind, with_queue)
    per_class = case.per_class(problem)
    assert per_class.valid.all()
    assert ((per_class.loss > 0.01) & (per_class.loss < 0.99 * case.variant.most)).all()
    assert (case.run(problem).gradient.abs().sum(0) > 1e-4).all()


@over["cases"]
@few_examples
@given(problem=problems())
def test_range(case: Case, problem: Problem) -> None:
    per_class = case.per_class(problem)
    valid_losses = per_class.loss[per_class.valid]
    assert ((valid_losses >= 0) & (valid_losses <= case.most)).all()
    result = case.run(problem)
    assert 0 <= result.loss <= case.most
    assert result.gradient.isfinite().all()


@over["cases"]
@few_examples
@given(problem=problems(dtype=torch.float32))
def test_range_float32(case: Case, problem: Problem) -> None:
    per_class = case.per_class(problem)
    valid_losses = per_class.loss[per_class.valid]
    assert ((valid_losses >= 0) & (valid_losses <= case.most)).all()


@over["cases"]
@few_examples
@given(problem=problems())
def test_reductions_agree(case: Case, problem: Problem) -> None:
    """``mean`` and ``sum`` run over the valid classes, ``none`` is the per-class loss with nan at invalid ones."""
    per_class = case.per_class(problem)
    none, total, mean = (case.run(problem, reduction=name).loss for name in ("none", "sum", "mean"))
    assert torch.equal(none.isnan(), ~per_class.valid)
    assert per_class.loss.shape == per_class.valid.shape == none.shape == (problem.num_classes,)
    assert per_class.valid.dtype == torch.bool
    torch.testing.assert_close(none, per_class.loss, rtol=0, atol=0, equal_nan=True)
    assert_close(total, none.nansum())
    assert_close(mean, none.nansum() / per_class.valid.sum().clamp(min=1))
    assert total.shape == mean.shape == ()


@over["cases"]
def test_reduction_none_differentiates_class_by_class(case: Case) -> None:
    """An invalid class keeps nan out of the gradient of the others."""
    problem = example("multilabel")
    problem = problem.with_queue(targets=torch.where(torch.arange(3) == 1, 0, problem.state.targets))
    problem.targets[:, 1] = 0
    logits = problem.logits.clone().requires_grad_()
    none, _ = case.loss.function(
        logits, problem.targets, problem.state, case.config(problem, reduction="none"), **problem.extras
    )
    assert none.isnan().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(none[none.isfinite()].sum(), logits)
    assert (gradient[:, 1] == 0).all()
    assert_close(gradient, case.run(problem, reduction="sum").gradient)
    (through_nansum,) = torch.autograd.grad(
        case.loss.function(
            logits, problem.targets, problem.state, case.config(problem, reduction="none"), **problem.extras
        )[0].nansum(),
        logits,
    )
    assert_close(through_nansum, gradient)


@over["cases"]
def test_temperature_argument_overrides_the_config(case: Case) -> None:
    problem = example("multiclass")
    expected = case.run(problem, temperature=1.25)
    assert not torch.equal(expected.loss, case.run(problem).loss)
    for temperature in (1.25, torch.tensor(1.25), torch.tensor(1.25, dtype=torch.float64)):
        result = case.run(problem, {"temperature": temperature})
        assert torch.equal(result.loss, expected.loss)
        assert torch.equal(result.gradient, expected.gradient)


@over["cases"]
def test_temperature_carries_no_gradient(case: Case) -> None:
    problem = example("multiclass")
    logits, temperature = problem.logits.clone().requires_grad_(), torch.tensor(0.5, requires_grad=True)
    cfg = case.config(problem)
    loss, _ = case.loss.function(logits, problem.targets, problem.state, cfg, temperature=temperature)
    loss.backward()
    assert logits.grad is not None
    assert temperature.grad is None


@over["cases"]
def test_column_vectors_are_one_class(case: Case) -> None:
    """``[N]`` logits are ``[N, 1]``, ``[N, 1]`` targets are ``[N]``."""
    problem = example("binary")
    expected = case.run(problem)
    arguments = problem.state, case.config(problem)
    flat = problem.logits[:, 0].clone().requires_grad_()
    loss, _ = case.loss.function(flat, problem.targets[:, None], *arguments, **problem.extras)
    (gradient,) = torch.autograd.grad(loss, flat)
    assert torch.equal(loss.detach(), expected.loss)
    assert torch.equal(gradient, expected.gradient[:, 0])


@over["cases"]
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float32, torch.uint8])
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_label_dtypes(case: Case, kind: str, dtype: torch.dtype) -> None:
    problem = example(kind)
    rows = (problem.targets.reshape(len(problem.logits), -1) >= 0).all(1).nonzero()[:, 0]
    problem = problem.rows(rows)
    expected = case.run(problem)
    logits, targets = problem.logits.clone().requires_grad_(), problem.targets.to(dtype)
    loss, _ = case.loss.function(logits, targets, problem.state, case.config(problem), **problem.extras)
    assert torch.equal(loss.detach(), expected.loss)


# --- extreme values ---------------------------------------------------------------------------------------------------


@over["defaults"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"temperature": 1e-6}, {"temperature": 1e6}], ids=["default", "cold", "hot"])
@over["kinds"]
def test_extreme_logits_stay_finite(case: Case, kind: str, dtype: torch.dtype, options: dict[str, float]) -> None:
    problem = example(kind)
    for scale in (1e4, 1e-4, 1e3):
        logits = (problem.logits.sign() * scale).to(dtype)
        logits[::3] /= 7
        extreme = Problem(logits, problem.targets, problem.state, None, None)
        result = case.run(extreme, **options)
        assert result.loss.isfinite()
        assert 0 <= result.loss <= case.most
        if options.get("temperature", 1.0) > 1e-5 or dtype in (torch.float32, torch.float64):
            assert result.gradient.isfinite().all()


@over["cases"]
def test_extreme_logits_stay_finite_in_every_configuration(case: Case) -> None:
    problem = example("multiclass", dtype=torch.float32)
    problem.logits[0], problem.logits[1], problem.logits[2], problem.logits[3] = 1e4, -1e4, 1e4, -1e4
    for temperature in (0.01, 0.5):
        result = case.run(problem, temperature=temperature)
        assert 0 <= result.loss <= case.most
        assert result.gradient.isfinite().all()


# --- dtypes -----------------------------------------------------------------------------------------------------------


@over["cases"]
@over["kinds"]
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_float32_arithmetic(case: Case, kind: str, dtype: torch.dtype) -> None:
    """Half logits give the loss of the same numbers in float32, and a gradient rounded to the logits' dtype."""
    problem = example(kind, dtype=torch.float32)
    half = Problem(problem.logits.to(dtype), problem.targets, problem.state, problem.iid_mask, problem.sample_weight)
    same_numbers = Problem(half.logits.float(), half.targets, half.state, half.iid_mask, half.sample_weight)
    result, expected = case.run(half), case.run(same_numbers)
    assert result.loss.dtype == torch.float32
    assert result.gradient.dtype == dtype
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.gradient, expected.gradient.to(dtype))


@over["cases"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_logits_keep_their_dtype(case: Case, dtype: torch.dtype) -> None:
    result = case.run(example("multiclass", dtype=dtype))
    assert result.loss.dtype == result.gradient.dtype == dtype


@over["cases"]
def test_float32_agrees_with_float64(case: Case) -> None:
    wide, narrow = (case.run(example("multiclass", dtype=dtype)) for dtype in (torch.float64, torch.float32))
    torch.testing.assert_close(narrow.loss.double(), wide.loss, rtol=0, atol=2e-6)
    torch.testing.assert_close(narrow.gradient.double(), wide.gradient, rtol=0, atol=2e-6)


@over["cases"]
@over["kinds"]
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(case: Case, kind: str, dtype: torch.dtype) -> None:
    problem = example(kind, dtype=torch.float32)
    problem = Problem(problem.logits.to(dtype), problem.targets, problem.state, problem.iid_mask, problem.sample_weight)
    expected = case.run(problem)
    with torch.autocast("cpu", torch.bfloat16):
        result = case.run(problem)
    assert result.loss.dtype == torch.float32
    assert torch.equal(result.loss, expected.loss)
    assert torch.equal(result.gradient, expected.gradient)
    assert result.state.logits.dtype == torch.float32

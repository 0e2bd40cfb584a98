"""The gradient is the derivative of the value, and so is its own derivative."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.contracts.cases import CASES, Case, example, over
from tests.strategies import Problem

# with "implicit" the gradient is that of the soft quantile and not the value's: see test_threshold_gradient.py
DIFFERENTIABLE = [case for case in CASES if not case.implicit or case.options.get("surrogate") == "pairwise"]


def away_from_switches(kind: str) -> Problem:
    """Every order statistic that makes a threshold is a row of the queue, so thresholds stay when live rows move.

    For recall, live scores lie outside the queue's range on both sides; for pAUC, live rows are outside the iid sample.
    """
    problem = example(kind, capacity=32)
    logits = problem.logits.sign() * (1.5 + problem.logits.abs() / 4)
    logits[::3] /= 4  # some live rows inside the band of pAUC
    problem = replace(problem, logits=logits, iid_mask=torch.zeros(len(logits), dtype=torch.bool))
    return problem.with_queue(logits=problem.state.logits.tanh())


def function_of_logits(case: Case, problem: Problem) -> Callable[[Tensor], Tensor]:
    config = case.config(problem, reduction="sum", temperature=1.0)

    def loss(logits: Tensor) -> Tensor:
        return case.loss.function(logits, problem.targets, problem.state, config, **problem.extras)[0]

    return loss


def check_derivatives(case: Case, problem: Problem) -> None:
    loss = function_of_logits(case, problem)
    assert torch.autograd.gradcheck(loss, problem.logits.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(loss, problem.logits.clone().requires_grad_())


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=lambda case: case.name)
@over["kinds"]
def test_gradcheck(case: Case, kind: str) -> None:
    problem = away_from_switches(kind)
    logits, options = case.loss.away_from_switches(problem.logits)
    if not case.loss.uses_iid_mask:  # the rows that set the scale are live, and the scale is held
        options = {**options, "tau_scale": "none"}
    problem, case = replace(problem, logits=logits), case.with_options(**options)
    check_derivatives(case, problem)


@pytest.mark.parametrize("case", [case for case in DIFFERENTIABLE if case.is_smooth], ids=lambda case: case.name)
@over["kinds"]
@over["queue"]
def test_without_a_switch_also_at_ties(case: Case, kind: str, with_queue: bool) -> None:
    problem = example(kind, with_queue)
    problem = replace(problem, logits=(problem.logits * 2).round() / 2)
    check_derivatives(case, problem)


@over["cases"]
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_second_derivatives_are_finite(case: Case, scale: float) -> None:
    problem = example("multiclass")
    logits = (problem.logits * scale).requires_grad_()
    loss = function_of_logits(case, problem)(logits)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), logits)
    assert second.isfinite().all()
    assert (second != 0).any() or scale == 1e4

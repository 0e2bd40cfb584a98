"""Values, validity, diagnostics and gradients against the loops of ``reference.py``, in any configuration."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from imbalanced_losses import PerClass, init_queue
from tests.parity import reference
from tests.registry import RANKING
from tests.strategies import Problem, few_examples, many_examples, options, problems

losses = pytest.mark.parametrize("loss", RANKING)


def configuration(loss: str, problem: Problem, chosen: dict[str, Any]) -> Any:
    return RANKING[loss].config(num_classes=problem.num_classes, multilabel=problem.multilabel, **chosen)


def per_class(loss: str, problem: Problem, cfg: Any) -> PerClass:
    return RANKING[loss].per_class(problem.logits, problem.targets, problem.state, cfg, **problem.extras)[0]


def assert_matches(actual: PerClass, expected: PerClass, tolerance: float) -> None:
    assert actual.valid.tolist() == expected.valid.tolist()
    torch.testing.assert_close(actual.loss.double(), expected.loss, rtol=tolerance, atol=tolerance, equal_nan=True)
    assert actual.diagnostics.keys() == expected.diagnostics.keys()
    for name, value in expected.diagnostics.items():
        if name == "band_neg_count":  # an invalid class may have no band to count in
            assert actual.diagnostics[name][actual.valid].tolist() == value[actual.valid].tolist()
        else:
            torch.testing.assert_close(
                actual.diagnostics[name].double(), value, rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
            )


@losses
@many_examples
@given(data=st.data(), problem=problems())
def test_values(loss: str, data: st.DataObject, problem: Problem) -> None:
    cfg = configuration(loss, problem, data.draw(options(RANKING[loss].config)))
    assert_matches(per_class(loss, problem, cfg), reference.per_class(RANKING[loss].reference, problem, cfg), 1e-10)


@losses
@few_examples
@given(data=st.data(), problem=problems(extremes=False, dtype=torch.float32))
def test_values_in_float32(loss: str, data: st.DataObject, problem: Problem) -> None:
    """Scores on the grid are exact in float32, so what differs is the arithmetic."""
    cfg = configuration(loss, problem, {**data.draw(options(RANKING[loss].config)), "temperature": 0.5})
    assert_matches(per_class(loss, problem, cfg), reference.per_class(RANKING[loss].reference, problem, cfg), 2e-5)


@losses
@few_examples
@given(data=st.data(), problem=problems(min_rows=1, extremes=False))
def test_gradients(loss: str, data: st.DataObject, problem: Problem) -> None:
    """ "stop": of the loss under thresholds held where they are. "implicit": see the contract of threshold_gradient."""
    chosen = data.draw(options(RANKING[loss].config))
    chosen |= {"threshold_gradient": "stop"} if "threshold_gradient" in chosen else {}
    cfg = replace(configuration(loss, problem, chosen), reduction="sum")
    logits = problem.logits.clone().requires_grad_()
    value, _ = RANKING[loss].function(logits, problem.targets, problem.state, cfg, **problem.extras)
    (gradient,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(
        gradient, reference.gradient(RANKING[loss].reference, problem, cfg), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("interpolation", ["linear", "lower", "higher", "midpoint", "nearest"])
def test_threshold_follows_torch_quantile(interpolation: str) -> None:
    """At budgets whose position is an integer but for rounding: 0.005 of 201 negatives, 0.1 of 11, 0.3 of 31."""
    for n, budget in ((201, 0.005), (11, 0.1), (31, 0.3), (101, 0.07)):
        generator = torch.Generator().manual_seed(n)
        logits = torch.randn(n + 1, 1, generator=generator, dtype=torch.float64)
        targets = torch.zeros(n + 1, dtype=torch.int64)
        targets[-1] = 1
        chosen = {"beta": budget, "alpha": budget / 2, "quantile_interpolation": interpolation}
        diagnostics = (
            RANKING["pauc"]
            .per_class(logits, targets, init_queue(0, 1), RANKING["pauc"].config(num_classes=1, **chosen))[0]
            .diagnostics
        )
        negatives = logits[:-1, 0]
        for name, fpr in (("t_alpha", budget / 2), ("t_beta", budget)):
            expected = torch.quantile(negatives, 1 - fpr, interpolation=interpolation)
            assert diagnostics[name].item() == expected.item()

"""KL-DRO and two-way partial AUC: derivatives of both orders in every mode of ``torch.func``."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jvp, vmap

from tests.losses.dro_cases import make_problem

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own, of its forward mode

OPTIONS: dict[str, dict[str, Any]] = {
    "one-way": {"surrogate": "dro", "temperature": 0.4},
    "two-way": {"surrogate": "dro", "temperature": 0.4, "positive_temperature": 0.7},
    "floor": {"surrogate": "dro", "temperature": 0.4, "min_tpr": 0.45},
    "pairwise, floor": {"surrogate": "pairwise", "beta": 0.6, "temperature": 0.4, "min_tpr": 0.45},
    "trapezoid, floor": {"threshold_gradient": "implicit", "beta": 0.6, "temperature": 0.4, "min_tpr": 0.45},
}
over_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))


@over_options
def test_hessian_and_forward_mode(options: dict[str, Any]) -> None:
    problem = make_problem(n=12)
    cfg = problem.config(**options)
    logits, tangent = problem.logits, torch.randn(12, 1, dtype=torch.float64)

    def loss(logits: Tensor) -> Tensor:
        return problem.loss(logits, cfg)

    gradient = grad(loss)(logits)
    value, moved = jvp(loss, (logits,), (tangent,))
    torch.testing.assert_close(value, loss(logits))
    torch.testing.assert_close(moved, (gradient * tangent).sum())
    with forward_ad.dual_level():
        dual = loss(forward_ad.make_dual(logits, tangent))
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, moved)
    if "threshold_gradient" not in options:  # whose second derivatives are not those of the loss
        curvature = hessian(loss)(logits).reshape(12, 12)
        torch.testing.assert_close(curvature, curvature.mT)
        leaf = logits.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        (second,) = torch.autograd.grad((first * tangent).sum(), leaf)
        torch.testing.assert_close(second[:, 0], curvature @ tangent[:, 0])


@over_options
def test_second_order_under_vmap(options: dict[str, Any]) -> None:
    if "threshold_gradient" in options:
        options = {**options, "threshold_gradient": "stop"}
    problem = make_problem(n=10)
    cfg = problem.config(**options)
    logits = torch.stack([problem.logits, 2 * problem.logits])
    mapped = vmap(hessian(lambda one: problem.loss(one, cfg)))(logits)
    for own, one in zip(mapped, logits, strict=True):
        torch.testing.assert_close(own, hessian(lambda one: problem.loss(one, cfg))(one))

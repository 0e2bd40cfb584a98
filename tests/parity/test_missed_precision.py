"""``missed_precision`` by each evaluator, against every class's ``[positives, pool]`` matrix in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from imbalanced_losses.kernels import ranks

CHUNK = "imbalanced_losses.kernels.ranks.pair_blocks.CHUNK_PAIRS"
FEW = "imbalanced_losses.kernels.ranks.precision.FEW_POSITIVES"
SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda positive: torch.randn(positive.shape),
    "ties": lambda positive: torch.zeros(positive.shape),
    "clusters": lambda positive: torch.randn(positive.shape) * 1e-3 + 50.0 * (torch.rand(positive.shape) < 0.5),
    "outliers": lambda positive: torch.randn(positive.shape) * 10.0 ** torch.randint(-1, 5, positive.shape),
    "all missed": lambda positive: torch.rand(positive.shape) - 2.0 * positive,
    "all found": lambda positive: torch.rand(positive.shape) + 2.0 * positive,
}


BLOCKS = {"rows alone": 1, "several rows of several classes": 1000, "all in one": 1 << 19}  # pairs in a block


@pytest.fixture(params=[*BLOCKS, "ranks", "as on an accelerator"])
def evaluator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    name: str = request.param
    monkeypatch.setattr(FEW, math.inf if name in BLOCKS else -1)
    if name in BLOCKS:
        monkeypatch.setattr(CHUNK, BLOCKS[name])
    if name == "as on an accelerator":
        monkeypatch.setattr("imbalanced_losses.dispatch._is_host_tensor", lambda _: False)


def missed_precision(*arguments: Tensor) -> Tensor:
    """The weighted sum in place of the mean."""
    mean, mass = ranks.missed_precision(*arguments)
    return mean * mass


def masks(classes: int, m: int) -> tuple[Tensor, Tensor, Tensor]:
    """Positives, negatives and weights of classes of unequal size, the last one without positives, and ignored rows."""
    label = (torch.rand(m).square() * (classes - 1)).long()
    label[:2] = torch.tensor([0, 1])
    valid = torch.rand(m) < 0.9
    valid[:2] = True
    positive = (label == torch.arange(classes)[:, None]) & valid
    return positive, valid & ~positive, torch.rand(classes, m)


def reference(scores: Tensor, positive: Tensor, negative: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
    totals = []
    for own, is_positive, is_negative, w in zip(scores, positive, negative, weight, strict=True):
        pairs = torch.sigmoid((own[None] - own[is_positive, None]) / temperature)
        above = (pairs * is_negative).sum(1)
        totals.append((w[is_positive] * above / (above + (pairs * is_positive).sum(1) + 0.5)).sum())
    return torch.stack(totals)


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("temperature", [1e-3, 0.01, 0.3, 10.0])
@pytest.mark.parametrize(("classes", "m"), [(2, 3), (3, 60), (7, 300)])
@pytest.mark.parametrize("kind", SCORES)
def test_value_and_gradient(kind: str, classes: int, m: int, temperature: float) -> None:
    positive, negative, weight = masks(classes, m)
    scores, tau, pull = SCORES[kind](positive).requires_grad_(), torch.tensor(temperature), torch.rand(classes)
    missed = missed_precision(scores, positive, negative, weight, tau)
    (gradient,) = torch.autograd.grad((missed * pull).sum(), scores)
    wide = scores.detach().double().requires_grad_()
    expected = reference(wide, positive, negative, weight.double(), tau.double())
    (expected_gradient,) = torch.autograd.grad((expected * pull).sum(), wide)
    underflow = m * m * 2 * torch.finfo(torch.float32).tiny  # a sigmoid of float32 ends at its smallest normal number
    assert ((missed - expected).abs() <= 1e-5 * expected + underflow).all()
    floor = max(underflow, 1e-6 / math.sqrt(m)) / temperature if kind != "all found" else underflow / temperature
    error = (gradient - expected_gradient).norm()
    assert error <= 1e-4 * max(expected_gradient.norm().item(), floor) + underflow / temperature


@pytest.mark.usefixtures("evaluator")
def test_no_positives() -> None:
    scores = torch.randn(3, 5, requires_grad=True)
    none, temperature = torch.zeros(3, 5, dtype=torch.bool), torch.tensor(0.1)
    missed = missed_precision(scores, none, ~none, torch.ones(3, 5), temperature)
    missed.sum().backward()
    assert torch.equal(missed, torch.zeros(3).double())
    assert torch.equal(scores.grad, torch.zeros(3, 5))  # type: ignore[arg-type]


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_scores_that_are_not_finite_touch_no_other_class(bad: float) -> None:
    positive, negative, weight = masks(4, 50)
    scores, temperature = torch.randn(4, 50), torch.tensor(0.1)
    spoilt = scores.clone()
    spoilt[1, ::7] = bad
    results = []
    for x in (scores, spoilt):
        x.requires_grad_()
        missed = missed_precision(x, positive, negative, weight, temperature)
        results.append((missed[[0, 2, 3]], torch.autograd.grad(missed.sum(), x)[0][[0, 2, 3]]))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.usefixtures("evaluator")
def test_derivatives_of_the_gradient() -> None:
    """They come from the ranks, whichever evaluator was used."""
    positive, negative, weight = (x.double() if x.is_floating_point() else x for x in masks(3, 12))
    scores, temperature = torch.randn(3, 12, dtype=torch.float64, requires_grad=True), torch.tensor(0.3).double()

    def function(scores: Tensor) -> Tensor:
        return missed_precision(scores, positive, negative, weight, temperature)

    assert torch.autograd.gradcheck(function, scores)
    assert torch.autograd.gradgradcheck(function, scores)
    expected = torch.autograd.functional.hessian(
        lambda x: reference(x, positive, negative, weight, temperature).sum(), scores
    )
    torch.testing.assert_close(torch.autograd.functional.hessian(lambda x: function(x).sum(), scores), expected)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
def test_forward_mode_and_batches_of_gradients() -> None:
    positive, negative, weight = masks(3, 20)
    scores, tangent, temperature = torch.randn(3, 20), torch.randn(3, 20), torch.tensor(0.3)
    leaf = scores.clone().requires_grad_()
    missed = missed_precision(leaf, positive, negative, weight, temperature)
    (jacobian,) = torch.autograd.grad(missed, leaf, torch.eye(3).double(), is_grads_batched=True, retain_graph=True)
    with forward_ad.dual_level():  # type: ignore[no-untyped-call]
        dual = forward_ad.make_dual(scores, tangent)
        moved = missed_precision(dual, positive, negative, weight, temperature)
        slope = forward_ad.unpack_dual(moved).tangent  # type: ignore[no-untyped-call]
    torch.testing.assert_close((jacobian * tangent).sum((1, 2)).double(), slope, rtol=1e-4, atol=1e-5)
    (off_diagonal,) = torch.autograd.grad(missed[0], leaf)
    assert (off_diagonal[1:] == 0).all()


@pytest.mark.usefixtures("evaluator")
def test_the_weights_of_the_positives_are_summed() -> None:
    positive, negative, weight = masks(5, 40)
    _, mass = ranks.missed_precision(torch.randn(5, 40), positive, negative, weight, torch.tensor(0.1))
    torch.testing.assert_close(mass, (positive * weight).sum(1).double())

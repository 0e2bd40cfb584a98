"""``discordant_pairs`` against its definition, by each of its evaluators."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from imbalanced_losses.kernels import ranks

MODULE = "imbalanced_losses.kernels.ranks"
EVALUATORS = {  # few pairs, pairs a row, pairs a block
    "few pairs": (math.inf, math.inf, 1 << 19),
    "one block": (-1, math.inf, 1 << 19),
    "blocks of several rows": (-1, math.inf, 30),
    "blocks of one row": (-1, math.inf, 1),
    "soft ranks": (-1, -1, 1 << 19),
}


@pytest.fixture(params=EVALUATORS)
def evaluator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    few, a_row, a_block = EVALUATORS[request.param]
    monkeypatch.setattr(f"{MODULE}.discordance.FEW_PAIRS", few)
    monkeypatch.setattr(f"{MODULE}.discordance.PAIRS_PER_ROW", a_row)
    monkeypatch.setattr(f"{MODULE}.pair_blocks.CHUNK_PAIRS", a_block)
    return str(request.param)


def discordant_pairs(scores: Tensor, positive: Tensor, negative: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    """The weighted sum in place of the mean."""
    mean, _, mass = ranks.discordant_pairs(scores, positive, negative, weight, temperature)
    return mean * mass * negative.sum(-1)


def inputs(shape: tuple[int, int] = (3, 40)) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Scores, positives, negatives, temperatures, weights. Problem 1 has no positive, problem 2 no negative."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    positive = torch.rand(shape, generator=generator) < 0.3
    negative = ~positive & (torch.rand(shape, generator=generator) < 0.2)
    positive[1:2], negative[2:3] = False, False
    temperature = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)[: shape[0]]
    return scores, positive, negative, temperature, torch.rand(shape, generator=generator, dtype=torch.float64)


def definition(scores: Tensor, positive: Tensor, negative: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    pairs = torch.sigmoid((scores[:, None, :] - scores[:, :, None]) / temperature[:, None, None])
    return ((pairs * negative[:, None, :]).sum(-1) * positive * weight).sum(-1)


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("problems", [1, 3])
def test_values_and_derivatives(problems: int) -> None:
    scores, *rest = inputs((problems, 40))
    scores.requires_grad_()
    torch.testing.assert_close(discordant_pairs(scores, *rest), definition(scores, *rest))
    assert torch.autograd.gradcheck(lambda s: discordant_pairs(s, *rest), scores, check_batched_grad=True)


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("problems", [1, 3])
def test_second_derivatives(problems: int) -> None:
    """Those of one expression, whichever evaluator was used."""
    scores, *rest = inputs((problems, 40))
    assert torch.autograd.gradgradcheck(lambda s: discordant_pairs(s, *rest), scores.requires_grad_())


@pytest.mark.usefixtures("evaluator")
def test_statistics() -> None:
    """The mean of squares and the sum of weights; also of counts other than 1."""
    scores, positive, negative, temperature, weight = inputs()
    pairs = torch.sigmoid((scores[:, None, :] - scores[:, :, None]) / temperature[:, None, None])
    for factor in (None, 1 + weight.flip(1)):
        counts = None if factor is None else negative * factor
        above = (pairs * (negative if counts is None else counts)[:, None, :]).sum(-1)
        numerator = positive * weight
        size, mass = (negative if counts is None else counts).sum(-1).double(), numerator.sum(-1)
        share, numerator = above / size.clamp_min(1)[:, None], numerator / (mass + (mass == 0))[:, None]
        expected = (share * numerator).sum(-1), (share.square() * numerator).sum(-1), mass
        actual = ranks.discordant_pairs(scores, positive, negative, weight, temperature, counts)
        torch.testing.assert_close(actual, expected)
        assert [t.requires_grad for t in actual] == [False] * 3


@pytest.mark.parametrize("problems", [1, 3])
def test_few_pairs_make_no_rank(problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And many do: their time stays in proportion to the pool."""

    def refuse(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(f"{MODULE}.discordance.PairSums", refuse)
    monkeypatch.setattr(f"{MODULE}.discordance.PAIRS_PER_ROW", 8)
    scores, positive, negative, *rest = inputs((problems, 400))
    discordant_pairs(scores, positive, negative & (negative.cumsum(-1) < 20), *rest)
    with pytest.raises(AssertionError):
        discordant_pairs(scores, positive, ~positive, *rest)


@pytest.mark.usefixtures("evaluator")
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("missed", [-3.0, 0.0, 3.0])
def test_float32_in_both_tails(missed: float, temperature: float) -> None:
    """Of one narrow problem with many positives, and wider ones with few; some weights are 0."""
    generator = torch.Generator().manual_seed(1)
    scores, label = torch.randn(4, 300, generator=generator), torch.rand(300, generator=generator)
    positive = torch.stack([label < 0.9, label > 0.9, label > 0.95, label > 1])
    negative = ~positive & (torch.rand(4, 300, generator=generator) < torch.tensor([0.1, 0.1, 0.5, 0.1])[:, None])
    scores = (scores - missed * positive).requires_grad_()
    tau, weight = temperature * torch.tensor([0.5, 1, 2, 1]), torch.rand(4, 300, generator=generator).sub(0.3).relu()
    wide = scores.detach().double().requires_grad_()
    total = discordant_pairs(scores, positive, negative, tau, weight)
    expected = definition(wide, positive, negative, tau.double(), weight.double())
    underflow = 300 * 300 * torch.finfo(torch.float32).tiny
    assert ((total - expected).abs() <= 1e-5 * expected + underflow).all()
    (gradient,) = torch.autograd.grad(total.sum(), scores)
    (expected_gradient,) = torch.autograd.grad(expected.sum(), wide)
    bound = 1e-4 * expected_gradient.norm(dim=1) + underflow * math.sqrt(300) / tau
    assert ((gradient - expected_gradient).norm(dim=1) <= bound).all()


@pytest.mark.usefixtures("evaluator")
def test_no_positive_or_no_negative() -> None:
    scores, some, _, *rest = inputs()
    scores.requires_grad_()
    for positive, negative in ((some, some & False), (some & False, some), (some & False, some & False)):
        total = discordant_pairs(scores, positive, negative, *rest)
        assert torch.equal(total, torch.zeros_like(total))
        assert torch.equal(torch.autograd.grad(total.sum(), scores)[0], torch.zeros_like(scores))


@pytest.mark.usefixtures("evaluator")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
def test_forward_mode() -> None:
    scores, *rest = inputs()
    tangent = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with forward_ad.dual_level():  # type: ignore[no-untyped-call]
        moved = discordant_pairs(forward_ad.make_dual(scores, tangent), *rest)
        slope = forward_ad.unpack_dual(moved).tangent  # type: ignore[no-untyped-call]
    _, expected = torch.func.jvp(lambda s: definition(s, *rest), (scores,), (tangent,))
    torch.testing.assert_close(slope, expected)


def test_under_transforms() -> None:
    arguments = inputs()
    expected = definition(*arguments)

    def each(*one: Tensor) -> Tensor:
        return discordant_pairs(*(t[None] for t in one))[0]

    torch.testing.assert_close(torch.vmap(each)(*arguments), expected)
    for mapped in range(5):
        dims = tuple(0 if k == mapped else None for k in range(5))
        stacked = [t[None] if k == mapped else t for k, t in enumerate(arguments)]
        torch.testing.assert_close(torch.vmap(discordant_pairs, in_dims=dims)(*stacked)[0], expected)
    torch.testing.assert_close(torch.compile(discordant_pairs, fullgraph=True)(*arguments), expected)
    gradient = torch.func.grad(lambda *a: discordant_pairs(*a).sum())(*arguments)
    torch.testing.assert_close(gradient, torch.func.grad(lambda *a: definition(*a).sum())(*arguments))

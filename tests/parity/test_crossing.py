"""``crossing_sums`` against its definition, by each of its ways."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from imbalanced_losses.kernels import crossing, pair_blocks
from imbalanced_losses.kernels.crossing import crossing_sums

WAYS = {  # few pairs, pairs a row, pairs a block
    "kept by autograd": (1 << 30, 1 << 30, 1 << 19),
    "one block": (-1, 1 << 30, 1 << 19),
    "blocks of several rows": (-1, 1 << 30, 30),
    "blocks of one row": (-1, 1 << 30, 1),
    "soft ranks": (-1, -1, 1 << 19),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    few, a_row, a_block = WAYS[request.param]
    monkeypatch.setattr(crossing, "FEW_PAIRS", few)
    monkeypatch.setattr(crossing, "PAIRS_A_ROW", a_row)
    monkeypatch.setattr(crossing, "CHUNK_PAIRS", a_block)
    monkeypatch.setattr(pair_blocks, "CHUNK_PAIRS", a_block)
    return str(request.param)


def inputs(shape: tuple[int, int] = (3, 40)) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Problem 1 asks for nothing, problem 2 counts nothing."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator, dtype=torch.float64)
    asked = torch.rand(shape, generator=generator) < 0.3
    counted = ~asked & (torch.rand(shape, generator=generator) < 0.2)
    asked[1:2], counted[2:3] = False, False
    return scores, asked, counted, torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)[: shape[0]]


def definition(scores: Tensor, asked: Tensor, counted: Tensor, temperature: Tensor) -> Tensor:
    pairs = torch.sigmoid((scores[:, None, :] - scores[:, :, None]) / temperature[:, None, None])
    return (pairs * (asked[:, :, None] & counted[:, None, :])).sum(-1)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("problems", [1, 3])
def test_values_and_derivatives(problems: int) -> None:
    scores, *rest = inputs((problems, 40))
    scores.requires_grad_()
    torch.testing.assert_close(crossing_sums(scores, *rest), definition(scores, *rest))
    assert torch.autograd.gradcheck(lambda s: crossing_sums(s, *rest), scores)
    assert torch.autograd.gradgradcheck(lambda s: crossing_sums(s, *rest), scores)


@pytest.mark.parametrize("problems", [1, 3])
def test_few_pairs_make_no_rank(problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And many do: their time stays in proportion to the pool."""

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(crossing, "sigmoid_sums", refuse)
    monkeypatch.setattr(crossing, "PAIRS_A_ROW", 8)
    monkeypatch.setattr(crossing, "FEW_PAIRS", 8 * 400)
    scores, asked, counted, temperature = inputs((problems, 400))
    crossing_sums(scores, asked, counted & (counted.cumsum(-1) < 20), temperature)
    with pytest.raises(AssertionError):
        crossing_sums(scores, asked, ~asked, temperature)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("missed", [-3.0, 0.0, 3.0])
def test_float32_in_both_tails(missed: float, temperature: float) -> None:
    """Of one narrow problem with many rows asked for, and wider ones with few; some pulls are 0."""
    generator = torch.Generator().manual_seed(1)
    scores, label = torch.randn(4, 300, generator=generator), torch.rand(300, generator=generator)
    asked = torch.stack([label < 0.9, label > 0.9, label > 0.95, label > 1])
    counted = ~asked & (torch.rand(4, 300, generator=generator) < torch.tensor([0.1, 0.1, 0.5, 0.1])[:, None])
    scores = (scores - missed * asked).requires_grad_()
    tau, pull = temperature * torch.tensor([0.5, 1, 2, 1]), torch.rand(4, 300, generator=generator).sub(0.3).relu()
    wide = scores.detach().double().requires_grad_()
    sums, expected = crossing_sums(scores, asked, counted, tau), definition(wide, asked, counted, tau.double())
    underflow = 300 * torch.finfo(torch.float32).tiny
    assert ((sums - expected).abs() <= 1e-5 * expected + underflow).all()
    (gradient,) = torch.autograd.grad((sums * pull).sum(), scores)
    (expected_gradient,) = torch.autograd.grad((expected * pull).sum(), wide)
    bound = 1e-4 * expected_gradient.norm(dim=1) + underflow * math.sqrt(300) / tau
    assert ((gradient - expected_gradient).norm(dim=1) <= bound).all()


@pytest.mark.usefixtures("way")
def test_nothing_asked_or_counted() -> None:
    scores, asked, _, temperature = inputs()
    scores.requires_grad_()
    for rows, columns in ((asked, asked & False), (asked & False, asked), (asked & False, asked & False)):
        sums = crossing_sums(scores, rows, columns, temperature)
        assert torch.equal(sums, torch.zeros_like(sums))
        assert torch.equal(torch.autograd.grad(sums.sum(), scores)[0], torch.zeros_like(scores))


def test_pairs_of_one_block_take_batches_of_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "FEW_PAIRS", -1)
    scores, *rest = inputs()
    scores.requires_grad_()
    assert torch.autograd.gradcheck(lambda s: crossing_sums(s, *rest), scores, check_batched_grad=True)


@pytest.mark.usefixtures("way")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
def test_forward_mode() -> None:
    scores, *rest = inputs()
    tangent = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with forward_ad.dual_level():  # type: ignore[no-untyped-call]
        moved = crossing_sums(forward_ad.make_dual(scores, tangent), *rest)
        slope = forward_ad.unpack_dual(moved).tangent  # type: ignore[no-untyped-call]
    _, expected = torch.func.jvp(lambda s: definition(s, *rest), (scores,), (tangent,))
    torch.testing.assert_close(slope, expected)


def test_under_transforms() -> None:
    scores, asked, counted, temperature = inputs()
    expected = definition(scores, asked, counted, temperature)

    def each(s: Tensor, a: Tensor, c: Tensor, t: Tensor) -> Tensor:
        return crossing_sums(s[None], a[None], c[None], t[None])[0]

    torch.testing.assert_close(torch.vmap(each)(scores, asked, counted, temperature), expected)
    for mapped in range(4):
        dims = tuple(0 if k == mapped else None for k in range(4))
        stacked = [t[None] if k == mapped else t for k, t in enumerate((scores, asked, counted, temperature))]
        torch.testing.assert_close(torch.vmap(crossing_sums, in_dims=dims)(*stacked)[0], expected)
    compiled = torch.compile(crossing_sums, fullgraph=True)
    torch.testing.assert_close(compiled(scores, asked, counted, temperature), expected)
    (gradient,) = torch.func.grad(lambda s: crossing_sums(s, asked, counted, temperature).sum(), argnums=(0,))(scores)
    torch.testing.assert_close(
        gradient, torch.func.grad(lambda s: definition(s, asked, counted, temperature).sum())(scores)
    )

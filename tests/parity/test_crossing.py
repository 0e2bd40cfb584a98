"""``crossing_sums`` against its definition, by each of its ways."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imbalanced_losses.kernels import crossing
from imbalanced_losses.kernels.crossing import crossing_sums

ways = pytest.mark.parametrize("few_pairs", [1 << 30, -1], ids=["pair by pair", "soft ranks"])


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


@ways
@pytest.mark.parametrize("problems", [1, 3])
def test_values_and_derivatives(few_pairs: int, problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crossing, "FEW_PAIRS_A_ROW", few_pairs)
    scores, *rest = inputs((problems, 40))
    scores.requires_grad_()
    torch.testing.assert_close(crossing_sums(scores, *rest), definition(scores, *rest))
    assert torch.autograd.gradcheck(lambda s: crossing_sums(s, *rest), scores)
    assert torch.autograd.gradgradcheck(lambda s: crossing_sums(s, *rest), scores)


@pytest.mark.parametrize("problems", [1, 3])
def test_few_pairs_make_no_rank(problems: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And many do: the pairs held at a time stay in proportion to the pool."""

    def refuse(*_: object, **__: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(crossing, "sigmoid_sums", refuse)
    scores, asked, counted, temperature = inputs((problems, 400))
    crossing_sums(scores, asked, counted & (counted.cumsum(-1) < 20), temperature)
    with pytest.raises(AssertionError):
        crossing_sums(scores, asked, ~asked, temperature)


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

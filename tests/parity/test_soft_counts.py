"""``soft_counts`` against a double loop, and its derivatives against autograd through the plain formula."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses.kernels.ranks.pair_sums import Method, soft_counts
from imbalanced_losses.testing.strategies import scores
from tests.strategies import few_examples, matrices

CHUNKS = "imbalanced_losses.kernels.ranks.pair_sums.CHUNK_PAIRS"

Sums = Callable[[Tensor, Tensor, Tensor], Tensor]

methods = pytest.mark.parametrize("method", ["all_pairs", "near_linear"])
methods_and_chunks = pytest.mark.parametrize(
    ("method", "chunk_pairs"), [("all_pairs", 1), ("all_pairs", 7), ("all_pairs", 1 << 20), ("near_linear", 1)]
)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x)) if x > -700 else 0.0


def loop(points: Tensor, weights: Tensor, temperature: Tensor) -> Tensor:
    """The definition, one pair at a time."""
    sums = torch.zeros(weights.shape, dtype=torch.float64)
    for r, row in enumerate(points.tolist()):
        tau = temperature.expand(len(points))[r].item()
        for k in range(weights.shape[1]):
            for i in range(len(row)):
                for j in range(len(row)):
                    if j != i:
                        sums[r, k, i] += weights[r, k, j] * sigmoid((row[j] - row[i]) / tau)
    return sums


def plain(points: Tensor, weights: Tensor, temperature: Tensor) -> Tensor:
    """The same as one differentiable expression."""
    pairs = torch.sigmoid((points[:, None, :] - points[:, :, None]) / temperature.expand(len(points))[:, None, None])
    return torch.einsum("rkj,rij->rki", weights, pairs * (1 - torch.eye(points.shape[1], dtype=points.dtype)))


@st.composite
def inputs(draw: st.DrawFn, extremes: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Scores ``[R, M]`` with ties, weights ``[R, K, M]`` of any sign, a temperature for all rows or one for each."""
    r, k, m = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 7))
    points = draw(matrices(scores(extremes), r, m, torch.float64))
    weights = draw(matrices(st.sampled_from([-1.5, 0.0, 0.0, 1.0, 1.0, 2.0]), r * k, m, torch.float64))
    choices = [0.01, 0.5, 3.0] if extremes else [0.5, 3.0]
    temperature = draw(matrices(st.sampled_from(choices), r, 1, torch.float64))[:, 0]
    return points, weights.reshape(r, k, m), temperature if draw(st.booleans()) else temperature[0]


@methods_and_chunks
@few_examples
@given(drawn=inputs(), data=st.data())
def test_values(method: Method, chunk_pairs: int, drawn: tuple[Tensor, Tensor, Tensor], data: st.DataObject) -> None:
    queries = data.draw(matrices(st.booleans(), *drawn[0].shape, torch.bool))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CHUNKS, chunk_pairs)
        actual = soft_counts(*drawn, queries, method)
    torch.testing.assert_close(actual, loop(*drawn) * queries[:, None], rtol=0, atol=1e-12)


def derivatives(function: Sums, points: Tensor, weights: Tensor, temperature: Tensor) -> list[Tensor]:
    """First derivatives of a scalar that mixes all outputs, and second derivatives of a scalar of those."""
    points, weights = points.clone().requires_grad_(), weights.clone().requires_grad_()
    sums = function(points, weights, temperature)
    mix = torch.linspace(-1, 2, sums.numel(), dtype=sums.dtype).reshape(sums.shape)
    first = torch.autograd.grad((mix * sums + sums.square()).sum(), (points, weights), create_graph=True)
    second = torch.autograd.grad((first[0].square().sum() + first[1].square().sum()), (points, weights))
    return [*first, *second]


@methods_and_chunks
@few_examples
@given(drawn=inputs(extremes=False), data=st.data())
def test_derivatives(
    method: Method, chunk_pairs: int, drawn: tuple[Tensor, Tensor, Tensor], data: st.DataObject
) -> None:
    """The kernels of orders 1 and 2, with respect to scores and weights."""
    queries = data.draw(matrices(st.booleans(), *drawn[0].shape, torch.bool))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CHUNKS, chunk_pairs)
        actual = derivatives(lambda *inputs: soft_counts(*inputs, queries, method), *drawn)
    expectations = derivatives(lambda *inputs: plain(*inputs) * queries[:, None], *drawn)
    for result, expected in zip(actual, expectations, strict=True):
        size = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10 * size)


@methods
@few_examples
@given(drawn=inputs())
def test_derivatives_at_extremes_are_finite(method: Method, drawn: tuple[Tensor, Tensor, Tensor]) -> None:
    results = derivatives(lambda *inputs: soft_counts(*inputs, method=method), *drawn)
    assert all(result.isfinite().all() for result in results)


@pytest.mark.parametrize("m", [1, 2, 1500])
def test_large_rows_take_several_chunks(m: int) -> None:
    """1500^2 pairs are more than one chunk of the default size."""
    generator = torch.Generator().manual_seed(m)
    points = torch.randn(1, m, generator=generator, dtype=torch.float64)
    masks = (torch.rand(1, 2, m, generator=generator) < 0.5).double()
    temperature = torch.tensor(0.1, dtype=torch.float64)
    torch.testing.assert_close(
        soft_counts(points, masks, temperature), plain(points, masks, temperature), rtol=0, atol=1e-10
    )


def test_one_positive_among_ties() -> None:
    """Equal scores count one another by half, themselves not at all."""
    points, mask = torch.zeros(1, 5), torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]])
    sums = soft_counts(points, mask, torch.tensor(0.01))
    assert sums.tolist() == [[[0.5, 0.5, 0.0, 0.5, 0.5]]]
    assert soft_counts(points, torch.ones(1, 1, 5), torch.tensor(0.01)).tolist() == [[[2.0] * 5]]


@methods
def test_extreme_range_counts_exactly(method: Method) -> None:
    points = torch.tensor([[1e4, -1e4, 0.0, 3e38, -3e38]])
    sums = soft_counts(points, torch.ones(1, 1, 5), torch.tensor(0.01), method=method)
    # a sigmoid of float32 ends at its smallest normal number
    torch.testing.assert_close(sums, torch.tensor([[[1.0, 3.0, 2.0, 0.0, 4.0]]]), rtol=0, atol=1e-37)


def test_shift_does_not_cost_precision() -> None:
    """Differences are taken before the temperature divides: at 4096 + s the sums are those at s, bit for bit."""
    points = torch.tensor([[0.0, 0.25, 0.5, 2.0, -3.0]])
    ones, temperature = torch.ones(1, 1, 5), torch.tensor(0.01)
    assert torch.equal(soft_counts(points + 4096, ones, temperature), soft_counts(points, ones, temperature))

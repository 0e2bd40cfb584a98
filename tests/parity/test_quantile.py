"""``masked_quantile`` against ``torch.quantile`` on the kept elements."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses.kernels.quantile import masked_quantile
from tests.strategies import INTERPOLATIONS, many_examples, matrices

LEVELS = (0.0, 0.005, 0.1, 0.25, 1 / 3, 0.5, 0.7, 0.75, 1 - 0.1, 0.995, 1 - 0.3, 1.0)

modes = pytest.mark.parametrize("interpolation", INTERPOLATIONS)


def expected_quantile(values: Tensor, mask: Tensor, levels: tuple[float, ...], interpolation: str) -> Tensor:
    """Row by row, in float64; 0 for a row without elements."""
    rows = []
    for row, kept in zip(values.double(), mask, strict=True):
        points = row[kept]
        level = torch.tensor(levels, dtype=torch.float64)
        empty = torch.zeros(len(levels), dtype=torch.float64)
        rows.append(torch.quantile(points, level, interpolation=interpolation) if len(points) else empty)
    return torch.stack(rows)


@modes
@many_examples
@given(data=st.data(), r=st.integers(1, 4), m=st.integers(1, 12))
def test_float64_is_exact(interpolation: str, data: st.DataObject, r: int, m: int) -> None:
    values = data.draw(
        matrices(st.floats(-100, 100, width=32) | st.sampled_from([-1.0, 0.0, 1.0]), r, m, torch.float64)
    )
    mask = data.draw(matrices(st.booleans(), r, m, torch.bool))
    levels = tuple(data.draw(st.lists(st.sampled_from(LEVELS) | st.floats(0, 1), min_size=1, max_size=4)))
    actual = masked_quantile(values, mask, levels, interpolation)
    assert actual.shape == (r, len(levels))
    assert torch.equal(actual, expected_quantile(values, mask, levels, interpolation))


@modes
@pytest.mark.parametrize("m", [1, 2, 3, 11, 101, 201, 1000, 4097])
def test_many_levels_and_sizes(interpolation: str, m: int) -> None:
    generator = torch.Generator().manual_seed(m)
    values = torch.randn(3, m, generator=generator, dtype=torch.float64)
    mask = torch.rand(3, m, generator=generator) < 0.7
    mask[0] = True
    levels = (*LEVELS, *(k / 37 for k in range(38)))
    exact = expected_quantile(values, mask, levels, interpolation)
    assert torch.equal(masked_quantile(values, mask, levels, interpolation), exact)
    narrow = masked_quantile(values.float(), mask, levels, interpolation)
    assert narrow.dtype == torch.float32
    rounded = expected_quantile(values.float(), mask, levels, interpolation)
    if interpolation in ("lower", "higher", "nearest"):
        assert torch.equal(narrow.double(), rounded)
    else:
        torch.testing.assert_close(narrow.double(), rounded, rtol=1e-6, atol=1e-7)


@modes
def test_what_is_masked_does_not_matter(interpolation: str) -> None:
    values = torch.tensor([[3.0, 1.0, 2.0, 7.0]]).double()
    mask = torch.tensor([[True, True, True, False]])
    expected = masked_quantile(values, mask, LEVELS, interpolation)
    for garbage in (float("nan"), float("inf"), -float("inf"), 1e30):
        values[0, 3] = garbage
        assert torch.equal(masked_quantile(values, mask, LEVELS, interpolation), expected)


@modes
def test_small_rows(interpolation: str) -> None:
    values, levels = torch.tensor([[5.0, 7.0]]), (0.0, 0.3, 1.0)
    one, none = torch.tensor([[False, True]]), torch.tensor([[False, False]])
    assert masked_quantile(values, one, levels, interpolation).tolist() == [[7.0, 7.0, 7.0]]
    assert masked_quantile(values, none, levels, interpolation).tolist() == [[0.0, 0.0, 0.0]]


@modes
@many_examples
@given(value=st.floats(-1e6, 1e6), m=st.integers(1, 9), level=st.floats(0, 1))
def test_ties_are_exact(interpolation: str, value: float, m: int, level: float) -> None:
    """Between equal elements lies nothing: a threshold among ties is the tie, bit for bit."""
    for dtype in (torch.float32, torch.float64):
        values = torch.full((1, m), value, dtype=dtype)
        quantile = masked_quantile(values, torch.ones(1, m, dtype=torch.bool), (level,), interpolation)
        assert quantile.item() == values[0, 0].item()


def test_extremes_do_not_overflow() -> None:
    values = torch.tensor([[-3e38, 3e38, 0.0, 1.0]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert masked_quantile(values, mask, (0.0, 1.0, 0.5), "higher").tolist() == [[values[0, 0], values[0, 1], 1.0]]


def test_more_elements_than_torch_quantile_takes() -> None:
    """2^24 + 3 of them, at a position that float32 does not know."""
    m = 2**24 + 3
    values = torch.zeros(1, m)
    values[0, :2] = torch.tensor([2.0, 1.0])
    quantile = masked_quantile(values, torch.ones(1, m, dtype=torch.bool), (1 - 1 / (m - 1), 1.0), "nearest")
    assert quantile.tolist() == [[1.0, 2.0]]

"""``masked_quantile`` against ``torch.quantile`` on the kept elements, by each of its ways to order them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses.kernels import ordering, quantile
from imbalanced_losses.kernels.quantile import Interpolation, masked_quantile
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


@modes
@pytest.mark.parametrize("shape", [(3, 2000), (1, 33_000), (20, 1700)], ids=["topk", "row by row", "joined"])
@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**31), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_every_way_to_order(
    interpolation: Interpolation, shape: tuple[int, int], data: st.DataObject, seed: int, dtype: torch.dtype
) -> None:
    """Ties, signed zeros, extremes, any share kept, levels whose bound on the position is tight."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=dtype)
    values = (values * data.draw(st.sampled_from([1e-40, 1.0, 3.0, 1e30]))).to(dtype)
    values = values.round() if data.draw(st.booleans()) else values
    mask = torch.rand(shape, generator=generator) < data.draw(st.sampled_from([0.0, 1e-3, 0.5, 0.99, 1.0]))
    count = int(mask[0].sum())
    exact = [k / (count - 1) for k in (0, count // 4, count - 2, count - 1)] if count > 1 else [0.0]
    levels = tuple(data.draw(st.lists(st.sampled_from([*LEVELS, *exact]), min_size=1, max_size=4)))
    actual = masked_quantile(values, mask, levels, interpolation)
    expected = expected_quantile(values, mask, levels, interpolation)
    if interpolation in ("linear", "midpoint"):
        grid = torch.finfo(dtype)
        tolerance = 2 * grid.eps * max(float(values.abs().max()), grid.smallest_normal)
        torch.testing.assert_close(actual.double(), expected, rtol=0, atol=tolerance)
    else:
        assert torch.equal(actual.double(), expected)


@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 301), (1, 33_000)])
def test_half_types(interpolation: Interpolation, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator).to(dtype)
    mask = torch.rand(shape, generator=generator) < 0.6
    actual = masked_quantile(values, mask, LEVELS, interpolation)
    assert actual.dtype == dtype
    assert torch.equal(actual, expected_quantile(values, mask, LEVELS, interpolation).float().to(dtype))


@many_examples
@given(data=st.data(), r=st.integers(1, 4), m=st.integers(1, 40))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integers_sort_like_floats(dtype: torch.dtype, data: st.DataObject, r: int, m: int) -> None:
    """Every float of the type, infinities and denormal ones too, row by row and joined."""
    width = 32 if dtype == torch.float32 else 64
    values = data.draw(matrices(st.floats(allow_nan=False, width=width), r, m, dtype))
    for radix_from in (1, m + 1):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ordering, "RADIX_FROM", radix_from)
            assert ordering.sorts_by_integers(values) == (radix_from == 1 or (width == 32 and r * m > m))
            order = ordering.argsort_rows(values)
        assert torch.equal(values.gather(-1, order), values.sort(-1).values)
        assert torch.equal(order.sort(-1).values, torch.arange(m).expand(r, -1))


TRANSFORMS: dict[str, Callable[[Callable[[Tensor, Tensor], Tensor]], Callable[[Tensor, Tensor], Tensor]]] = {
    "vmap": torch.vmap,
    "vmap of vmap": lambda f: lambda v, m: torch.vmap(torch.vmap(f))(v[:, None], m[:, None])[:, 0],
    "compiled": lambda f: torch.compile(torch.vmap(f), fullgraph=True),
}


@pytest.mark.parametrize("transform", list(TRANSFORMS))
def test_transforms_give_the_same(transform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As eager mode, whether that sorts row by row, joined rows, or uses topk."""
    torch.compiler.reset()
    values = torch.randn(3, 2, 11, generator=torch.Generator().manual_seed(1))
    mask = values < 1

    def quantiles(values: Tensor, mask: Tensor) -> Tensor:
        return masked_quantile(values, mask, (0.9, 0.25), "linear")

    monkeypatch.setattr(ordering, "RADIX_FROM", 1)  # which traced code does not read
    actual = TRANSFORMS[transform](quantiles)(values, mask)
    for radix_from in (1, 12, 1 << 15):
        monkeypatch.setattr(ordering, "RADIX_FROM", radix_from)
        expected = torch.stack([quantiles(v, m) for v, m in zip(values, mask, strict=True)])
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_one_compilation_for_changing_sizes() -> None:
    """Once a size has changed it is symbolic, and with it the k of topk."""
    torch.compiler.reset()
    compiled = torch.compile(lambda v: masked_quantile(v, v < 1, (0.9,), "higher"), fullgraph=True, dynamic=True)
    for m in (50, 70, 90):
        values = torch.randn(2, m, generator=torch.Generator().manual_seed(m))
        with torch.compiler.set_stance("fail_on_recompile" if m > 50 else "default"):
            assert torch.equal(compiled(values), masked_quantile(values, values < 1, (0.9,), "higher"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_on_meta(dtype: torch.dtype) -> None:
    values = torch.empty(2, 40_000, device="meta", dtype=dtype)
    quantiles = masked_quantile(values, values > 0, (0.9, 0.2), "linear")
    assert (quantiles.shape, quantiles.dtype, quantiles.is_meta) == ((2, 2), dtype, True)


def test_tails_are_not_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Tensor) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(quantile, "argsort_rows", refuse)
    values = torch.randn(1, 40_000)
    masked_quantile(values, values < 1, (1.0, 0.995), "higher")
    with pytest.raises(AssertionError):
        masked_quantile(values, values < 1, (0.995, 0.25), "higher")


@given(data=st.data(), m=st.integers(1, 12), level=st.floats(0, 1))
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_an_element_that_stands_for_many(
    interpolation: Interpolation, data: st.DataObject, m: int, level: float
) -> None:
    """Is as many equal elements."""
    values = torch.tensor(data.draw(st.lists(st.floats(-9, 9), min_size=m, max_size=m)), dtype=torch.float64)
    counts = torch.tensor(data.draw(st.lists(st.integers(1, 4), min_size=m, max_size=m)))
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=m, max_size=m)))
    actual = masked_quantile(values[None], mask[None], (level, 0.5), interpolation, counts.double()[None])
    repeated, repeated_mask = values.repeat_interleave(counts)[None], mask.repeat_interleave(counts)[None]
    expected = masked_quantile(repeated, repeated_mask, (level, 0.5), interpolation)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)

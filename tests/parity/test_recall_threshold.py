"""The highest threshold of a recall against a search over all scores, in each way through the kernel."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from imbalanced_losses.kernels import recall_threshold as kernel
from imbalanced_losses.kernels.recall_threshold import recall_threshold
from tests.strategies import many_examples


def search(scores: Tensor, mask: Tensor, weight: Tensor, recall: float) -> tuple[Tensor, Tensor, Tensor]:
    """Row by row, score by score, in float64."""
    results = []
    for s, m, w in zip(scores.double().numpy(), mask.numpy(), weight.double().numpy(), strict=True):
        kept = m & (w > 0)
        total = float(w[kept].sum())
        enough = [
            (t, w[kept & (s >= t)].sum()) for t in s[kept] if w[kept & (s >= t)].sum() >= (recall - 1e-12) * total
        ]
        threshold, found = max(enough) if enough else (0.0, 0.0)
        results.append((threshold, found, total))
    threshold, found, total = torch.from_numpy(np.array(results, dtype=float).reshape(-1, 3)).unbind(1)
    return threshold[:, None].to(scores.dtype), found, total


def assert_equal(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(actual[0], expected[0], rtol=0, atol=0)
    for left, right in zip(actual[1:], expected[1:], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-12, atol=0)


@st.composite
def inputs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    size = shape[0] * shape[1]

    def matrix(elements: st.SearchStrategy, dtype: torch.dtype) -> Tensor:
        return torch.tensor(draw(st.lists(elements, min_size=size, max_size=size)), dtype=dtype).reshape(shape)

    scores = matrix(st.integers(-3, 3).map(float) | st.floats(-1e4, 1e4, width=32), torch.float32)
    return scores, matrix(st.booleans(), torch.bool), matrix(st.sampled_from([0.0, 0.5, 1.0, 3.0]), torch.float32)


LEVELS = st.integers(1, 100).map(lambda percent: percent / 100)


@many_examples
@given(inputs=inputs(), recall=LEVELS)
def test_packed(inputs: tuple[Tensor, ...], recall: float) -> None:
    assert_equal(recall_threshold(*inputs, recall), search(*inputs, recall))


@many_examples
@given(inputs=inputs(), recall=LEVELS)
def test_static(inputs: tuple[Tensor, ...], recall: float) -> None:
    """What accelerators run, on which nothing is read."""
    scores, mask, weight = inputs
    static = kernel._thresholds(torch.where(mask, scores, -torch.inf), torch.where(mask, weight, 0), recall)
    assert_equal(static, search(*inputs, recall))


@many_examples
@given(inputs=inputs(), recall=LEVELS)
def test_operator_and_vmap(inputs: tuple[Tensor, ...], recall: float) -> None:
    expected = search(*inputs, recall)
    assert_equal(kernel._opaque(*inputs, recall), expected)
    scores, mask, weight = inputs
    flipped = scores.flip(0), mask.flip(0), weight.flip(0)
    pairs = [torch.stack(pair, dim) for pair, dim in zip(zip(inputs, flipped, strict=True), (0, 1, 2), strict=True)]
    mapped = torch.vmap(lambda *rows: recall_threshold(*rows, recall), in_dims=(0, 1, 2))(*pairs)
    assert_equal(tuple(values[0] for values in mapped), expected)
    assert_equal(tuple(values[1] for values in mapped), tuple(values.flip(0) for values in expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 40_000), (20, 2_000), (3, 300_000)])
def test_large_rows(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Sorted as integers, and a few rows at a time. Recall 0.8 of n rows is the n-th largest but for a fifth."""
    scores, mask = torch.randn(shape).to(dtype), torch.rand(shape) < 0.3
    weight = torch.ones(1, dtype=dtype).expand(shape)
    threshold, found, total = recall_threshold(scores, mask, weight, 0.8)
    for row in range(shape[0]):
        descending = scores[row][mask[row]].sort(descending=True).values
        place = -(-len(descending) * 4 // 5)
        assert threshold[row, 0] == descending[place - 1]
        assert found[row] == (descending >= threshold[row]).sum()
        assert total[row] == len(descending)


def test_weights_that_binary_fractions_are_not() -> None:
    """Seven of ten weights of 0.1 are 0.7 of them, though the sums are rounded."""
    scores = torch.arange(10.0, dtype=torch.float64)[None]
    weight = torch.full((1, 10), 0.1, dtype=torch.float64)
    for tenths in range(1, 11):
        threshold, _, _ = recall_threshold(scores, scores >= 0, weight, tenths / 10)
        assert threshold.item() == 10 - tenths


def test_fakes_have_the_shapes_and_dtypes() -> None:
    for dtype in (torch.float32, torch.float64):
        arguments = torch.randn(3, 5, dtype=dtype), torch.ones(3, 5, dtype=torch.bool), torch.ones(3, 5, dtype=dtype)
        real = recall_threshold(*arguments, 0.5)
        with FakeTensorMode() as mode:
            faked = recall_threshold(*map(mode.from_tensor, arguments), 0.5)
        on_meta = recall_threshold(*(t.to("meta") for t in arguments), 0.5)
        for shown in (faked, on_meta):
            assert [(t.shape, t.dtype) for t in shown] == [(t.shape, t.dtype) for t in real]


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's forward mode
def test_no_gradient() -> None:
    scores = torch.randn(2, 6, requires_grad=True)
    assert not any(t.requires_grad for t in recall_threshold(scores, scores > 0, torch.ones(2, 6), 0.5))
    _, tangents = torch.func.jvp(
        lambda s: recall_threshold(s, s > 0, torch.ones(2, 6), 0.5)[0], (scores.detach(),), (torch.ones(2, 6),)
    )
    assert (tangents == 0).all()

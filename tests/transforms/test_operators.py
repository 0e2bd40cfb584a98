"""The opaque operators: what torch itself checks of an operator, fresh results, autocast, export, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalanced_losses import (
    PAUCAtBudgetConfig,
    RecallAtQuantileConfig,
    SmoothAPConfig,
    init_queue,
    pauc_at_budget,
    recall_at_quantile,
    smooth_ap,
)
from imbalanced_losses.kernels.ranks import soft_counts

NAMES = ("missed_precision", "discordant_pairs", "pair_sums", "masked_quantile")
SHAPES = [(1, 5), (1, 200), (3, 40), (2, 1500)]


def arguments(name: str, shape: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """Of an operator, with every third row a positive; the weights are one row for all problems, as from a pool."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(shape, generator=generator, dtype=dtype)
    positive = (torch.arange(shape[1]) % 3 == 0).expand(shape)
    weight = torch.rand(shape[1], generator=generator, dtype=dtype).expand(shape)
    temperature = torch.full(shape[:1], 0.3, dtype=dtype)
    if name == "masked_quantile":
        return scores, ~positive, [0.995, 0.75, 0.25], "linear", None
    if name == "pair_sums":
        counts = torch.stack([positive, ~positive], 1).to(dtype)
        return scores, counts, counts * 0.5, temperature, positive, 1, "auto"
    return scores, positive, ~positive, weight, temperature, None, True


def operator(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.imbalanced_losses, name).default  # type: ignore[no-any-return]


def results_of(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_schema_and_fake(name: str, shape: tuple[int, int]) -> None:
    """Nothing is changed or aliased; the fake tells shapes, dtypes and strides."""
    utilities = ("test_schema", "test_faketensor")
    torch.library.opcheck(operator(name), arguments(name, shape), test_utils=utilities)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_results_own_aligned_memory(name: str, shape: tuple[int, int]) -> None:
    """Generated code relies on it: no result begins within another's storage."""
    for result in results_of(operator(name)(*arguments(name, shape))):
        assert result.is_contiguous()
        assert result.storage_offset() == 0
        assert result.untyped_storage().nbytes() == result.nbytes


@pytest.mark.parametrize("name", NAMES)
def test_autocast_does_not_reach_a_kernel(name: str) -> None:
    inputs = arguments(name, (2, 300))
    expected = results_of(operator(name)(*inputs))
    with torch.autocast("cpu", torch.bfloat16):
        actual = results_of(operator(name)(*inputs))
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_on_meta(name: str) -> None:
    inputs = [value.to("meta") if isinstance(value, Tensor) else value for value in arguments(name, (2, 300))]
    expected = results_of(operator(name)(*arguments(name, (2, 300))))
    for result, real in zip(results_of(operator(name)(*inputs)), expected, strict=True):
        assert result.is_meta
        assert (result.shape, result.dtype, result.stride()) == (real.shape, real.dtype, real.stride())


LOSSES: dict[str, tuple[Any, Any]] = {
    "smooth_ap": (smooth_ap, SmoothAPConfig(num_classes=1, temperature=0.3)),
    "recall": (recall_at_quantile, RecallAtQuantileConfig(num_classes=1, quantile=0.2, temperature=0.3)),
    "trapezoid": (pauc_at_budget, PAUCAtBudgetConfig(num_classes=1, beta=0.5)),
    "pairwise": (pauc_at_budget, PAUCAtBudgetConfig(num_classes=1, beta=0.5, surrogate="pairwise")),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@pytest.mark.parametrize("strict", [False, True])
def test_export(name: str, strict: bool) -> None:
    """An exported loss gives the same number, also of other values than those it was exported with."""
    function, cfg = LOSSES[name]

    class Loss(torch.nn.Module):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            loss: Tensor = function(logits, targets, init_queue(0, 1), cfg)[0]
            return loss

    logits, targets = torch.randn(60), torch.arange(60) % 3 // 2
    exported = torch.export.export(Loss(), (logits, targets), strict=strict).module()
    for scores in (logits, logits.flip(0), logits * 3):
        torch.testing.assert_close(exported(scores, targets), Loss()(scores, targets), rtol=1e-6, atol=1e-7)


def test_the_fourth_derivative_of_soft_counts_is_refused() -> None:
    scores = torch.randn(1, 6, dtype=torch.float64, requires_grad=True)
    value = soft_counts(scores, torch.ones(1, 1, 6, dtype=torch.float64), torch.tensor(0.5)).square().sum()
    for _ in range(3):
        (first,) = torch.autograd.grad(value, scores, create_graph=True)
        value = first.square().sum()
    with pytest.raises(NotImplementedError, match="differentiated three times"):
        torch.autograd.grad(value, scores)


@every_loss
def test_a_captured_step_replays(name: str) -> None:
    """In a CUDA graph: a kernel waits for no value there."""
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    function, cfg = LOSSES[name]
    logits = torch.randn(600, device="cuda", requires_grad=True)
    targets, queue = (torch.rand(600, device="cuda") < 0.1).long(), init_queue(0, 1, device="cuda")

    def step() -> tuple[Tensor, Tensor]:
        loss, _ = function(logits, targets, queue, cfg)
        return loss, torch.autograd.grad(loss, logits)[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        logits.copy_(torch.randn(600))
    graph.replay()
    torch.testing.assert_close(captured, step())

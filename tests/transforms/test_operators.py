"""The opaque operators: what torch itself checks of an operator, fresh results, autocast, export, refusals."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from imbalanced_losses import (
    init_queue,
)
from imbalanced_losses.kernels.ranks import exponential_sums, soft_counts
from tests.registry import MAIN, RANKING

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
    """Nothing is changed or aliased; the fake gives shapes, dtypes and strides."""
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
    name: (loss.function, loss.config(num_classes=1, **{"temperature": 0.3, **variant.options}))
    for name, (loss, variant) in MAIN.items()
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


# --- what a review broke ----------------------------------------------------------------------------------------------


def value_of(name: str, n_rows: int, **settings: Any) -> tuple[Callable[[Tensor], Tensor], Tensor]:
    """A loss of logits alone, in float64 with 10 % positives, and logits."""
    function, cfg = LOSSES[name]
    generator = torch.Generator().manual_seed(0)
    targets = (torch.arange(n_rows) % 10 == 0).long()
    logits = torch.randn(n_rows, generator=generator, dtype=torch.float64)
    queue = init_queue(0, 1)
    return lambda z: function(z, targets, queue, dataclasses.replace(cfg, **settings))[0], logits


@every_loss
def test_generated_code_shows_a_logit_that_is_not_finite(name: str) -> None:
    loss, logits = value_of(name, 41)
    compiled = torch.compile(loss, fullgraph=True)
    for bad in (torch.inf, -torch.inf, torch.nan):
        spoilt = logits.float().clone()
        spoilt[3] = bad
        spoilt.requires_grad_()
        value = compiled(spoilt)
        assert not value.isfinite()
        assert not torch.autograd.grad(value, spoilt)[0].isfinite().all()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
@pytest.mark.parametrize("name", ["smooth_ap", "pairwise"])
def test_forward_mode_over_forward_mode_is_refused(name: str) -> None:
    """Torch would give 0."""
    loss, logits = value_of(name, 12)
    with pytest.raises(RuntimeError, match="forward mode once"):
        torch.func.jacfwd(torch.func.jacfwd(loss))(logits)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch's own forward mode
@every_loss
@pytest.mark.parametrize("n_rows", [1, 40, 3000])
def test_forward_mode_without_grad_mode(name: str, n_rows: int) -> None:
    loss, logits = value_of(name, n_rows)
    direction = torch.linspace(-1, 1, n_rows, dtype=torch.float64)
    expected = torch.func.jvp(loss, (logits,), (direction,))
    with torch.no_grad():
        torch.testing.assert_close(torch.func.jvp(loss, (logits,), (direction,)), expected)


@every_loss
def test_fake_tensors_leave_nothing_behind(name: str) -> None:
    """From 1,400 rows on, where soft ranks keep a table of coefficients."""
    loss, logits = value_of(name, 3000)

    def gradient(z: Tensor) -> Tensor:
        leaf = z.detach().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    exponential_sums._coefficients.cache_clear()
    for _ in range(2):
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            assert gradient(mode.from_tensor(logits)).shape == (3000,)
        assert gradient(logits).isfinite().all()


@pytest.mark.parametrize("make", [loss.shell for loss in RANKING.values()])
def test_the_loss_is_memory_of_its_own(make: Any) -> None:
    """Scaling it in place, as for gradient accumulation, changes neither the class losses nor the diagnostics."""
    loss_fn = make(num_classes=1)
    loss, per_class, _ = loss_fn(torch.randn(20), (torch.arange(20) % 4 == 0).long(), return_per_class=True)
    before = per_class.clone()
    loss *= 0.25
    assert torch.equal(per_class, before)
    assert torch.equal(loss_fn.diagnostics()["loss"], before)


@pytest.mark.parametrize("name", ["recall", "trapezoid"])
def test_large_pools_meet_no_hooks_on_saved_tensors(name: str) -> None:
    """From 131,072 scores on a graph within the forward gives the gradient: hooks are for the graph around it."""
    loss, logits = value_of(name, 140_000)
    calls = []

    def body(z: Tensor) -> Tensor:
        calls.append(1)
        return loss(z * 2)

    leaf = logits.clone().requires_grad_()
    (actual,) = torch.autograd.grad(checkpoint(body, leaf, use_reentrant=False), leaf)
    (expected,) = torch.autograd.grad(loss(leaf * 2), leaf)
    assert len(calls) == 2
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("make", [loss.shell for loss in RANKING.values()])
def test_a_copy_of_a_compiled_module_is_its_own(make: Any) -> None:
    logits, targets = torch.randn(7), torch.tensor([1, 0, 0, 1, 0, 0, 0])
    loss_fn = make(num_classes=1, queue_size=20)
    loss_fn.compile(backend="eager")
    loss_fn(logits, targets)
    for other in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        other(logits, targets)
        assert (int(loss_fn.queue_cursor), int(other.queue_cursor)) == (7, 14)

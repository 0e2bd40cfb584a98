"""The retrieval losses: values, gradients, memory, weights, edge cases, transforms. Those of AP alone come last."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import RetrievalAPConfig, init_queue, reset_queue, retrieval_ap, stack_states
from imbalanced_losses.kernels import tuning
from imbalanced_losses.kernels.ranks import upper_bound
from imbalanced_losses.retrieval_metrics import mean_average_precision
from tests.compiled.processes import run_python
from tests.losses.retrieval_cases import (
    AP_CASES,
    CASES,
    IGNORE,
    SIZE,
    Case,
    batch,
    memory,
    value_and_grad,
)

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def mean_of(losses: Tensor) -> Tensor:
    return losses[~losses.isnan()].mean()


# --- values -----------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_papers_formula(case: Case, seed: int) -> None:
    embeddings, labels = batch(seed=seed)
    state = memory(seed=seed + 10)
    expected = case.reference(embeddings, labels, state)
    assert expected[[1, 3]].isnan().all()
    assert (~expected.isnan()).any()
    assert_close(case.call(embeddings, labels, state, reduction="none"), expected, equal_nan=True, rtol=1e-9, atol=1e-9)
    assert_close(case.call(embeddings, labels, state), mean_of(expected))
    assert_close(case.call(embeddings, labels, state, reduction="sum"), expected.nansum())


@every_case
@pytest.mark.parametrize("n", [40, 90])
def test_larger_batches_without_memory(case: Case, n: int) -> None:
    """Many positives, where the kernels use other evaluators than for a few."""
    embeddings, labels = batch(n)
    expected = case.reference(embeddings, labels, memory(0, 0))
    assert_close(case.call(embeddings.float(), labels), mean_of(expected).float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@every_case
def test_lower_precision_computes_in_float32(case: Case, dtype: torch.dtype) -> None:
    embeddings, labels = batch(dtype=dtype)
    state = memory(dtype=torch.float32)
    loss, gradient = value_and_grad(case, embeddings, labels, state)
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert_close(loss.double(), mean_of(case.reference(embeddings, labels, state)), rtol=1e-5, atol=1e-5)


@every_case
def test_autocast_changes_nothing(case: Case) -> None:
    embeddings, labels = batch(dtype=torch.float32)
    expected = value_and_grad(case, embeddings, labels)
    leaf = embeddings.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = case.call(leaf, labels)
    loss.backward(retain_graph=True)
    assert_close((loss.detach(), leaf.grad), expected, rtol=0, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(loss, leaf)[0]
    assert_close(inside, expected[1], rtol=0, atol=0)


@every_case
def test_autocast_changes_no_derivative(case: Case) -> None:
    """Forward mode, ``vmap``, and second derivatives."""
    embeddings, labels = batch(dtype=torch.float32)
    tangent = torch.randn_like(embeddings)

    def loss(rows: Tensor) -> Tensor:
        return case.call(rows, labels, temperature=0.5)

    def directional(rows: Tensor) -> Tensor:
        return (grad(loss)(rows) * tangent).sum()

    def derivatives() -> Any:
        both = torch.stack([embeddings, embeddings + 1])
        return jvp(loss, (embeddings,), (tangent,)), vmap(grad(loss))(both), grad(directional)(embeddings)

    expected = derivatives()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(derivatives(), expected, rtol=1e-5, atol=1e-6)


@every_case
def test_large_half_precision_embeddings_stay_in_range(case: Case) -> None:
    embeddings, labels = batch(dtype=torch.float16)
    loss, gradient = value_and_grad(case, embeddings.sign() * 6e4, labels)
    assert loss.isfinite()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1e-15, 1e30])
@pytest.mark.parametrize("case", [case for case in CASES if "dot" not in case.name], ids=str)
def test_the_cosine_knows_no_scale(case: Case, scale: float) -> None:
    embeddings, labels = batch(dtype=torch.float32)
    loss, gradient = value_and_grad(case, embeddings, labels)
    scaled, scaled_gradient = value_and_grad(case, embeddings * scale, labels)
    assert_close(scaled, loss, rtol=1e-5, atol=1e-6)
    assert_close(scaled_gradient * scale, gradient, rtol=1e-3, atol=1e-5)


@every_case
def test_the_order_of_the_rows_does_not_count(case: Case) -> None:
    embeddings, labels = batch(30)
    state = memory(6, 6)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    fields = {name: getattr(state, name) for name in ("iid", "sample_weight", "cursor", "ignore_index")}
    other = type(state)(logits=state.logits[shuffled], targets=state.targets[shuffled], **fields)
    loss, gradient = value_and_grad(case, embeddings, labels, state)
    assert_close(value_and_grad(case, embeddings[order], labels[order], other), (loss, gradient[order]))


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(CASES), st.lists(st.integers(0, 3), min_size=1, max_size=9), st.data())
def test_any_number_of_rows_per_class(case: Case, labels: list[int], data: st.DataObject) -> None:
    """Ties included: embeddings have few values."""
    values = st.lists(st.integers(-1, 1), min_size=SIZE, max_size=SIZE)
    embeddings = torch.tensor(data.draw(st.lists(values, min_size=len(labels), max_size=len(labels))))
    options = {"similarity": "dot"}  # of cosines, rounding breaks ties
    expected = case.reference(embeddings, torch.tensor(labels), memory(0, 0), **options)
    loss = case.call(embeddings.double(), torch.tensor(labels), reduction="none", **options)
    assert_close(loss, expected, equal_nan=True, rtol=1e-9, atol=1e-9)


# --- memory -----------------------------------------------------------------------------------------------------------


@every_case
def test_a_memory_is_a_larger_batch_with_detached_keys(case: Case) -> None:
    embeddings, labels = batch(9)
    state = memory()
    joined = torch.cat([embeddings, state.logits])
    of_batch = case.call(joined, torch.cat([labels, state.targets]), reduction="none")[:9]
    assert_close(case.call(embeddings, labels, state, reduction="none"), of_batch, equal_nan=True)

    def as_one_batch(live: Tensor) -> Tensor:
        together = torch.cat([live, state.logits.detach()])
        return case.call(together, torch.cat([labels, state.targets]), reduction="none")[:9].nansum()

    _, gradient = value_and_grad(case, embeddings, labels, state, reduction="sum")
    assert_close(gradient, grad(as_one_batch)(embeddings))


@every_case
def test_the_memory_keeps_the_last_rows_and_no_gradient(case: Case) -> None:
    embeddings, labels = batch(9, dtype=torch.float32)
    leaf = embeddings.clone().requires_grad_()
    state = init_queue(4, SIZE)
    _, full = case.function(leaf, labels, state, case.cfg())
    assert torch.equal(full.logits[[1, 2, 3, 0]], embeddings[[6, 7, 8, 5]]) or full.logits.shape == (4, SIZE)
    assert sorted(full.targets.tolist()) == sorted(labels[-4:].tolist())
    assert not full.logits.requires_grad
    assert (state.targets == IGNORE).all()
    unchanged = case.function(leaf, labels, full, case.cfg(), update_queue=False)[1]
    assert unchanged is full
    assert (reset_queue(full).targets == IGNORE).all()


@every_case
def test_a_bad_batch_does_not_stay_in_the_memory(case: Case) -> None:
    embeddings, labels = batch(9, dtype=torch.float32)
    bad = embeddings.clone()
    bad[0] = torch.nan
    loss, state = case.function(bad, labels, init_queue(9, SIZE), case.cfg())
    assert loss.isnan()
    assert case.call(embeddings, labels, state).isfinite()


# --- what does not count ----------------------------------------------------------------------------------------------


@every_case
def test_ignored_rows(case: Case) -> None:
    """They are neither queries nor keys, have no gradient, and may be nan."""
    embeddings, labels = batch()
    kept = labels != IGNORE
    loss, gradient = value_and_grad(case, embeddings[kept], labels[kept], memory())
    for bad in (0.0, torch.nan, torch.inf):
        spoilt = torch.where(kept[:, None], embeddings, bad)
        value, full = value_and_grad(case, spoilt, labels, memory())
        assert_close(value, loss)
        assert_close(full[kept], gradient)
        assert (full[~kept] == 0).all()


@every_case
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_nothing_to_count(case: Case, reduction: str) -> None:
    embeddings, labels = batch()
    alone = torch.arange(9)
    for rows, ids, state in (
        (embeddings[:0], labels[:0], None),
        (embeddings[:0], labels[:0], memory()),
        (embeddings, torch.full_like(labels, IGNORE), memory()),
        (embeddings, alone + 200, memory()),
        (embeddings[:1], labels[:1], None),
    ):
        loss, gradient = value_and_grad(case, rows, ids, state, reduction=reduction)
        assert loss == 0
        assert gradient.shape == rows.shape
        assert (gradient == 0).all()


@every_case
def test_an_empty_batch_has_no_losses_and_leaves_the_memory(case: Case) -> None:
    embeddings, labels = batch(0)
    state = memory()
    losses, new_state = case.function(embeddings, labels, state, case.cfg(reduction="none"))
    assert losses.shape == (0,)
    assert new_state is state


@every_case
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("alone", [False, True])
def test_an_embedding_that_is_not_finite_shows(case: Case, bad: float, alone: bool) -> None:
    """In the loss and, for a GradScaler, in the gradient; even if no query is valid."""
    embeddings, labels = batch()
    embeddings[0, 2] = bad
    if alone:
        labels = torch.arange(9)
    loss, gradient = value_and_grad(case, embeddings, labels)
    assert not loss.isfinite()
    # nansum hides the gradient of a loss that is nan
    leaf = embeddings.clone().requires_grad_()
    case.call(leaf, labels).backward()
    assert leaf.grad is not None
    assert not leaf.grad.isfinite().all()
    assert gradient.shape == embeddings.shape


@every_case
def test_embeddings_of_zeros(case: Case) -> None:
    embeddings, labels = batch(dtype=torch.float32)
    for rows in (torch.zeros_like(embeddings), torch.where(torch.arange(9)[:, None] % 2 == 0, 0, embeddings)):
        loss, gradient = value_and_grad(case, rows, labels)
        assert loss.isfinite()
        assert gradient.isfinite().all()
    assert_close(
        case.call(rows, labels).double(), mean_of(case.reference(rows, labels, memory(0, 0))), rtol=1e-5, atol=1e-5
    )
    assert gradient[labels != IGNORE].abs().sum() > 0


# --- weights ----------------------------------------------------------------------------------------------------------


@every_case
def test_weights(case: Case) -> None:
    embeddings, labels = batch()
    weight = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weight[-1] = 0
    each = case.reference(embeddings, labels, memory())
    counts = ~each.isnan()
    expected = (weight * each)[counts].sum() / weight[counts].sum()
    assert_close(case.call(embeddings, labels, memory(), sample_weight=weight), expected)
    total = case.call(embeddings, labels, memory(), sample_weight=weight, reduction="sum")
    assert_close(total, (weight * each)[counts].sum())
    ones = case.call(embeddings, labels, memory(), sample_weight=torch.ones(9))
    assert_close(ones, case.call(embeddings, labels, memory()), rtol=0, atol=0)
    zeros = case.call(embeddings, labels, sample_weight=torch.zeros(9), reduction="none")
    assert zeros.isnan().all()
    assert case.call(embeddings, labels, sample_weight=torch.zeros(9)) == 0
    assert not case.call(embeddings, labels, sample_weight=weight / 0).isfinite()


# --- derivatives and transforms ---------------------------------------------------------------------------------------


@every_case
def test_derivatives(case: Case) -> None:
    embeddings, labels = batch(7, seed=4)
    state = memory()
    weight = torch.rand(7)
    if "sup" in case.name or case.name in ("roadmap", "ap-calibrated"):  # away from the kinks
        scores = torch.nn.functional.normalize(embeddings) if "dot" not in case.name else embeddings
        assert (torch.pdist(scores) > 1e-3).all()
    embeddings.requires_grad_()

    def loss(rows: Tensor) -> Tensor:
        return case.call(rows, labels, state, sample_weight=weight, temperature=torch.tensor(0.3))

    assert gradcheck(loss, embeddings, check_forward_ad=True)
    assert gradgradcheck(loss, embeddings)


@every_case
def test_both_roles_of_a_row_have_gradient(case: Case) -> None:
    """A row without positives moves only as a key."""
    embeddings, labels = batch()
    _, gradient = value_and_grad(case, embeddings, labels, temperature=0.5)
    assert labels[1] == 77
    assert gradient[1].abs().sum() > 0
    query = embeddings[:1]
    _, alone = value_and_grad(case, query, labels[:1], memory(), temperature=0.5)
    assert alone.abs().sum() > 0


@every_case
def test_jvp_is_the_gradient_along_the_tangent(case: Case) -> None:
    embeddings, labels = batch()
    tangent = torch.randn_like(embeddings)
    value, pushed = jvp(lambda rows: case.call(rows, labels, memory()), (embeddings,), (tangent,))
    expected, gradient = value_and_grad(case, embeddings, labels, memory())
    assert_close((value, pushed), (expected, (gradient * tangent).sum()))


@every_case
def test_vmap_is_a_loop(case: Case) -> None:
    members = [batch(seed=seed) for seed in range(3)]
    states = [memory(seed=seed + 5) for seed in range(3)]
    embeddings, labels = (torch.stack([member[i] for member in members]) for i in range(2))
    temperatures = torch.tensor([0.02, 0.1, 0.5], dtype=torch.float64)

    def loss(rows: Tensor, ids: Tensor, state: Any, temperature: Tensor) -> tuple[Tensor, Any]:
        result: tuple[Tensor, Any] = case.function(rows, ids, state, case.cfg(), temperature=temperature)
        return result

    gradients, new = vmap(grad(loss, has_aux=True))(embeddings, labels, stack_states(states), temperatures)
    for i, (member, state) in enumerate(zip(members, states, strict=True)):
        expected, next_state = grad(loss, has_aux=True)(*member, state, temperatures[i])
        assert_close(gradients[i], expected)
        assert torch.equal(new.targets[i], next_state.targets)
        assert torch.equal(new.logits[i], next_state.logits)
        assert_close(expected, value_and_grad(case, *member, state, temperature=temperatures[i])[1])


@every_case
def test_traced_is_eager(case: Case) -> None:
    embeddings, labels = batch(12)
    state = memory()
    compiled = torch.compile(lambda rows: case.call(rows, labels, state), fullgraph=True, backend="aot_eager")
    leaf = embeddings.clone().requires_grad_()
    loss = compiled(leaf)
    loss.backward()
    assert_close((loss.detach(), leaf.grad), value_and_grad(case, embeddings, labels, state))


@every_case
def test_on_meta_tensors(case: Case) -> None:
    embeddings, labels = (tensor.to("meta") for tensor in batch(dtype=torch.bfloat16))
    loss, gradient = value_and_grad(case, embeddings, labels, init_queue(4, SIZE, device="meta"))
    assert loss.is_meta
    assert (gradient.shape, gradient.dtype) == (embeddings.shape, embeddings.dtype)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_compiled_is_eager(tmp_path: Path, threads: int) -> None:
    """With the default backend, in a process of its own: wrong code may corrupt its memory."""
    output = tmp_path / "output"
    end = run_python([str(Path(__file__).with_name("retrieval_compiled.py")), str(threads)], output, timeout=600)
    assert not end, output.read_text()[-3000:]
    assert "right" in output.read_text()


# --- errors -----------------------------------------------------------------------------------------------------------

Change = Callable[[Tensor, Tensor], dict[str, Any]]
MISTAKES: dict[str, tuple[Change, type[Exception], str]] = {
    "columns": (
        lambda x, y: {"embeddings": x[:, :3]},
        ValueError,
        r"shape \[N, 5\], got \[9, 3\]: use embedding_size=3",
    ),
    "dimensions": (lambda x, y: {"embeddings": x[..., None]}, ValueError, r"embeddings.flatten\(1\)"),
    "integers": (lambda x, y: {"embeddings": x.long()}, TypeError, "embeddings.float()"),
    "labels": (lambda x, y: {"labels": y[:4]}, ValueError, r"labels of shape \[9\], got \[4\]"),
    "float labels": (lambda x, y: {"labels": y.float()}, TypeError, r"labels.long\(\)"),
    "no tensor": (lambda x, y: {"labels": y.tolist()}, TypeError, "expected labels to be a Tensor, got list"),
    "device": (lambda x, y: {"labels": y.to("meta")}, ValueError, "expected labels on cpu"),
    "queue": (lambda x, y: {"queue_state": init_queue(4, 3)}, ValueError, r"init_queue\(queue_size, 5\)"),
    "no queue": (lambda x, y: {"queue_state": None}, TypeError, "QueueState, got NoneType"),
    "queue elsewhere": (
        lambda x, y: {"queue_state": init_queue(4, SIZE, device="meta")},
        ValueError,
        "expected a queue on cpu",
    ),
    "weights": (lambda x, y: {"sample_weight": x[:, 0] > 0}, TypeError, "sample_weight"),
    "config": (lambda x, y: {"cfg": None}, TypeError, "expected cfg to be a"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
@pytest.mark.parametrize("case", [CASES[0], CASES[6]], ids=str)
def test_bad_arguments(case: Case, mistake: str) -> None:
    change, error, message = MISTAKES[mistake]
    embeddings, labels = batch()
    arguments = {"embeddings": embeddings, "labels": labels, "queue_state": memory(), "cfg": case.cfg()}
    with pytest.raises(error, match=message):
        case.function(**{**arguments, **change(embeddings, labels)})


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"embedding_size": 0}, ValueError, "expected embedding_size to be at least 1"),
        ({"similarity": "euclidean"}, ValueError, "expected similarity to be one of 'cosine', 'dot'"),
        ({"surrogate": "hinge"}, ValueError, "expected surrogate"),
        ({"temperature": 0.0}, ValueError, "expected temperature"),
        ({"rho": -1.0}, ValueError, "expected rho"),
        ({"delta": math.nan}, ValueError, "expected delta"),
        ({"calibration_weight": 1.5}, ValueError, "expected calibration_weight in"),
        ({"reduction": "max"}, ValueError, "expected reduction"),
        ({"positive_target": math.nan}, ValueError, "expected positive_target to be a finite number, got nan"),
        ({"negative_target": -math.inf}, ValueError, "expected negative_target to be a finite number, got -inf"),
        ({"positive_target": "high"}, TypeError, "expected positive_target to be a number"),
    ],
)
def test_bad_configurations(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        RetrievalAPConfig(**{"embedding_size": 3, **settings})


# --- AP alone ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", AP_CASES[:4], ids=str)
def test_its_limit_is_mean_average_precision(case: Case) -> None:
    embeddings, labels = batch(60)
    exact = mean_average_precision(embeddings, labels, similarity=case.cfg().similarity)
    tiny = {"temperature": 1e-7, "rho": 0.0, "delta": 1e-9}
    loss = case.call(embeddings, labels, **tiny)
    if case.cfg().surrogate == "sigmoid":
        assert_close(loss, 1 - exact, rtol=1e-5, atol=1e-5)
    else:  # a negative above a positive counts 3/2 instead of 1, so only the order of magnitude
        assert 1 - exact < loss < 1.5 * (1 - exact)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.005, 2.0), st.floats(0.0, 100.0), st.floats(0.0, 0.5))
def test_sup_is_an_upper_bound(seed: int, temperature: float, rho: float, delta: float) -> None:
    embeddings, labels = batch(12, seed=seed)
    embeddings = embeddings.round()  # with ties
    exact = mean_average_precision(embeddings, labels, similarity="dot")
    changes = {"temperature": temperature, "rho": rho, "delta": delta}
    loss = AP_CASES[3].call(embeddings, labels, **changes)
    assert loss >= 1 - exact.nan_to_num(1) - 1e-9


def test_sup_has_a_gradient_where_the_sigmoid_has_none() -> None:
    """Negatives that are far above the positives."""
    embeddings = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, -0.6], [-0.6, 0.8]])
    labels = torch.tensor([0, 0, 1, 2])
    gradients = {}
    for surrogate in ("sigmoid", "sup"):
        leaf = embeddings.clone().requires_grad_()
        cfg = RetrievalAPConfig(embedding_size=2, surrogate=surrogate)
        retrieval_ap(leaf, labels, init_queue(0, 2), cfg)[0].backward()
        gradients[surrogate] = leaf.grad.norm()  # type: ignore[union-attr]
    assert gradients["sigmoid"] < 1e-6
    assert gradients["sup"] > 1e-2


def test_numbers_by_hand() -> None:
    embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 2])
    cfg = RetrievalAPConfig(embedding_size=2, surrogate="sup", rho=10.0, delta=0.0, reduction="none")
    # the first query: s = 0.6, and a negative at 0.8, so 10 * 0.2 + 1/2 + 1/2, and one far below; 3 / 4
    # the second: s = 0.6, and negatives at 0.96 and 0.8: 10 * 0.36 + 10 * 0.2 + 2 = 7.6
    loss, _ = retrieval_ap(embeddings, labels, init_queue(0, 2), cfg)
    assert_close(loss[:2], torch.tensor([3 / 4, 7.6 / 8.6], dtype=torch.float64), rtol=1e-7, atol=1e-7)
    assert loss[2:].isnan().all()
    calibrated = RetrievalAPConfig(embedding_size=2, calibration_weight=1.0, reduction="none")
    loss, _ = retrieval_ap(embeddings, labels, init_queue(0, 2), calibrated)
    expected = [0.9 - 0.6 + (0.8 - 0.6) / 2, 0.9 - 0.6 + (0.96 - 0.6 + 0.8 - 0.6) / 2]
    assert_close(loss[:2], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("surrogate", ["sup"])
def test_both_evaluators_of_the_upper_bound_agree(surrogate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed positives in small blocks, and the static one in one block and in several."""
    case = AP_CASES[2]
    embeddings, labels = batch(40)
    expected = value_and_grad(case, embeddings, labels)
    monkeypatch.setattr(upper_bound, "CHUNK_PAIRS", 90)
    assert_close(value_and_grad(case, embeddings, labels), expected)
    monkeypatch.setattr(upper_bound, "holds_values", lambda *tensors: False)
    for size in (tuning.CHUNK_PAIRS_ELSEWHERE, 40 * 40 * 7):
        monkeypatch.setattr(upper_bound, "CHUNK_PAIRS_ELSEWHERE", size)
        assert_close(value_and_grad(case, embeddings, labels), expected)

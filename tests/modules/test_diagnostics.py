"""What a loss reports of its last pass, against a pool put together by hand and the exact metrics."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections import deque
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from imbalanced_losses import LossWarmupWrapper, PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss
from tests.registry import MAIN, make_main

QUEUE_SIZE = 24
COMMON = {"loss", "valid", "gap", "live_positives", "queue_fill", "queue_age"}
LOSSES = {name: partial(make_main, name) for name in MAIN}
KINDS = {"binary": (1, False), "classes": (3, False), "labels": (3, True)}
EVERY_LOSS = pytest.mark.parametrize("name", LOSSES)


def batch(seed: int, n: int = 10, kind: str = "binary") -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets with ignored rows, and weights."""
    generator = torch.Generator().manual_seed(seed)
    n_classes, multilabel = KINDS[kind]
    targets = torch.randint(0, max(2, n_classes), (n,), generator=generator)
    if multilabel:
        targets = torch.randint(0, 2, (n, n_classes), generator=generator)
    targets[torch.rand(targets.shape, generator=generator) < 0.2] = -100
    logits = torch.randn(n, n_classes, generator=generator)
    return logits, targets, torch.rand(n, generator=generator)


@EVERY_LOSS
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_pool_put_together_by_hand(name: str, kind: str) -> None:
    n_classes, multilabel = KINDS[kind]
    loss_fn = LOSSES[name](num_classes=n_classes, multilabel=multilabel, queue_size=QUEUE_SIZE)
    queue: deque[tuple[Tensor, ...]] = deque(maxlen=QUEUE_SIZE)
    for seed in range(5):
        logits, targets, weight = batch(seed, kind=kind)
        _, per_class, valid, *_ = loss_fn(logits, targets, None, True, sample_weight=weight)
        rows = [torch.stack(column) for column in zip(*zip(logits, targets, weight, strict=True), *queue, strict=True)]
        queue.extend(zip(logits, targets, weight, strict=True))
        entry = MAIN[name][0]
        exact = entry.metric(loss_fn.config, *rows[:2], multilabel=multilabel, sample_weight=rows[2]).reshape(n_classes)
        reported = loss_fn.diagnostics()
        assert set(reported) == COMMON | entry.reported | MAIN[name][1].diagnostics
        torch.testing.assert_close(reported["loss"], per_class, rtol=0, atol=0, equal_nan=True)
        assert reported["valid"].equal(valid)
        torch.testing.assert_close(reported["gap"], per_class - (1 - exact), equal_nan=True)
        assert reported["gap"].isnan().equal(~valid)
        assert reported["live_positives"].tolist() == count_positives(targets, n_classes, multilabel)
        assert not any(value.requires_grad for value in reported.values())
        assert all(value.shape == (() if key.startswith("queue") else (n_classes,)) for key, value in reported.items())


KNOWS_A_BAND = [name for name, (loss, _) in MAIN.items() if loss.returns_diagnostics]


def count_positives(targets: Tensor, n_classes: int, multilabel: bool) -> list[int]:
    if multilabel:
        return [int((column == 1).sum()) for column in targets.mT]
    return [int((targets == label).sum()) for label in ([1] if n_classes == 1 else range(n_classes))]


def test_threshold_is_the_quantile_of_the_pool() -> None:
    loss_fn = RecallAtQuantileLoss(num_classes=1, quantile=0.3, queue_size=QUEUE_SIZE)
    first, second = batch(0), batch(1)
    loss_fn(*first[:2])
    loss_fn(*second[:2])
    kept = torch.cat([logits[targets != -100, 0] for logits, targets, _ in (first, second)])
    assert loss_fn.diagnostics()["threshold"] == torch.quantile(kept, 0.7, interpolation="higher")


@pytest.mark.parametrize("options", [{}, {"pos_numerator": "live"}, {"budget_basis": "population"}])
@pytest.mark.parametrize("name", KNOWS_A_BAND)
def test_the_band_is_that_of_the_pass(name: str, options: dict[str, Any]) -> None:
    loss_fn = LOSSES[name](num_classes=3, queue_size=QUEUE_SIZE, **options)
    for seed in range(3):
        logits, targets, weight = batch(seed, kind="classes")
        iid = torch.rand(len(targets), generator=torch.Generator().manual_seed(seed)) < 0.8
        _, stats = loss_fn(logits, targets, iid, return_diagnostics=True, sample_weight=weight)
        reported = loss_fn.diagnostics()
        for key in MAIN[name][0].diagnostics:
            torch.testing.assert_close(reported[key], stats[key], rtol=0, atol=0, equal_nan=True)
        assert (reported["gap"].abs() < MAIN[name][1].most).all()


@pytest.mark.parametrize("options", [{"pos_numerator": "live"}, {"budget_basis": "population"}])
def test_the_gap_closes_as_the_temperature_falls(options: dict[str, Any]) -> None:
    loss_fn = PAUCAtBudgetLoss(1, beta=0.5, n_knots=400, temperature=1e-4, queue_size=200, **options)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        logits, iid = torch.randn(150, generator=generator), torch.rand(150, generator=generator) < 0.8
        loss_fn(logits, (torch.rand(150, generator=generator) < 0.3).long(), iid)
    assert loss_fn.diagnostics()["gap"].abs() < 0.01


def test_queue_fill_and_age() -> None:
    loss_fn = SmoothAPLoss(num_classes=1, queue_size=8)
    logits, targets = torch.randn(3), torch.tensor([1, 0, 0])
    seen = []
    for step in range(5):
        loss_fn(logits, torch.full((3,), -100) if step == 2 else targets)
        reported = loss_fn.diagnostics()
        seen.append((float(reported["queue_fill"]), int(reported["queue_age"])))
    assert seen == [(3 / 8, 1), (6 / 8, 2), (5 / 8, 3), (5 / 8, 3), (6 / 8, 2)]  # slots: aabbb... to ddeee..d
    loss_fn.reset_queue()
    reported = loss_fn.diagnostics()
    assert (reported["queue_fill"], reported["queue_age"]) == (0, 0)


@EVERY_LOSS
@pytest.mark.parametrize("n", [0, 4])
def test_without_a_queue_or_rows(name: str, n: int) -> None:
    loss_fn = LOSSES[name](num_classes=1, queue_size=0)
    loss_fn(torch.randn(n), torch.ones(n).long())
    reported = loss_fn.diagnostics()
    assert (reported["queue_fill"], reported["queue_age"], reported["live_positives"]) == (0, 0, n)


@EVERY_LOSS
def test_what_comes_after_a_pass_does_not_change_it(name: str) -> None:
    loss_fn = LOSSES[name](num_classes=1, queue_size=QUEUE_SIZE)
    loss_fn(*batch(0)[:2])
    logits, targets, weight = batch(1)
    loss_fn(logits, targets, torch.arange(10) > 3, sample_weight=weight)
    before = {key: value.clone() for key, value in loss_fn.diagnostics().items() if "queue" not in key}
    for tensor in (logits, targets, weight):
        tensor.zero_()
    loss_fn.temperature = 123.0
    loss_fn.reset_queue()
    after = loss_fn.diagnostics()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True)


def test_a_call_that_raises_leaves_the_last_pass() -> None:
    loss_fn = SmoothAPLoss(num_classes=1)
    loss_fn(*batch(0)[:2])
    before = loss_fn.diagnostics()["loss"]
    with pytest.raises(ValueError, match="expected"):
        loss_fn(torch.randn(3), torch.tensor([0, 1, 7]))
    assert loss_fn.diagnostics()["loss"] == before


class Mark:
    """Something to watch."""


# Dynamo looks at the gradient of its inputs, of which one is no leaf here
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@EVERY_LOSS
@pytest.mark.parametrize("how", ["plain", "overflow", "meta", "compiled"])
def test_nothing_of_the_graph_is_kept(name: str, how: str) -> None:
    loss_fn = LOSSES[name](num_classes=1, queue_size=4).to("meta" if how == "meta" else "cpu")
    if how == "compiled":
        loss_fn.compile(backend="aot_eager")
    logits, targets, _ = (rows.to(loss_fn.temperature.device) for rows in batch(0))
    factor = torch.inf if how == "overflow" else 2
    hidden, mark = logits.requires_grad_() * factor, Mark()
    hidden.register_hook(lambda _, mark=mark: None)  # the graph holds the hook, and the hook the mark
    graph = weakref.ref(mark)
    loss = loss_fn(hidden, targets)
    del hidden, mark
    assert graph() is not None
    del loss
    assert graph() is None


@EVERY_LOSS
def test_nothing_is_read(name: str) -> None:
    """On ``meta`` there is nothing to read: whatever synchronised with a device would raise."""
    loss_fn = LOSSES[name](num_classes=3, queue_size=4).to("meta")
    loss_fn(torch.zeros(6, 3, device="meta"), torch.zeros(6, dtype=torch.long, device="meta"))
    assert all(value.is_meta for value in loss_fn.diagnostics().values())


@EVERY_LOSS
def test_a_compiled_pass_can_be_looked_at(name: str) -> None:
    eager, inner = (LOSSES[name](num_classes=3, queue_size=QUEUE_SIZE) for _ in range(2))
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(inner, backend=counter, fullgraph=True)
    for seed in range(4):
        logits, targets, _ = batch(seed, kind="classes")
        eager(logits, targets)
        compiled(logits, targets)
        reported, expected = inner.diagnostics(), eager.diagnostics()
        assert set(reported) == set(expected)
        for key, value in expected.items():
            torch.testing.assert_close(reported[key], value, equal_nan=True)
    assert counter.frame_count == 1


def test_there_is_nothing_before_a_pass_nor_after_a_transform_nor_in_a_copy() -> None:
    loss_fn = SmoothAPLoss(num_classes=1, queue_size=4)
    nothing = pytest.raises(RuntimeError, match="expected a call of the loss before its diagnostics, got none")
    with nothing:
        loss_fn.diagnostics()
    logits, targets, _ = batch(0)
    loss_fn(logits, targets)
    assert loss_fn.diagnostics()["valid"]
    for twin in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn))):
        with nothing:
            twin.diagnostics()
        twin(logits, targets)
        assert twin.diagnostics()["valid"]
    buffers = {name: torch.stack([buffer] * 2) for name, buffer in loss_fn.named_buffers()}
    torch.vmap(lambda own, rows: torch.func.functional_call(loss_fn, own, (rows, targets)))(
        buffers, torch.stack([logits, logits])
    )
    with nothing:
        loss_fn.diagnostics()


def test_a_sampled_pool_has_no_gap() -> None:
    loss_fn = SmoothAPLoss(num_classes=1, max_pool_size=8, queue_size=0)
    with pytest.warns(UserWarning, match="max_pool_size"):
        loss_fn(*batch(0, n=20)[:2])
    reported = loss_fn.diagnostics()
    assert reported["gap"].isnan()
    assert reported["loss"].isfinite()


def test_an_overflow_shows_in_the_loss_and_not_in_the_queue() -> None:
    loss_fn = SmoothAPLoss(num_classes=1, queue_size=8)
    logits, targets, _ = batch(0, n=4)
    loss_fn(torch.full_like(logits, torch.inf), targets.clamp_min(0))
    reported = loss_fn.diagnostics()
    assert reported["loss"].isnan()
    assert reported["gap"].isnan()
    assert reported["queue_fill"] == 0


def test_the_wrapper_tells_its_schedule_and_then_its_main_loss() -> None:
    wrapper = LossWarmupWrapper(
        nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1), warmup_steps=1, blend_steps=1, temp_start=1, temp_end=0.25
    )
    logits, targets = torch.randn(6), torch.tensor([1.0, 0, 0, 0, 1, 0])
    for step, weight in enumerate([0.0, 0.5, 1.0]):
        wrapper.on_train_batch_start(step)
        wrapper(logits, targets)
        reported = wrapper.diagnostics()
        assert reported["main_weight"] == weight
        assert float(reported["temperature"]) == wrapper.current_temperature
        assert set(reported) == {"main_weight", "temperature"} | (COMMON if step > 0 else set())
    with pytest.warns(UserWarning, match="has no temperature"):
        plain = LossWarmupWrapper(nn.BCEWithLogitsLoss(), nn.BCEWithLogitsLoss())
    assert set(plain.diagnostics()) == {"main_weight"}


@EVERY_LOSS
@pytest.mark.parametrize("compiled", [False, True])
def test_between_steps_it_keeps_the_rows_of_a_batch_not_of_the_pool(name: str, compiled: bool) -> None:
    loss_fn = LOSSES[name](num_classes=100, queue_size=2_000)
    if compiled:
        loss_fn.compile(backend="aot_eager")
    logits, targets = torch.randn(8, 100), torch.arange(8)
    loss_fn(logits, targets)
    buffers = {buffer.untyped_storage().data_ptr() for buffer in loss_fn.buffers()}
    kept = [leaf for leaf in torch.utils._pytree.tree_leaves(loss_fn._record) if isinstance(leaf, Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    assert sum(size for place, size in storages.items() if place not in buffers) < 20_000  # the pool: over 800,000
    assert loss_fn.diagnostics()["gap"].isfinite().any()


@EVERY_LOSS
@pytest.mark.parametrize("kept_whole", [0, 100])
def test_a_ring_that_has_gone_round_and_a_batch_longer_than_it(
    name: str, kept_whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the pool of a pass is put together from what is left of it."""
    monkeypatch.setattr("imbalanced_losses.diagnostics.KEPT_WHOLE", kept_whole)
    for n in (5, 30):
        loss_fn = LOSSES[name](num_classes=1, queue_size=12)
        for seed in range(4):
            logits, targets, weight = batch(seed, n=n)
            before = copy.deepcopy(loss_fn)
            loss_fn(logits, targets, sample_weight=weight)
            before.eval()(logits, targets, sample_weight=weight)
            reported, expected = loss_fn.diagnostics(), before.diagnostics()
            for key in set(reported) - {"queue_fill", "queue_age"}:
                torch.testing.assert_close(reported[key], expected[key], rtol=0, atol=0, equal_nan=True)


def test_a_queue_that_something_else_has_filled_can_be_emptied() -> None:
    """An average of models, or a broadcast; the pass before it cannot be looked at then."""
    loss_fn = SmoothAPLoss(num_classes=100)  # the pool is not kept whole
    loss_fn(torch.randn(32, 100), torch.arange(32))
    loss_fn.queue_logits.mul_(1)
    with pytest.raises(RuntimeError, match="that something else has filled since"):
        loss_fn.diagnostics()
    loss_fn.reset_queue()
    assert (loss_fn.queue_targets == -100).all()
    with pytest.raises(RuntimeError, match="that something else has filled since"):
        loss_fn.diagnostics()
    loss_fn(torch.randn(32, 100), torch.arange(32))
    assert loss_fn.diagnostics()["queue_fill"] == 32 / 1024


def test_a_loss_that_was_loaded_or_moved_has_no_last_pass() -> None:
    """What is left of its pool is gone."""
    loss_fn = SmoothAPLoss(num_classes=1, queue_size=4)
    for forget in (lambda: loss_fn.load_state_dict(loss_fn.state_dict()), loss_fn.double, loss_fn.reset_parameters):
        loss_fn(*batch(0)[:2])
        forget()
        with pytest.raises(RuntimeError, match="expected a call of the loss before its diagnostics, got none"):
            loss_fn.diagnostics()

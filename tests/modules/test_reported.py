"""Faults that reviews of a module's life have found, one test each."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from imbalanced_losses import (
    LDAMLoss,
    LogitAdjustedLoss,
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtKLoss,
    SigmoidFocalLoss,
    SmoothAPConfig,
    SmoothAPLoss,
    SoftFBetaLoss,
    SoftmaxFocalConfig,
    SoftmaxFocalLoss,
    smooth_ap,
)
from imbalanced_losses.modules._gathering import _decode, _encode
from imbalanced_losses.rows import parse_rows
from tests.default_dtype import default_dtype
from tests.registry import MAIN, make_main

X, Y = torch.linspace(-1, 1, 16).sin(), (torch.arange(16) % 4 == 0).long()
RANKING: dict[str, Any] = {
    name: lambda name=name, **more: make_main(name, **{"queue_size": 32, **more}) for name in MAIN
}
every_loss = pytest.mark.parametrize("name", RANKING)


def wrapper(**more: Any) -> LossWarmupWrapper:
    main_loss = SmoothAPLoss(1, queue_size=32)
    return LossWarmupWrapper(nn.BCEWithLogitsLoss(), main_loss, **{"warmup_epochs": 2, **more})


def trained() -> LossWarmupWrapper:
    """In its main phase."""
    loss_fn = wrapper()
    loss_fn.on_train_epoch_start(3)
    loss_fn.on_train_batch_start(7)
    return loss_fn


# --- buffers that something else has filled ---------------------------------------------------------------------------


def by_data(own: Tensor, other: Tensor) -> None:
    own.data.copy_(other.data)


def by_numpy(own: Tensor, other: Tensor) -> None:
    own.numpy()[...] = other.numpy()


def by_swap(own: Tensor, other: Tensor) -> None:
    torch.utils.swap_tensors(own, other.clone())


@pytest.mark.parametrize("fill", [by_data, by_numpy, by_swap])
def test_the_wrapper_reads_its_buffers_on_the_cpu(fill: Any) -> None:
    """With and without a version counter."""
    target, source = wrapper(), trained()
    for own, other in zip(target.buffers(recurse=False), source.buffers(recurse=False), strict=True):
        fill(own, other)
    assert (target.in_warmup, target.main_weight) == (False, 1.0)


def test_a_wrapper_compiled_in_place_follows_its_buffers() -> None:
    model = nn.ModuleDict({"net": nn.Linear(1, 1), "loss": wrapper()})
    averaged = AveragedModel(model.eval())
    averaged.module["loss"].compile(backend="aot_eager")
    averaged.module["loss"](X, Y.float())
    model["loss"].load_state_dict(trained().state_dict())
    averaged.update_parameters(model)
    expected = copy.deepcopy(model["loss"])(X, Y.float())
    torch.testing.assert_close(averaged.module["loss"](X, Y.float()), expected)


@every_loss
def test_diagnostics_of_a_queue_that_something_else_has_filled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imbalanced_losses.diagnostics.KEPT_WHOLE", 0)
    loss_fn, other = RANKING[name](), RANKING[name]()
    other(X, Y)
    loss_fn(X, Y)
    for own, new in zip(loss_fn.buffers(), other.buffers(), strict=True):
        own.copy_(new)
    with pytest.raises(RuntimeError, match="expected the queue as the last pass left it"):
        loss_fn.diagnostics()


@every_loss
def test_an_emptied_queue_does_not_keep_the_pool(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imbalanced_losses.diagnostics.KEPT_WHOLE", 0)
    loss_fn = RANKING[name](queue_size=4_000)
    loss_fn(X, Y)
    before = loss_fn.diagnostics()
    loss_fn.reset_queue()
    kept = [leaf for leaf in torch.utils._pytree.tree_leaves(loss_fn._record) if isinstance(leaf, Tensor)]
    assert sum(leaf.untyped_storage().nbytes() for leaf in kept) < 2_000
    after = loss_fn.diagnostics()
    for key in set(before) - {"queue_fill", "queue_age"}:
        torch.testing.assert_close(after[key], before[key], rtol=0, atol=0)


# --- values that are no values ----------------------------------------------------------------------------------------


@every_loss
def test_a_weight_that_overflows_in_the_queue_is_not_stored(name: str) -> None:
    loss_fn, clean = RANKING[name](), RANKING[name]()
    weights = torch.ones(16, dtype=torch.float64)
    weights[0] = 1e300
    assert loss_fn(X.double(), Y, sample_weight=weights).isfinite()
    clean(X.double(), Y.clone().index_fill_(0, torch.tensor([0]), -100))
    torch.testing.assert_close(loss_fn(X, Y), clean(X, Y), rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_sample_of_the_pool_shows_what_is_not_finite(name: str, bad: float) -> None:
    logits = X.clone()
    logits[5] = bad
    loss_fn = RANKING[name](max_pool_size=8)
    with pytest.warns(UserWarning, match="max_pool_size"):
        losses = [loss_fn(logits, Y) for _ in range(10)]
    assert not any(loss.isfinite() for loss in losses)


@every_loss
@pytest.mark.parametrize("label", [1.5, -0.5, 0.5, 0.9])
def test_a_fraction_is_no_label(name: str, label: float) -> None:
    loss_fn, clean = (RANKING[name](validate_targets=False) for _ in range(2))
    targets, ignored = Y.float(), Y.clone()
    targets[0], ignored[0] = label, -100
    for _ in range(2):
        torch.testing.assert_close(loss_fn(X, targets), clean(X, ignored), rtol=0, atol=0)


@every_loss
def test_half_buffers_that_are_loaded_become_float32(name: str) -> None:
    loss_fn, fresh = RANKING[name](), RANKING[name]()
    halves = {key: value.half() if value.is_floating_point() else value for key, value in loss_fn.state_dict().items()}
    loss_fn.load_state_dict(halves, assign=True)
    for _ in range(2):
        weights = torch.ones(16).index_fill_(0, torch.tensor([1]), 1e5)
        torch.testing.assert_close(
            loss_fn(X, Y, sample_weight=weights), fresh(X, Y, sample_weight=weights), rtol=1e-3, atol=0
        )
    assert {buffer.dtype for buffer in loss_fn.buffers() if buffer.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("multilabel", [False, True])
def test_what_is_no_label_travels_between_ranks_as_an_ignored_row(multilabel: bool) -> None:
    config = SmoothAPConfig(num_classes=2 if multilabel else 1, multilabel=multilabel, ignore_index=-7)
    targets = torch.tensor([0.0, 1.0, -7.0, 5.0, -3.0, torch.nan, 0.5])
    columns = 2 if multilabel else 1
    rows = parse_rows(torch.zeros(7, columns), targets[:, None].expand(7, columns) if multilabel else targets, config)
    sent = {"logits": rows.logits, "targets": _encode(rows, config)}
    arrived = _decode(sent, rows, config)
    valid = torch.tensor([True, True, *[False] * 5])
    assert arrived.valid.equal(valid[:, None].expand(7, 2) if multilabel else valid)
    assert arrived.targets[arrived.valid].equal(rows.targets[arrived.valid])


# --- class weights and temperature ------------------------------------------------------------------------------------


def test_class_weights_keep_their_digits() -> None:
    alpha = [1e-8, 1e5]
    assert SoftmaxFocalLoss(alpha).half().config.alpha == pytest.approx(alpha)
    with default_dtype(torch.float16):
        assert SoftmaxFocalLoss(alpha).config.alpha == pytest.approx(alpha)
    double = SoftmaxFocalLoss(torch.tensor([0.2, 0.8], dtype=torch.float64))
    double.reset_parameters()
    assert double.config.alpha == (0.2, 0.8)
    spoilt = SoftmaxFocalLoss(alpha)
    assert spoilt.alpha is not None
    spoilt.alpha.fill_(-1)
    assert "-1.0" in repr(spoilt)  # to be looked at before reset_parameters()


def test_the_configuration_holds_the_temperature_that_was_assigned() -> None:
    loss_fn = SmoothAPLoss(1, queue_size=32)
    loss_fn.temperature = 0.3
    assert loss_fn.config.temperature == 0.3
    loss, _ = smooth_ap(X, Y, loss_fn.queue_state, loss_fn.config)
    torch.testing.assert_close(loss_fn(X, Y), loss, rtol=0, atol=0)
    loss_fn.config = SmoothAPConfig(num_classes=1, temperature=0.01)
    assert loss_fn.temperature == torch.tensor(0.01)
    loss_fn.temperature = 0.3
    loss_fn = loss_fn.to("meta").to_empty(device="cpu")
    loss_fn.reset_parameters()
    assert loss_fn.temperature == torch.tensor(0.3)


def test_class_weights_that_are_added_are_where_the_others_are() -> None:
    loss_fn = LDAMLoss([900.0, 100.0]).double()
    loss_fn.class_weights = torch.tensor([1.0, 2.0])
    assert loss_fn.class_weights.dtype == torch.float64
    loss_fn = LDAMLoss([900.0, 100.0]).to("meta")
    loss_fn.class_weights = [1.0, 2.0]  # type: ignore[assignment]
    assert loss_fn.class_weights.is_meta


def test_the_first_pass_of_a_loss_made_on_meta_may_be_in_inference_mode() -> None:
    with torch.device("meta"):
        loss_fn = SmoothAPLoss(1, queue_size=32)
    loss_fn.load_state_dict(SmoothAPLoss(1, queue_size=32).state_dict(), assign=True)
    with torch.inference_mode():
        first = loss_fn(X, Y, update_queue=False)
    assert loss_fn(X.clone().requires_grad_(), Y) == first


def test_settings_are_assigned_on_meta() -> None:
    with torch.device("meta"):
        ranking, focal = SmoothAPLoss(1), SoftmaxFocalLoss([0.2, 0.8])
    ranking.temperature, focal.alpha = 0.2, [0.1, 0.9]
    for module in (ranking, focal):
        module.to_empty(device="cpu")
        module.reset_parameters()
    assert ranking.temperature == torch.tensor(0.2)
    assert focal.config == SoftmaxFocalConfig(alpha=tuple(torch.tensor([0.1, 0.9]).tolist()))


def test_a_temperature_set_by_hand_is_loaded() -> None:
    first, second = wrapper(warmup_epochs=0), wrapper(warmup_epochs=0)
    first.main_loss.temperature = 0.3
    second.load_state_dict(first.state_dict())
    assert second.current_temperature == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (SigmoidFocalLoss(), "gamma"),
        (SoftmaxFocalLoss(), "label_smoothing"),
        (SmoothAPLoss(1), "max_pool_size"),
        (PAUCAtBudgetLoss(1), "beta"),
    ],
)
def test_no_setting_is_a_parameter(loss: nn.Module, name: str) -> None:
    with pytest.raises(TypeError, match=f"expected {name} that needs no gradient"):
        setattr(loss, name, nn.Parameter(torch.tensor(0.5)))


@pytest.mark.parametrize("name", ["validate_targets", "update_queue_in_eval", "gather_distributed"])
@pytest.mark.parametrize("value", ["no", 3, torch.nan])
def test_flags_are_flags(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"expected {name} to be True or False"):
        SmoothAPLoss(1, **{name: value})
    loss_fn = SmoothAPLoss(1)
    with pytest.raises(TypeError, match=f"expected {name} to be True or False"):
        setattr(loss_fn, name, value)


@pytest.mark.parametrize("name", ["reset_queue_each_epoch", "auto_step", "gather_distributed"])
def test_flags_of_the_wrapper_are_flags(name: str) -> None:
    with pytest.raises(TypeError, match=f"expected {name} to be True or False"):
        wrapper(**{name: "no", "warmup_epochs": 0})
    with pytest.raises(TypeError, match=f"expected {name} to be True or False"):
        setattr(wrapper(warmup_epochs=0), name, "no")


# --- second passes ----------------------------------------------------------------------------------------------------


# Dynamo looks at the gradient of its inputs, of which one is no leaf here
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@every_loss
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_loss_compiled_in_place_is_refused_in_a_checkpoint(name: str, use_reentrant: bool) -> None:
    loss_fn, logits = RANKING[name](), X.clone().requires_grad_()
    loss_fn.compile(backend="aot_eager")
    loss = checkpoint(lambda rows: loss_fn(2 * rows, Y), logits, use_reentrant=use_reentrant)
    with pytest.raises(RuntimeError, match="expected the loss outside activation checkpointing"):
        loss.backward()
    assert loss_fn.queue_cursor == 16


def test_a_wrapper_compiled_in_place_is_refused_in_a_checkpoint() -> None:
    loss_fn, logits = trained(), X.clone().requires_grad_()
    loss_fn.compile(backend="aot_eager")
    loss = checkpoint(loss_fn, logits, Y.float(), use_reentrant=False)
    with pytest.raises(RuntimeError, match="expected the loss outside activation checkpointing"):
        loss.backward()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
@pytest.mark.parametrize("blend_epochs", [0, 1])
@pytest.mark.parametrize("warmup_loss", [LogitAdjustedLoss("stream", num_classes=1), SmoothAPLoss(1, queue_size=32)])
def test_a_warmup_loss_with_state_is_refused_there_too(warmup_loss: Any, blend_epochs: int) -> None:
    warmup_loss = copy.deepcopy(warmup_loss)
    main_loss = nn.BCEWithLogitsLoss()
    with pytest.warns(UserWarning, match="has no temperature"):
        loss_fn = LossWarmupWrapper(
            warmup_loss, main_loss, warmup_epochs=1 - blend_epochs, blend_epochs=blend_epochs, final_main_weight=0.5
        )
    loss_fn.on_train_epoch_start(0)
    loss_fn.on_train_batch_start(0)
    loss_fn.compile(backend="aot_eager")
    logits = X[:, None].clone().requires_grad_()
    loss = checkpoint(lambda rows: loss_fn(2 * rows, Y[:, None].float()), logits, use_reentrant=True)
    before = copy.deepcopy(warmup_loss.state_dict())
    with pytest.raises(RuntimeError, match="expected the loss outside activation checkpointing"):
        loss.backward()
    torch.testing.assert_close(warmup_loss.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["recall", "retrieval"])
def test_a_compiled_backward_is_at_the_temperature_of_its_forward(name: str) -> None:
    """Also where the next step's temperature is assigned before it."""
    logits, targets, gradients = torch.randn(16, 3), torch.arange(16) % 3, []
    for backend in (None, "aot_eager_decomp_partition"):  # partitions as the default backend does
        if name == "retrieval":
            loss_fn: Any = RecallAtKLoss(3, k=2)
        else:
            loss_fn = make_main(name, num_classes=3, queue_size=0)
        loss_fn.temperature = 0.7
        if backend is not None:
            loss_fn.compile(backend=backend)
        leaf = logits.clone().requires_grad_()
        loss = loss_fn(leaf, targets)
        loss_fn.temperature = 0.1
        loss.backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf Tensor")
def test_a_compiled_blend_of_two_passes_takes_one_weight() -> None:
    """The first pass is no step, so the schedule goes back before its backward."""
    gradients = []
    for backend in (None, "aot_eager_decomp_partition"):
        main_loss = SoftFBetaLoss(1, queue_size=32)
        loss_fn = LossWarmupWrapper(
            nn.BCEWithLogitsLoss(), main_loss, warmup_steps=0, blend_steps=5, auto_step=True, temp_decay_steps=3
        )
        if backend is not None:
            loss_fn.compile(backend=backend)
        for update_queue in (False, True, False, True):
            leaf = X.clone().requires_grad_()
            loss_fn(leaf, Y.float(), update_queue=update_queue).backward()
            gradients.append(leaf.grad)
    torch.testing.assert_close(gradients[:4], gradients[4:])


def test_a_pass_that_leaves_the_queue_alone_is_no_step_of_a_schedule() -> None:
    """Both passes of a batch meet the same phase."""
    loss_fn = wrapper(warmup_epochs=0, warmup_steps=2, auto_step=True)
    values = []
    for step in range(4):
        first = loss_fn(X, Y.float(), update_queue=False)
        second = loss_fn(X, Y.float())
        torch.testing.assert_close(first, second)
        assert loss_fn.step == step
        values.append(float(second))
    assert values[0] == values[1] != values[2]


def test_a_main_loss_without_a_queue_takes_the_switch() -> None:
    loss_fn = LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(1), warmup_epochs=1)
    with pytest.warns(UserWarning, match="has no temperature"):
        loss_fn.main_loss = SigmoidFocalLoss()
    for epoch in range(2):
        loss_fn.on_train_epoch_start(epoch)
        loss_fn.on_train_batch_start(epoch)
        assert loss_fn(X, Y.float(), update_queue=False).isfinite()


def test_a_wrapper_that_starts_anew_counts_as_a_new_one() -> None:
    loss_fn = wrapper(warmup_epochs=0, warmup_steps=2, auto_step=True)
    loss_fn.on_train_batch_start(0)
    loss_fn.on_train_batch_start(5)
    for restart in (loss_fn.reset_parameters, loss_fn.start_new_run):
        restart()
        for _ in range(4):
            loss_fn(X, Y.float())
        assert loss_fn.step == 3
        assert not loss_fn.in_warmup


def test_a_longer_warm_up_brings_the_first_temperature_back() -> None:
    loss_fn = wrapper(warmup_epochs=0)
    loss_fn.on_train_epoch_start(0)
    loss_fn.on_train_batch_start(10)
    loss_fn.warmup_epochs = 3
    assert loss_fn.in_warmup
    assert loss_fn.current_temperature == pytest.approx(loss_fn.temp_start)


# --- scales -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e-6, 1e20, 1e30])
@pytest.mark.parametrize("tau_scale", ["iqr", "band"])
@pytest.mark.parametrize("surrogate", ["trapezoid", "pairwise"])
def test_large_and_small_scores_have_a_standard_deviation(factor: float, tau_scale: str, surrogate: str) -> None:
    """Where it is the scale: its squares must not leave float32."""
    scores, targets = torch.tensor([0.1, 0.0, 0.0, 0.0, 0.0, 0.6]), torch.tensor([1, 0, 0, 0, 0, 0])
    losses = [
        PAUCAtBudgetLoss(1, beta=0.5, tau_scale=tau_scale, surrogate=surrogate)(k * scores, targets)
        for k in (1, factor)
    ]
    torch.testing.assert_close(*losses)

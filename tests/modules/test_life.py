"""The losses as modules that are cast, averaged, restored and made without memory, and as rows that nobody checked."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.optim.swa_utils import AveragedModel

import imbalanced_losses
from imbalanced_losses import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)
from tests.registry import MAIN, make_main

RANKING: dict[str, Any] = {name: partial(make_main, name, queue_size=6) for name in MAIN}
every_loss = pytest.mark.parametrize("name", RANKING)
LOGITS, TARGETS = torch.tensor([2.0, 1.0, -1.0, 0.0]), torch.tensor([1, 0, 0, 1])


def assert_same_buffers(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.named_buffers()), dict(other.named_buffers()), rtol=0, atol=0)


# --- cast and made without memory -------------------------------------------------------------------------------------


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_queue_stays_in_float32(name: str, dtype: torch.dtype) -> None:
    loss_fn = nn.Sequential(RANKING[name]()).to(dtype)[0]
    loss_fn(LOGITS.to(dtype), TARGETS, sample_weight=torch.tensor([1e5, 1.0, 1.0, 1e-8]))
    assert {b.dtype for b in loss_fn.buffers() if b.is_floating_point()} == {torch.float32}
    assert loss_fn.queue_sample_weight[:4].tolist() == pytest.approx([1e5, 1.0, 1.0, 1e-8])
    assert loss_fn.to("meta").queue_logits.is_meta


MODULES: dict[str, Any] = {
    **RANKING,
    "sigmoid": SigmoidFocalLoss,
    "softmax": lambda: SoftmaxFocalLoss(alpha=[0.2, 0.8]),
    "wrapper": lambda: LossWarmupWrapper(
        SoftmaxFocalLoss(alpha=[0.2, 0.8]), SmoothAPLoss(num_classes=2), warmup_epochs=2
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_reset_parameters_restores_what_was_constructed(name: str) -> None:
    """On memory that holds anything, as ``to_empty`` leaves it."""
    fresh, module = MODULES[name](), MODULES[name]().to("meta").to_empty(device="cpu")
    for buffer in module.buffers():
        buffer.fill_(77)
    for part in module.modules():
        part.reset_parameters()  # type: ignore[operator]
    if isinstance(module, LossWarmupWrapper):
        assert module.in_warmup
    assert_same_buffers(module, fresh)


@every_loss
def test_reset_queue_reads_no_buffer(name: str) -> None:
    loss_fn, fresh = RANKING[name](ignore_index=-7), RANKING[name](ignore_index=-7)
    loss_fn.queue_ignore_index.fill_(3)
    loss_fn.reset_queue()
    assert_same_buffers(loss_fn, fresh)


def test_import_from_a_folder_that_was_never_installed(tmp_path: Path) -> None:
    """Vendored, frozen, in a notebook."""
    package = Path(imbalanced_losses.__file__).parent
    shutil.copytree(package, tmp_path / "imbalanced_losses", ignore=shutil.ignore_patterns("__pycache__"))
    lines = (
        "import sys, importlib.metadata as m",
        "def version(name): raise m.PackageNotFoundError(name)",
        "m.version = version",
        f"sys.path.insert(0, {str(tmp_path)!r})",
        "import imbalanced_losses as i",
        f"assert i.__file__.startswith({str(tmp_path)!r}) and i.__version__ == '0+unknown'",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, timeout=120)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("made_inside", [False, True])
def test_a_step_of_fake_tensors(name: str, made_inside: bool) -> None:
    """As for an estimate of a model's memory: nothing is read, and nothing is computed."""
    mode = FakeTensorMode(allow_non_fake_inputs=not made_inside)
    module = None if made_inside else MODULES[name]()
    with mode:
        module = MODULES[name]() if module is None else module
        columns = 2 if name in ("softmax", "wrapper") else 1
        for step in range(4):
            if isinstance(module, LossWarmupWrapper):
                module.on_train_epoch_start(step)
                module.on_train_batch_start(step)
            logits = torch.randn(4, columns, requires_grad=True)
            targets = torch.rand(4, 1) if name == "sigmoid" else torch.randint(0, 2, (4,))
            loss = module(logits, targets, sample_weight=torch.rand(4))
            loss.backward()
        assert isinstance(loss, FakeTensor)
        assert type(module).__name__ in repr(module)
        module.reset_parameters()
        if isinstance(module, LossWarmupWrapper):
            assert module.in_warmup


# --- averaged and restored --------------------------------------------------------------------------------------------


def schedule_wrapper() -> LossWarmupWrapper:
    return LossWarmupWrapper(nn.BCEWithLogitsLoss(), SmoothAPLoss(num_classes=1, queue_size=6), warmup_epochs=1)


def by_state_dict_copy(source: nn.Module, target: nn.Module) -> None:
    with torch.no_grad():
        for name, buffer in target.named_buffers():
            buffer.copy_(dict(source.named_buffers())[name])


def by_assignment(source: nn.Module, target: nn.Module) -> None:
    for name in ("epoch", "step", "switch_step"):
        setattr(target, name, getattr(source, name).clone())


@pytest.mark.parametrize("restore", [by_state_dict_copy, by_assignment])
def test_the_wrapper_follows_buffers_that_something_else_filled(restore: Any) -> None:
    source, target = schedule_wrapper(), schedule_wrapper()
    for epoch in range(3):
        source.on_train_epoch_start(epoch)
    source.on_train_batch_start(20)
    assert target.in_warmup
    restore(source, target)
    assert not target.in_warmup
    assert target.main_weight == 1.0
    source.eval(), target.eval()
    assert torch.equal(target(LOGITS, TARGETS.float()), source(LOGITS, TARGETS.float()))


def test_an_averaged_model_is_in_the_phase_of_its_source() -> None:
    source = nn.Sequential(schedule_wrapper(), nn.Linear(1, 1))
    averaged = AveragedModel(source)
    for epoch in range(3):
        source[0].on_train_epoch_start(epoch)
        averaged.update_parameters(source)
    averaged.update_parameters(source)
    assert not averaged.module[0].in_warmup


@every_loss
def test_labels_that_an_average_has_made_never_count(name: str) -> None:
    loss_fn, clean = RANKING[name](), RANKING[name]()
    with torch.no_grad():
        loss_fn.queue_targets.copy_(torch.tensor([-3, -2, -49, 2, 7, -100]))
    torch.testing.assert_close(loss_fn(LOGITS, TARGETS), clean(LOGITS, TARGETS), rtol=0, atol=0)


# --- rows that nobody checked -----------------------------------------------------------------------------------------


def call(name: str, compiled: bool) -> Any:
    loss_fn = RANKING[name](validate_targets=False)
    if compiled:
        loss_fn.compile(fullgraph=True, backend="aot_eager")
    return loss_fn


@every_loss
@pytest.mark.parametrize("compiled", [False, True])
def test_a_weight_that_is_not_finite_affects_one_step(name: str, compiled: bool) -> None:
    """Also on an ignored row. Later steps are as if the row had been ignored."""
    loss_fn, clean = call(name, compiled), call(name, compiled)
    for bad, target in itertools.product([torch.inf, torch.nan], [0, 1, -100]):
        loss_fn.reset_queue(), clean.reset_queue()
        targets = TARGETS.clone()
        targets[1] = target
        logits = LOGITS.clone().requires_grad_()
        loss = loss_fn(logits, targets, sample_weight=torch.tensor([1.0, bad, 1.0, 1.0]))
        assert not loss.isfinite()
        targets[1] = -100
        clean(LOGITS, targets, sample_weight=torch.ones(4))
        for _ in range(2):
            later, expected = loss_fn(LOGITS, TARGETS), clean(LOGITS, TARGETS)
            torch.testing.assert_close(later, expected, rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("compiled", [False, True])
def test_invalid_labels_are_ignored(name: str, compiled: bool) -> None:
    """A nan or a label out of range is an ignored row, now and in the queue."""
    loss_fn, clean = call(name, compiled), call(name, compiled)
    for step in range(8):
        targets, ignored = TARGETS.float(), TARGETS.clone()
        targets[1], ignored[1] = [torch.nan, torch.inf, 3.0, -2.0][step // 2], -100
        logits, same = LOGITS.clone().requires_grad_(), LOGITS.clone().requires_grad_()
        loss, expected = loss_fn(logits, targets), clean(same, ignored)
        torch.testing.assert_close(loss, expected, rtol=0, atol=0)
        gradients = torch.autograd.grad(loss, logits)[0], torch.autograd.grad(expected, same)[0]
        torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize(("multilabel", "label"), [(False, 3), (False, 5), (False, -1), (True, 2), (True, 5)])
def test_class_ids_out_of_range_never_count(multilabel: bool, label: int) -> None:
    loss_fn = SmoothAPLoss(num_classes=3, queue_size=0, multilabel=multilabel, validate_targets=False)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 1, 2])
    targets = torch.nn.functional.one_hot(targets) if multilabel else targets
    out_of_range, ignored = targets.clone(), targets.clone()
    out_of_range[2], ignored[2] = label, -100
    assert torch.equal(loss_fn(logits, out_of_range), loss_fn(logits, ignored))


# --- a loss that can learn --------------------------------------------------------------------------------------------


def learned(scores: list[float], targets: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    logits = torch.tensor(scores, requires_grad=True)
    loss = PAUCAtBudgetLoss(num_classes=1, queue_size=0, **options)(logits, torch.tensor(targets))
    return loss.detach(), torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize("surrogate", ["trapezoid", "pairwise"])
@pytest.mark.parametrize("tau_scale", ["iqr", "band"])
def test_a_head_that_starts_at_zero_gets_a_gradient(surrogate: str, tau_scale: str) -> None:
    for level in (0.0, 1000.1):
        loss, gradient = learned([level] * 4, [1, 0, 0, 1], surrogate=surrogate, tau_scale=tau_scale)
        assert loss == 0.5
        assert (gradient[[0, 3]] < 0).all()


@pytest.mark.parametrize("surrogate", ["trapezoid", "pairwise"])
def test_scores_without_an_interquartile_range(surrogate: str) -> None:
    """ReLU heads: most scores are 0. The scale is their standard deviation, so scaling the scores changes nothing."""
    scores, targets = [0.1, 0.0, 0.0, 0.0, 0.0, 0.6], [1, 0, 0, 0, 0, 0]
    loss, gradient = learned(scores, targets, surrogate=surrogate, beta=0.5)
    assert 0 < loss < 1
    assert gradient[0] < 0
    larger, _ = learned([10 * score for score in scores], targets, surrogate=surrogate, beta=0.5)
    torch.testing.assert_close(larger, loss)

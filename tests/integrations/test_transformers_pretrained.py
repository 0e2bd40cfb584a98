"""Losses inside a ``PreTrainedModel``: ``from_pretrained`` of a body alone, and of one's own checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from imbalanced_losses import (
    LossWarmupWrapper,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalLoss,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)


class BodyConfig(PreTrainedConfig):
    model_type = "tests_body"


class Body(PreTrainedModel):
    config_class = BodyConfig

    def __init__(self, config: BodyConfig) -> None:
        super().__init__(config)
        self.layer = nn.Linear(4, 2)
        self.post_init()


class WithLosses(PreTrainedModel):
    """Every loss, bare and in a wrapper, with settings that are not the defaults."""

    config_class = BodyConfig

    def __init__(self, config: BodyConfig, queue_size: int = 6) -> None:
        super().__init__(config)
        self.layer = nn.Linear(4, 2)
        options: dict[str, Any] = {"num_classes": 2, "queue_size": queue_size, "ignore_index": -7}
        self.losses = nn.ModuleList(
            [
                SmoothAPLoss(temperature=0.3, **options),
                RecallAtQuantileLoss(temperature=0.3, quantile=0.3, **options),
                PAUCAtBudgetLoss(temperature=0.3, beta=0.5, surrogate="pairwise", **options),
                SoftmaxFocalLoss(alpha=[0.25, 0.75]),
                SigmoidFocalLoss(),
            ]
        )
        wrapped = SoftmaxFocalLoss(alpha=[0.25, 0.75]), SmoothAPLoss(**options)
        self.loss_fn = LossWarmupWrapper(*wrapped, warmup_epochs=2, temp_start=0.5, temp_decay_steps=40)
        self.post_init()


class OwnInit(WithLosses):
    """As many models have it: an initialisation that knows their own layers."""

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(std=0.5)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    level = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(level)


@pytest.fixture(autouse=True)
def _dirty_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no memory gets some that holds anything."""
    empty_like = torch.empty_like

    def filled(*arguments: Any, **keywords: Any) -> Any:
        tensor = empty_like(*arguments, **keywords)
        return tensor if tensor.is_meta else tensor.fill_(1)

    monkeypatch.setattr(torch, "empty_like", filled)


def assert_same_buffers(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(dict(one.named_buffers()), dict(other.named_buffers()), rtol=0, atol=0)


@pytest.fixture
def body(tmp_path: Path) -> Path:
    Body(BodyConfig()).save_pretrained(tmp_path / "body")
    return tmp_path / "body"


@pytest.mark.parametrize("kind", [WithLosses, OwnInit])
def test_a_body_alone_leaves_losses_as_constructed(kind: type[WithLosses], body: Path) -> None:
    model = kind.from_pretrained(body)
    assert torch.equal(model.layer.weight, Body.from_pretrained(body).layer.weight)
    assert_same_buffers(model, WithLosses(BodyConfig()))
    assert model.loss_fn.in_warmup
    assert model.loss_fn.current_temperature == 0.5
    model.train().loss_fn.on_train_epoch_start(2)
    model.loss_fn.on_train_batch_start(40)
    model.loss_fn(torch.randn(4, 2), torch.tensor([0, 1, 1, 0]))
    assert not model.loss_fn.in_warmup


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_type_leaves_queues_and_temperatures_alone(dtype: torch.dtype, body: Path) -> None:
    model, fresh = WithLosses.from_pretrained(body, dtype=dtype), WithLosses(BodyConfig())
    assert model.layer.weight.dtype == dtype
    for part, other in zip(model.losses[:3], fresh.losses[:3], strict=True):
        assert_same_buffers(part, other)
    assert_same_buffers(model.loss_fn.main_loss, fresh.loss_fn.main_loss)


def used() -> WithLosses:
    model = WithLosses(BodyConfig())
    model.losses[0].temperature = 0.8
    for step in range(12):
        if step % 3 == 0:
            model.loss_fn.on_train_epoch_start(step // 3)
        model.loss_fn.on_train_batch_start(step)
        logits, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
        for loss_fn in (*model.losses[:3], model.loss_fn):
            loss_fn(logits, targets)
    return model


def test_ones_own_checkpoint_brings_everything_back(tmp_path: Path) -> None:
    model = used()
    model.save_pretrained(tmp_path)
    restored = WithLosses.from_pretrained(tmp_path)
    assert_same_states(restored, model)
    assert not restored.loss_fn.in_warmup
    assert restored.loss_fn.main_weight == 1.0
    assert restored.loss_fn.current_temperature == model.loss_fn.current_temperature < 0.5
    model.eval()
    logits, targets = torch.randn(4, 2), torch.tensor([0, 1, 1, 0])
    assert torch.equal(restored.loss_fn(logits, targets), model.loss_fn(logits, targets))


def assert_same_states(one: nn.Module, other: nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def test_a_queue_of_another_size_starts_empty(tmp_path: Path) -> None:
    """Its cursor, which fits, would point beyond the end."""
    used().save_pretrained(tmp_path)
    model = WithLosses.from_pretrained(tmp_path, queue_size=5, ignore_mismatched_sizes=True)
    fresh = WithLosses(BodyConfig(), queue_size=5)
    for part, other in zip(model.losses[:3], fresh.losses[:3], strict=True):
        assert_same_buffers(part, other)
    assert int(model.loss_fn.epoch) == 3


def test_a_loss_that_was_added_later_starts_anew(tmp_path: Path) -> None:
    used().save_pretrained(tmp_path)

    class More(WithLosses):
        def __init__(self, config: BodyConfig) -> None:
            super().__init__(config)
            self.more = LossWarmupWrapper(SigmoidFocalLoss(), SmoothAPLoss(num_classes=1, queue_size=5))
            self.post_init()

    model = More.from_pretrained(tmp_path)
    assert_same_buffers(model.more, More(BodyConfig()).more)
    assert int(model.loss_fn.epoch) == 3


def test_a_model_that_is_made_with_memory_keeps_what_was_set() -> None:
    model = used()
    before = {name: value.clone() for name, value in model.state_dict().items() if "layer" not in name}
    model.post_init()
    after = model.state_dict()
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_a_body_within_a_model_of_ones_own(body: Path) -> None:
    """The loss beside the body is no part of what is loaded."""
    AutoModel.register(BodyConfig, Body, exist_ok=True)

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.loss_fn = Body.from_pretrained(body), SmoothAPLoss(num_classes=1, temperature=0.3)

    assert Outer().loss_fn.temperature == pytest.approx(0.3)

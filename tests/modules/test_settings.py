"""The arguments of a loss's constructor as its attributes: read, assigned with effect, or refused."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imbalanced_losses import (
    LDAMConfig,
    LDAMLoss,
    PAUCAtBudgetLoss,
    RecallAtQuantileLoss,
    SigmoidFocalConfig,
    SigmoidFocalLoss,
    SmoothAPConfig,
    SmoothAPLoss,
    SoftmaxFocalLoss,
)
from tests.registry import ELEMENTWISE
from tests.registry import RANKING as REGISTERED

RANKING = {loss.shell: loss for loss in REGISTERED.values()}
# Not the defaults. The queue's shape and its mark of ignored rows cannot change.
FIXED = {"num_classes": 4, "queue_size": 9, "multilabel": True, "ignore_index": -1}
OF_EVERY_RANKING_LOSS = {
    "reduction": "sum",
    "temperature": 0.7,
    "max_pool_size": 4,
    "update_queue_in_eval": True,
    "tau_scale": "std",
}
OF_EVERY_LOSS = {"gather_distributed": False, "grad_reduction": "sum", "validate_targets": False}
# losses whose arguments are all settings that can be assigned
ENTRIES: dict[type[nn.Module], Any] = {
    **RANKING,
    **{loss.shell: loss for loss in ELEMENTWISE.values()},
}


def other(loss: type[nn.Module], name: str) -> Any:
    """A value that is not the default."""
    common = {**OF_EVERY_LOSS, **(OF_EVERY_RANKING_LOSS if loss in RANKING else {})}
    return common[name] if name in common else ENTRIES[loss].other[name]


def needed(loss: type[nn.Module], name: str) -> Any:
    """Other settings without which this one does nothing."""
    return RANKING[loss].needed.get(name, {}) if loss in RANKING else {}


def make(loss: type[nn.Module], **settings: Any) -> Any:
    required = {"num_classes": 3, "queue_size": 8, **ENTRIES[loss].wide} if loss in RANKING else ENTRIES[loss].required
    return loss(**{**required, **settings})


def rows(loss: type[nn.Module]) -> tuple[Tensor, Tensor]:
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 0, 0, 1, 0, 0])
    labels = loss not in RANKING and next(iter(ENTRIES[loss].variants.values())).labels
    return logits, nn.functional.one_hot(targets).float() if labels else targets


def fixed(loss: type[nn.Module]) -> dict[str, Any]:
    """Arguments that cannot be assigned."""
    return FIXED if loss in RANKING else {}


SETTINGS = [
    (loss, name)
    for loss in ENTRIES
    for name in inspect.signature(loss).parameters
    if name != "group" and (loss in RANKING or name in {**OF_EVERY_LOSS, **ENTRIES[loss].other})
    if loss in RANKING or not isinstance(ENTRIES[loss].other.get(name), tuple)  # buffers have tests of their own
    if loss in RANKING or name != "multilabel"  # makes another kind of targets
]


@pytest.mark.parametrize(("loss", "name"), SETTINGS)
def test_an_argument_is_an_attribute(loss: type[nn.Module], name: str) -> None:
    value = fixed(loss)[name] if name in fixed(loss) else other(loss, name)
    assert getattr(make(loss, **{**needed(loss, name), name: value}), name) == pytest.approx(value)


@pytest.mark.parametrize(("loss", "name"), SETTINGS)
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_an_assignment_holds_or_raises(loss: type[nn.Module], name: str, compiled: bool) -> None:
    """As if the loss had been made with it, also where a call was compiled before."""
    others = needed(loss, name)
    loss_fn = make(loss, **others)
    if name in fixed(loss):
        setattr(loss_fn, name, getattr(loss_fn, name))  # no change
        with pytest.raises(AttributeError, match=f"expected no change of {name}, .* make a new {loss.__name__}"):
            setattr(loss_fn, name, FIXED[name])
        return
    if compiled:
        loss_fn.compile(backend="eager")
    before = loss_fn(*rows(loss)) if name != "max_pool_size" else None
    if loss in RANKING:
        loss_fn.reset_queue()
    setattr(loss_fn, name, other(loss, name))
    assert getattr(loss_fn, name) == pytest.approx(other(loss, name))
    expected = make(loss, **{**others, name: other(loss, name)})
    assert loss_fn.config == expected.config
    if name == "max_pool_size":
        return  # draws rows, and warns
    torch.testing.assert_close(loss_fn(*rows(loss)), expected(*rows(loss)))
    changes_nothing = name in (*OF_EVERY_LOSS, "update_queue_in_eval", *ENTRIES[loss].silent)
    assert changes_nothing or not torch.equal(before, loss_fn(*rows(loss)))


def test_a_configuration_repairs_a_buffer() -> None:
    loss_fn = LDAMLoss([9.0, 1.0])
    loss_fn.counts.fill_(torch.nan)
    loss_fn.config = LDAMConfig(counts=(9, 1))
    assert loss_fn.counts.tolist() == [9, 1]


@pytest.mark.parametrize("loss", [entry.shell for entry in ELEMENTWISE.values() if entry.shell._buffer_fields])
def test_what_was_loaded_can_be_set_back(loss: Any) -> None:
    """The configuration has the values in the buffers, and assigning it sets them."""
    loss_fn = make(loss, **({"alpha": [0.25, 0.5, 0.25]} if loss is SoftmaxFocalLoss else {}))
    given = loss_fn.config
    loaded = {name: 0.5 * getattr(loss_fn, name) for name in loss._buffer_fields if getattr(loss_fn, name) is not None}
    loss_fn.load_state_dict({**loss_fn.state_dict(), **loaded})
    held = loss_fn.config
    assert held != given
    loss_fn.reduction = "sum"
    assert loss_fn.config == dataclasses.replace(held, reduction="sum")
    loss_fn.config = given
    assert loss_fn.config == given
    for name, value in loaded.items():
        torch.testing.assert_close(getattr(loss_fn, name), 2 * value)


@pytest.mark.parametrize(
    ("loss", "name", "value", "message"),
    [
        (SigmoidFocalLoss, "gamma", -1.0, "expected gamma"),
        (SigmoidFocalLoss, "reduction", "max", "expected reduction to be one of"),
        (SigmoidFocalLoss, "grad_reduction", "max", "expected grad_reduction to be one of"),
        (SoftmaxFocalLoss, "alpha", [-1.0, 1.0], "expected every weight in alpha"),
        (SoftmaxFocalLoss, "label_smoothing", 2.0, "expected label_smoothing"),
        (SmoothAPLoss, "temperature", 0.0, "expected temperature"),
        (RecallAtQuantileLoss, "quantile", 1.5, "expected quantile"),
        (PAUCAtBudgetLoss, "alpha", 0.5, "expected alpha < beta"),
    ],
)
def test_a_wrong_assignment_changes_nothing(loss: type[nn.Module], name: str, value: Any, message: str) -> None:
    loss_fn = make(loss, **({"alpha": [0.5, 1.0]} if loss is SoftmaxFocalLoss else {}))
    config, buffers = loss_fn.config, copy.deepcopy(loss_fn.state_dict())
    with pytest.raises(ValueError, match=message):
        setattr(loss_fn, name, value)
    assert loss_fn.config == config
    torch.testing.assert_close(loss_fn.state_dict(), buffers, rtol=0, atol=0)


def test_a_configuration_can_be_assigned() -> None:
    loss_fn = SmoothAPLoss(num_classes=1, queue_size=4)
    with torch.no_grad():
        loss_fn.temperature.fill_(0.3)  # as a schedule does
    loss_fn.config = SmoothAPConfig(num_classes=1, reduction="none")
    assert (loss_fn.reduction, float(loss_fn.temperature)) == ("none", pytest.approx(0.3))  # what did not change stays
    loss_fn.config = SmoothAPConfig(num_classes=1, temperature=0.5)
    assert float(loss_fn.temperature) == 0.5
    with pytest.raises(AttributeError, match="expected no change of num_classes"):
        loss_fn.config = SmoothAPConfig(num_classes=2)
    with pytest.raises(TypeError, match="expected config to be a SmoothAPConfig, got SigmoidFocalConfig"):
        loss_fn.config = SigmoidFocalConfig()  # type: ignore[assignment]
    assert loss_fn.num_classes == 1


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss))])
def test_a_copy_has_settings_of_its_own(twin: Any) -> None:
    loss_fn = SigmoidFocalLoss()
    loss_fn.gamma = 0.0
    other = twin(loss_fn)
    other.gamma = 1.0
    assert (loss_fn.gamma, other.gamma) == (0.0, 1.0)


# --- settings that are buffers ----------------------------------------------------------------------------------------


def test_class_weights_can_be_set_changed_and_removed() -> None:
    logits, targets = rows(SoftmaxFocalLoss)
    loss_fn = SoftmaxFocalLoss()
    for alpha in ([1.0, 2.0, 3.0], torch.tensor([3.0, 2.0, 1.0]), None):
        loss_fn.alpha = alpha
        assert loss_fn.config == SoftmaxFocalLoss(alpha).config
        assert torch.equal(loss_fn(logits, targets), SoftmaxFocalLoss(alpha)(logits, targets))
        assert set(loss_fn.state_dict()) == ({"alpha"} if alpha is not None else set())
    loss_fn = SoftmaxFocalLoss([1.0, 2.0, 3.0]).double()
    loss_fn.alpha = [3.0, 2.0, 1.0]
    assert loss_fn.alpha.dtype == torch.float64
    loss_fn.alpha.zero_()
    loss_fn.reset_parameters()
    assert loss_fn.alpha.tolist() == [3.0, 2.0, 1.0]
    assert "alpha=" in repr(loss_fn.to("meta"))


def test_assigning_load_reaches_the_class_weights() -> None:
    with torch.device("meta"):
        loss_fn = SoftmaxFocalLoss([0.0, 0.0])
    loss_fn.load_state_dict(SoftmaxFocalLoss([1.0, 2.0]).state_dict(), assign=True)
    assert loss_fn.config.alpha == (1.0, 2.0)


def test_what_is_to_be_trained_is_refused() -> None:
    parameter = nn.Parameter(torch.tensor(0.5))
    loss_fn = SmoothAPLoss(num_classes=1)
    with pytest.raises(TypeError, match=r"expected temperature that needs no gradient .*: detach\(\) it"):
        loss_fn.temperature = parameter
    with pytest.raises(TypeError, match="expected temperature that needs no gradient"):
        loss_fn.temperature = parameter * 2
    loss_fn.temperature = parameter.detach()
    assert loss_fn.temperature == 0.5
    assert not list(loss_fn.parameters())
    weights = nn.Parameter(torch.ones(3))
    with pytest.raises(TypeError, match="expected alpha that needs no gradient"):
        SoftmaxFocalLoss(weights)
    focal = SoftmaxFocalLoss([1.0, 1.0, 1.0])
    with pytest.raises(TypeError, match="expected alpha that needs no gradient"):
        focal.alpha = weights

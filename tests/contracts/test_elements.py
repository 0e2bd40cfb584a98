"""Elementwise losses: values, reductions, dtypes, ignored targets, weights, what is not finite, errors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from imbalanced_losses import SmoothAPConfig
from tests.contracts.elements import CASES, IGNORING, Case, each_loss, every_case, on_every_path, value_and_grad
from tests.registry import ELEMENTWISE

ignoring = pytest.mark.parametrize("case", IGNORING, ids=str)
reductions = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])

# --- values -----------------------------------------------------------------------------------------------------------


@on_every_path
def test_it_is_the_papers_formula(case: Case) -> None:
    logits, targets = case.inputs(n=9)
    expected = case.reference(logits, targets)
    assert (expected > 0).sum() > 4
    assert_close(case.call(logits, targets, reduction="none"), expected, rtol=1e-9, atol=1e-9)
    assert_close(case.call(logits, targets, reduction="sum"), expected.sum())
    assert_close(case.call(logits, targets, reduction="mean"), expected.sum() / case.counted(targets).sum())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@on_every_path
def test_lower_precision_computes_in_float32(case: Case, dtype: torch.dtype) -> None:
    """The loss of the same numbers in float32, to the bit, and a gradient rounded to the logits' dtype."""
    logits, targets = case.inputs(n=9, dtype=dtype)
    loss, gradient = value_and_grad(case.call, logits, targets, reduction="none")
    wide, wide_gradient = value_and_grad(case.call, logits.float(), targets, reduction="none")
    assert (loss.dtype, gradient.dtype) == (torch.float32, dtype)
    assert_close(loss.double(), case.reference(logits, targets), rtol=1e-5, atol=1e-6)
    assert_close(loss, wide, rtol=0, atol=0)
    assert_close(gradient, wide_gradient.to(dtype), rtol=0, atol=0)


@on_every_path
def test_autocast_changes_nothing(case: Case) -> None:
    logits, targets = case.inputs(dtype=torch.float32)
    expected = value_and_grad(case.call, logits, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(value_and_grad(case.call, logits, targets), expected, rtol=0, atol=0)


@on_every_path
def test_large_logits(case: Case) -> None:
    logits, targets = case.inputs(n=20, dtype=torch.float32)
    for scale in (1e4, 90.0, 20.0):
        extreme = logits.sign() * scale
        loss, gradient = value_and_grad(case.call, extreme, targets, reduction="none")
        assert gradient.isfinite().all()
        assert_close(loss.double(), case.reference(extreme, targets), rtol=1e-5, atol=case.own.rounding * scale)


# --- ignored and absent targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("filler", [0.0, 1e4, torch.nan, torch.inf, -torch.inf])
@reductions
@ignoring
def test_ignored_rows_take_no_part(case: Case, reduction: str, filler: float) -> None:
    """Loss and both gradients are those of the other rows."""
    logits, targets = case.inputs()
    targets[0] = case.ignore_index
    expected, expected_gradient = value_and_grad(case.call, logits[1:], targets[1:], reduction=reduction)
    logits[0] = filler
    leaf = logits.clone().requires_grad_()
    loss = case.call(leaf, targets, reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), leaf)
    assert_close(loss[1:] if reduction == "none" else loss, expected)
    assert_close(gradient[1:], expected_gradient)
    assert (gradient[0] == 0).all()
    assert (second[0] == 0).all()
    assert second.isfinite().all()
    if reduction == "none":
        assert (loss[0] == 0).all()


@ignoring
def test_ignored_elements_get_no_gradient(case: Case) -> None:
    logits, targets = case.inputs()
    expected, gradient = value_and_grad(case.call, logits, targets)
    is_ignored = case.of_logits(~case.counted(targets))
    assert is_ignored.any()
    assert (gradient[is_ignored] == 0).all()
    for bad in (torch.nan, torch.inf, -torch.inf):
        found = value_and_grad(case.call, torch.where(is_ignored, bad, logits), targets)
        assert_close(found, (expected, gradient), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("n", [0, 1])
@reductions
@on_every_path
def test_an_empty_batch_is_a_connected_zero(case: Case, n: int, reduction: str) -> None:
    """No row, or no position."""
    rest = case.own.rest if n == 0 else (*(case.own.rest or (1,)), 0)
    logits = torch.zeros(n, *rest, requires_grad=True)
    targets = torch.zeros((n, *(rest if case.own.labels else rest[1:])), dtype=torch.int64)
    loss = case.call(logits, targets, reduction=reduction, sample_weight=torch.ones(n))
    assert loss.shape == (targets.shape if reduction == "none" else ())
    assert loss.sum() == 0
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@ignoring
def test_nothing_to_count_is_zero(case: Case, reduction: str) -> None:
    logits, targets = case.inputs()
    targets = torch.full_like(targets, case.ignore_index)
    loss, gradient = value_and_grad(case.call, logits, targets, reduction=reduction)
    assert loss == 0
    assert (gradient == 0).all()


# --- what is not finite -----------------------------------------------------------------------------------------------


@reductions
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@on_every_path
def test_a_logit_that_is_not_finite_shows(case: Case, bad: float, reduction: str) -> None:
    """In the loss and, for a GradScaler, in the gradient; in no other row."""
    if bad == -torch.inf and case.loss.rules_out and not case.own.labels:
        return  # it rules a class out
    for row_wide in (False, True):
        logits, targets = case.inputs(dtype=torch.float32)
        expected = value_and_grad(case.call, logits, targets, reduction=reduction)
        (logits[-1] if row_wide else logits[-1].view(-1)[:1]).fill_(bad)
        found = value_and_grad(case.call, logits, targets, reduction=reduction)
        if reduction == "none":
            assert_close([part[:-1] for part in found], [part[:-1] for part in expected], rtol=1e-6, atol=1e-7)
            found = found[0][-1], found[1][-1]
        assert all(not part.isfinite().all() for part in found)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_row", [True, False])
@on_every_path
def test_weights_of_one_change_no_bit(case: Case, per_row: bool) -> None:
    logits, targets = case.inputs(n=37, dtype=torch.float32)
    ones = torch.ones(37) if per_row else torch.ones(targets.shape)
    for reduction in case.loss.reductions:
        expected = value_and_grad(case.call, logits, targets, reduction=reduction)
        found = value_and_grad(case.call, logits, targets, sample_weight=ones, reduction=reduction)
        assert_close(found, expected, rtol=case.loss.weighing_rounds, atol=0)


@on_every_path
def test_a_weight_of_two_is_a_row_given_twice(case: Case) -> None:
    logits, targets = case.inputs()
    twice, weights = torch.tensor([0, 1, 2, 3, 4, 5, 4, 2]), torch.tensor([1, 1, 2, 1, 2, 1])
    for reduction in set(case.loss.reductions) - {"none"}:
        weighted = case.call(logits, targets, sample_weight=weights, reduction=reduction)
        assert_close(weighted, case.call(logits[twice], targets[twice], reduction=reduction))


@on_every_path
def test_weights_of_elements(case: Case) -> None:
    """Of the targets' shape, or ones that broadcast to it from the left."""
    logits, targets = case.inputs()
    counted, elements = case.counted(targets), case.call(logits, targets, reduction="none")
    for weights in (torch.rand(targets.shape).double(), torch.rand(6, *[1] * (targets.dim() - 1)).double()):
        own = weights * elements
        total = (weights.expand_as(targets) * counted).sum()
        assert_close(case.call(logits, targets, sample_weight=weights, reduction="none"), own)
        assert_close(case.call(logits, targets, sample_weight=weights, reduction="sum"), own.sum())
        assert_close(case.call(logits, targets, sample_weight=weights, reduction="mean"), own.sum() / total)


@on_every_path
def test_no_weight_at_all_is_zero(case: Case) -> None:
    loss, gradient = value_and_grad(case.call, *case.inputs(), sample_weight=torch.zeros(6))
    assert loss == 0
    assert (gradient == 0).all()


@on_every_path
def test_only_logits_carry_gradient(case: Case) -> None:
    logits, targets = case.inputs()
    targets = targets.requires_grad_() if case.own.labels else targets
    weights = torch.rand(6, requires_grad=True)
    assert not case.call(logits, targets, sample_weight=weights).requires_grad


# --- errors -----------------------------------------------------------------------------------------------------------

Change = Callable[[Tensor], Any]
MISTAKES: list[tuple[str, Change, type[Exception], str]] = [
    ("logits", lambda x: x.long(), TypeError, "expected floating-point logits, got torch.int64"),
    ("logits", lambda x: x.tolist(), TypeError, "expected logits to be a Tensor, got list"),
    ("targets", lambda x: x.tolist(), TypeError, "expected targets to be a Tensor, got list"),
    ("targets", lambda x: x[:5], ValueError, r"expected targets of shape \[6"),
    ("targets", lambda x: x * 1j, TypeError, "expected .*targets.*, got torch.complex"),
    ("targets", lambda x: x.to("meta"), ValueError, "expected targets on cpu like the logits, got meta"),
    ("sample_weight", lambda x: x.tolist(), TypeError, "expected sample_weight to be a Tensor, got list"),
    ("sample_weight", lambda x: x[:5], ValueError, r"expected sample_weight of shape \[6\].*, got \[5\]"),
    ("sample_weight", lambda x: x[None], ValueError, r"expected sample_weight of shape \[6\].*, got \[1, 6\]"),
    ("sample_weight", lambda x: x > 0, TypeError, "expected sample_weight of a real dtype, got torch.bool"),
    ("sample_weight", lambda x: x.to("meta"), ValueError, "expected sample_weight on cpu .*, got meta"),
]


@pytest.mark.parametrize(("name", "change", "error", "message"), MISTAKES, ids=[f"{m[0]}: {m[3]}" for m in MISTAKES])
@every_case
def test_arguments_that_do_not_fit(case: Case, name: str, change: Change, error: type[Exception], message: str) -> None:
    """Of function and module, and of the module also if it checks no values."""
    logits, targets = case.inputs()
    arguments = {"logits": logits, "targets": targets}
    arguments |= {"sample_weight": torch.ones(6)} if name == "sample_weight" else {}
    arguments[name] = change(arguments[name])
    with pytest.raises(error, match=message):
        case.loss.function(**arguments, cfg=case.config())
    rows = arguments.pop("logits"), arguments.pop("targets")
    for validate in (True, False):
        with pytest.raises(error, match=message):
            case.shell(validate_targets=validate)(*rows, **arguments)


@pytest.mark.parametrize("bad", [-1.0, torch.nan, torch.inf])
@every_case
def test_modules_check_weights(case: Case, bad: float) -> None:
    weights = torch.tensor([1.0, 1.0, bad, 1.0, 1.0, 1.0])
    with pytest.raises(ValueError, match=f"expected finite sample_weight >= 0, got {bad:.0f}"):
        case.shell()(*case.inputs(), sample_weight=weights)
    case.shell(validate_targets=False)(*case.inputs(), sample_weight=weights)


@pytest.mark.parametrize("bad", [1.5, -3, 77, torch.nan])
@every_case
def test_modules_check_targets(case: Case, bad: float) -> None:
    logits, targets = case.inputs()
    if not case.own.labels and not float(bad).is_integer():
        return  # class ids are integers
    targets.view(-1)[-1] = bad
    expected = "targets in" if case.own.labels else "class ids in"
    with pytest.raises(ValueError, match=rf"expected {expected} .*got {bad}"):
        case.shell()(logits, targets)
    if case.own.labels:
        case.shell(validate_targets=False)(logits, targets)


@each_loss
def test_each_loss_wants_its_own_config(case: Case) -> None:
    own, arguments = case.loss.config.__name__, case.inputs()
    others = [loss.config(**loss.required) for loss in ELEMENTWISE.values() if loss is not case.loss]
    for other in (None, SmoothAPConfig(num_classes=1), *others):
        with pytest.raises(TypeError, match=f"expected cfg to be a {own}, got {type(other).__name__}"):
            case.loss.function(*arguments, other)


@pytest.mark.parametrize(
    ("loss", "name", "value", "error"), [(name, *bad) for name, loss in ELEMENTWISE.items() for bad in loss.bad]
)
def test_settings_out_of_range(loss: str, name: str, value: Any, error: type[Exception]) -> None:
    """Of the configuration, and of the module."""
    for build in (ELEMENTWISE[loss].config, ELEMENTWISE[loss].shell):
        with pytest.raises(error, match=rf"expected .*{name}.*"):
            build(**{**ELEMENTWISE[loss].required, name: value})


@every_case
def test_configurations_are_immutable_values(case: Case) -> None:
    config = case.config()
    assert config == case.config()
    assert hash(config) == hash(case.config())
    assert dataclasses.replace(config, reduction="sum").reduction == "sum"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.reduction = "sum"
    with pytest.raises(TypeError):
        case.loss.config(0.25)


def test_every_loss_has_a_case_of_its_name() -> None:
    assert {case.name for case in CASES} >= set(ELEMENTWISE)
    assert all(re.fullmatch(r"[a-z_]+", case.name) for case in CASES)

"""The focal losses as modules: equal to the functions, their buffer, what they check and what they refuse."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from imbalanced_losses import SigmoidFocalLoss, SoftmaxFocalLoss
from tests.losses.focal_cases import CASES, DEFAULTS, N_CLASSES, Case

every_case = pytest.mark.parametrize("case", CASES, ids=str)
each_loss = pytest.mark.parametrize("case", DEFAULTS, ids=str)

ALPHA = (1.0, 0.5, 0.25, 2.0)  # exact in float32


def value_and_grad(loss_fn: Any, logits: Tensor, targets: Tensor, **rows: Tensor) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = loss_fn(leaf, targets, **rows)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


# --- construction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "settings", "message"),
    [
        (SigmoidFocalLoss, {"alpha": 2.0}, "expected alpha in"),
        (SigmoidFocalLoss, {"gamma": -0.1}, "expected gamma"),
        (SoftmaxFocalLoss, {"alpha": [1.0, -1.0]}, "expected every weight in alpha"),
        (SoftmaxFocalLoss, {"alpha": torch.tensor([1.0, torch.inf])}, "expected every weight in alpha"),
        (SoftmaxFocalLoss, {"alpha": torch.ones(2, 2)}, r"expected alpha of shape \[C\], got \[2, 2\]"),
        (SoftmaxFocalLoss, {"alpha": torch.tensor(1.0)}, r"got \[\]"),
        (SoftmaxFocalLoss, {"reduction": "max"}, "expected reduction to be one of"),
    ],
)
def test_settings_out_of_range(shell: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shell(**settings)


# --- equal to the functions -------------------------------------------------------------------------------------------


# --- the buffer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [ALPHA, list(ALPHA), torch.tensor(ALPHA), torch.tensor(ALPHA, dtype=torch.float64)])
def test_alpha_is_a_buffer(alpha: Any) -> None:
    shell = SoftmaxFocalLoss(alpha)
    dtype = alpha.dtype if isinstance(alpha, Tensor) else torch.float32
    assert_close(dict(shell.named_buffers()), {"alpha": torch.tensor(ALPHA, dtype=dtype)})
    assert shell.config.alpha == ALPHA
    assert shell.alpha is not alpha


def test_alpha_of_integers() -> None:
    assert_close(SoftmaxFocalLoss(torch.tensor([1, 2])).alpha, torch.tensor([1.0, 2.0]))


def test_alpha_is_the_callers_no_longer() -> None:
    alpha = torch.tensor(ALPHA)
    shell = SoftmaxFocalLoss(alpha)
    alpha.zero_()
    assert shell.config.alpha == ALPHA


@each_loss
def test_no_alpha_no_state(case: Case) -> None:
    assert case.shell().state_dict() == {}
    assert not list(case.shell().parameters())


def test_the_buffer_is_saved_loaded_copied_and_moved() -> None:
    logits, targets = DEFAULTS[1].inputs(dtype=torch.float32)
    shell = SoftmaxFocalLoss(ALPHA)
    file = io.BytesIO()
    torch.save(shell.state_dict(), file)
    file.seek(0)
    other = SoftmaxFocalLoss([0.0] * N_CLASSES)
    other.load_state_dict(torch.load(file))
    expected = shell(logits, targets)
    for same in (other, copy.deepcopy(shell)):
        assert same.config.alpha == ALPHA
        assert_close(same(logits, targets), expected, rtol=0, atol=0)
    for dtype in (torch.float64, torch.bfloat16):
        moved = copy.deepcopy(shell).to(dtype)
        assert moved.alpha is not None
        assert moved.alpha.dtype == torch.promote_types(dtype, torch.float32)
        assert_close(moved(logits, targets), expected, rtol=0, atol=0)  # the weights are exact in both
    assert shell.to("meta").alpha.is_meta


def test_inside_a_model() -> None:
    model = nn.ModuleDict({"net": nn.Linear(3, N_CLASSES), "loss": SoftmaxFocalLoss(ALPHA)})
    assert set(model.state_dict()) == {"net.weight", "net.bias", "loss.alpha"}
    model["loss"](model["net"](torch.randn(5, 3)), torch.arange(5) % N_CLASSES).backward()
    assert model["net"].weight.grad.abs().sum() > 0


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shell", "targets", "weights", "message"),
    [
        (SigmoidFocalLoss(), [0.0, 1.5], None, r"expected targets in \[0, 1\], got 1.5"),
        (SigmoidFocalLoss(), [0.0, -1], None, r"expected targets in \[0, 1\], got -1"),
        (SigmoidFocalLoss(), [0.0, torch.nan], None, "got nan"),
        (SigmoidFocalLoss(), [0, 2], None, "got 2"),
        (SigmoidFocalLoss(ignore_index=-1), [-1.0, -2.0], None, "or ignore_index=-1, got -2"),
        (SigmoidFocalLoss(), [0.0, 1.0], [1.0, -1.0], "expected finite sample_weight >= 0, got -1"),
        (SigmoidFocalLoss(), [0.0, 1.0], [1.0, torch.nan], "got nan"),
        (SigmoidFocalLoss(), [0.0, 1.0], [1.0, torch.inf], "got inf"),
        (SoftmaxFocalLoss(), [0, 2], None, r"expected class ids in \[0, 2\) or ignore_index=-100, got 2"),
        (SoftmaxFocalLoss(), [-1, 0], None, "got -1"),
        (SoftmaxFocalLoss(ignore_index=-1), [-1, -100], None, "or ignore_index=-1, got -100"),
        (SoftmaxFocalLoss(), [0, 1], [1.0, -2.0], "expected finite sample_weight >= 0, got -2"),
    ],
)
def test_values_are_checked(shell: nn.Module, targets: list[Any], weights: list[float] | None, message: str) -> None:
    logits = torch.zeros(2, 2) if isinstance(shell, SoftmaxFocalLoss) else torch.zeros(2)
    rows = {} if weights is None else {"sample_weight": torch.tensor(weights)}
    with pytest.raises(ValueError, match=message):
        shell(logits, torch.tensor(targets), **rows)


@pytest.mark.parametrize(
    ("shell", "arguments", "error", "message"),
    [
        (SigmoidFocalLoss(), (torch.zeros(2), torch.zeros(3)), ValueError, r"expected targets of shape \[2\]"),
        (SigmoidFocalLoss(), (torch.zeros(2), torch.zeros(2) * 1j), TypeError, "expected targets of a real dtype"),
        (SigmoidFocalLoss(), (torch.zeros(2).long(), torch.zeros(2)), TypeError, "expected floating-point logits"),
        (SoftmaxFocalLoss(), (torch.zeros(2), torch.zeros(2).long()), ValueError, r"expected logits of shape \[N, C"),
        (SoftmaxFocalLoss(), (torch.zeros(2, 2), torch.ones(2)), TypeError, "expected integer class ids"),
        (SoftmaxFocalLoss([1.0]), (torch.zeros(2, 2), torch.ones(2).long()), ValueError, r"alpha of shape \[2\]"),
    ],
)
def test_shapes_and_dtypes_are_checked(
    shell: nn.Module, arguments: tuple[Tensor, Tensor], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        shell(*arguments)


def test_uint8_targets_do_not_pass_as_ignored() -> None:
    """As uint8, 156 equals -100."""
    targets = torch.tensor([156], dtype=torch.uint8)
    with pytest.raises(ValueError, match="got 156"):
        SigmoidFocalLoss(ignore_index=-100)(torch.zeros(1), targets)
    with pytest.raises(ValueError, match="got 156"):
        SoftmaxFocalLoss()(torch.zeros(1, 2), targets)


def test_checks_can_be_switched_off() -> None:
    logits, weights = torch.zeros(2), torch.tensor([1.0, -1.0])
    assert SigmoidFocalLoss(validate_targets=False)(logits, torch.tensor([0.0, 2.0])).isfinite()
    assert SigmoidFocalLoss(validate_targets=False)(logits, torch.zeros(2), sample_weight=weights).isfinite()


def test_compiled_shells_read_no_values() -> None:
    compiled = torch.compile(SigmoidFocalLoss(), fullgraph=True, backend="aot_eager")
    assert compiled(torch.zeros(2), torch.tensor([0.0, 2.0])).isfinite()


# --- processes --------------------------------------------------------------------------------------------------------

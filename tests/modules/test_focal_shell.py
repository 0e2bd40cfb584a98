"""The focal losses as modules: equal to the functions, their buffer, what they check and what they refuse."""

from __future__ import annotations

import copy
import inspect
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
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


def test_signatures() -> None:
    """Order and defaults are the contract; what is not in it goes by keyword."""
    expected = {
        SigmoidFocalLoss: {"alpha": 0.25, "gamma": 2.0, "reduction": "mean", "ignore_index": None},
        SoftmaxFocalLoss: {
            "alpha": None,
            "gamma": 2.0,
            "reduction": "mean",
            "ignore_index": -100,
            "background_class": 0,
            "label_smoothing": 0.0,
        },
    }
    for shell, defaults in expected.items():
        parameters = inspect.signature(shell).parameters
        keywords = {"validate_targets": True, "grad_reduction": "mean", "group": None}
        defaults = {**defaults, "gather_distributed": None, **keywords}
        assert {name: parameter.default for name, parameter in parameters.items()} == defaults
        assert list(parameters) == list(defaults)
        assert all(parameters[name].kind is inspect.Parameter.KEYWORD_ONLY for name in keywords)
        forward = inspect.signature(shell.forward).parameters
        assert list(forward) == ["self", "inputs", "targets", "sample_weight"]
        assert forward["sample_weight"].kind is inspect.Parameter.KEYWORD_ONLY


@every_case
def test_configuration_and_repr(case: Case) -> None:
    shell = case.shell()
    assert shell.config == case.config()
    for name in case.config().__dataclass_fields__:
        assert f"{name}={getattr(case.config(), name)!r}" in repr(shell)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@every_case
def test_shell_is_the_function(case: Case, dtype: torch.dtype) -> None:
    logits, targets = case.inputs(dtype=dtype)
    weights = torch.rand(6)
    expected = value_and_grad(case.call, logits, targets, sample_weight=weights)
    assert_close(value_and_grad(case.shell(), logits, targets, sample_weight=weights), expected, rtol=0, atol=0)


@every_case
def test_shell_compiles_without_a_break(case: Case) -> None:
    logits, targets = case.inputs()
    shell = case.shell()
    compiled = torch.compile(shell, fullgraph=True, backend="aot_eager")
    assert_close(value_and_grad(compiled, logits, targets), value_and_grad(shell, logits, targets))


@every_case
def test_shell_under_vmap(case: Case) -> None:
    """Values cannot be read there, so they are not checked."""
    inputs = [case.inputs(seed=seed) for seed in range(2)]
    logits, targets = (torch.stack([pair[i] for pair in inputs]) for i in range(2))
    shell = case.shell()
    gradient = grad(lambda z, y: functional_call(shell, {}, (z, y)))
    expected = torch.stack([value_and_grad(shell, *pair)[1] for pair in inputs])
    assert_close(vmap(gradient)(logits, targets), expected)


@every_case
def test_shell_on_meta_tensors(case: Case) -> None:
    logits, targets = (tensor.to("meta") for tensor in case.inputs())
    loss = case.shell().to("meta")(logits, targets, sample_weight=torch.ones(6, device="meta"))
    assert loss.is_meta


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


@each_loss
def test_gather_without_a_process_group(case: Case) -> None:
    """``True`` is an error, ``None`` and ``False`` compute locally."""
    with pytest.raises(RuntimeError, match="expected an initialised process group, got none"):
        case.shell(gather_distributed=True)(*case.inputs())
    for setting in (None, False):
        assert_close(case.shell(gather_distributed=setting)(*case.inputs()), case.call(*case.inputs()), rtol=0, atol=0)


@pytest.mark.parametrize("gather", [None, False, True])
@every_case
def test_one_rank_computes_locally(case: Case, gather: bool | None, group_of_one: None) -> None:
    expected = value_and_grad(case.call, *case.inputs())
    assert_close(value_and_grad(case.shell(gather_distributed=gather), *case.inputs()), expected, rtol=0, atol=0)


@each_loss
def test_what_happens_to_gradients_is_checked_and_copied(case: Case, group_of_one: None) -> None:
    with pytest.raises(ValueError, match="expected grad_reduction to be one of"):
        case.shell(grad_reduction="max")
    group = torch.distributed.group.WORLD
    shell = case.shell(grad_reduction="sum", group=group)
    for same in (shell, copy.deepcopy(shell)):
        assert same.group is group
        assert same.grad_reduction == "sum"

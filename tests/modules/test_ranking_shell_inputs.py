"""What the ranking shells make of their inputs: precision, overflow, refusals, warnings."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imbalanced_losses import SigmoidFocalLoss, SmoothAPLoss
from tests.modules.ranking_shells import (
    assert_bits,
    called,
    every_case,
    every_class,
    every_loss,
    every_variant,
    float_inputs,
    snapshot,
    stepped,
)
from tests.transforms.cases import CASES, N_ROWS, QUEUE_SIZE, Case, Inputs

# --- precision --------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(case: Case, dtype: torch.dtype) -> None:
    """Arithmetic and queue in float32, the gradient in the logits' dtype."""
    inputs = float_inputs(case)
    half = inputs.logits.to(dtype).requires_grad_()
    shell, exact = case.shell(temperature=0.5), case.shell(temperature=0.5)
    loss = shell(half, inputs.targets)
    loss.backward()
    assert loss.dtype == shell.queue_state.logits.dtype == torch.float32
    assert half.grad is not None
    assert half.grad.dtype == dtype
    assert_bits(loss, exact(half.detach().float(), inputs.targets))
    assert_bits(snapshot(shell), snapshot(exact))


@every_variant
def test_autocast(case: Case) -> None:
    """The loss of float32 logits is the same inside; half logits of an autocast layer train the layer."""
    inputs = float_inputs(case)
    inside, outside = case.shell(temperature=0.5), case.shell(temperature=0.5)
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = called(inside, inputs)
        assert_bits(loss, called(outside, inputs))
        assert_bits(snapshot(inside), snapshot(outside))
    layer = nn.Linear(4, case.num_classes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = layer(torch.randn(N_ROWS, 4))
        loss = inside(logits, inputs.targets)
    loss.backward()
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.isfinite().all()


# --- overflow ---------------------------------------------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_overflowed_step_is_skipped_and_forgotten(case: Case, bad: float) -> None:
    """A real ``GradScaler`` skips the step; the queue keeps its rows as ignored ones, so later losses are finite."""
    torch.manual_seed(0)
    model = nn.Linear(4, case.num_classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    shell, clean = stepped(case, temperature=0.5), stepped(case, temperature=0.5)
    inputs, weights = float_inputs(case, 3), copy.deepcopy(model.state_dict())

    logits = model(torch.randn(N_ROWS, 4))
    logits = torch.where(torch.arange(N_ROWS)[:, None] < 2, bad, logits)
    loss = shell(logits, inputs.targets)
    assert not loss.isfinite()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0
    assert_bits(model.state_dict(), weights)

    ignored = inputs.targets.clone()
    ignored[:2] = -100
    clean(torch.where(logits.isfinite(), logits, 0).detach(), ignored)
    assert shell.queue_state.logits.isfinite().all()
    for seed in range(4, 7):
        later = called(shell, float_inputs(case, seed))
        assert later.isfinite()
        assert_bits(later, called(clean, float_inputs(case, seed)))


# --- value checks -----------------------------------------------------------------------------------------------------

BAD_TARGETS = {
    "binary": [2, -1],
    "multiclass": [3, -1],
    "multilabel": [2, -1],
}


@pytest.fixture(
    params=[(case, bad) for case in CASES for bad in BAD_TARGETS[case.name.split("-")[1]]],
    ids=lambda p: f"{p[0].name}-{p[1]}",
)
def bad_labels(request: pytest.FixtureRequest) -> tuple[Case, Inputs]:
    case, bad = request.param
    inputs = float_inputs(case, 3)
    inputs.targets.flatten()[0] = bad
    return case, inputs


def test_bad_labels_are_refused_and_leave_the_state(bad_labels: tuple[Case, Inputs]) -> None:
    case, inputs = bad_labels
    shell = stepped(case)
    before = snapshot(shell)
    expected = r"\[0, 3\)" if case.num_classes > 1 and not case.multilabel else r"\{0, 1\}"
    with pytest.raises(ValueError, match=rf"expected.*{expected}.*got {inputs.targets.flatten()[0]}"):
        called(shell, inputs)
    assert_bits(snapshot(shell), before)


@every_loss
def test_validate_targets_off_and_compile_read_no_values(case: Case) -> None:
    """The check costs a synchronisation: it can be switched off, and is never part of a compiled graph."""
    inputs = float_inputs(case, 3)
    inputs.targets.flatten()[0] = 7
    assert case.shell(validate_targets=False)(inputs.logits, inputs.targets).isfinite()
    compiled = torch.compile(case.shell(), fullgraph=True, backend="eager")
    assert compiled(inputs.logits, inputs.targets).isfinite()


@every_loss
@pytest.mark.parametrize("bad", [-0.5, torch.nan, torch.inf])
def test_bad_weights_are_refused_and_leave_the_state(case: Case, bad: float) -> None:
    shell = stepped(case)
    before = snapshot(shell)
    inputs = float_inputs(case, 3)
    inputs.sample_weight[1] = bad
    with pytest.raises(ValueError, match=r"expected.*sample_weight.*got"):
        called(shell, inputs)
    assert_bits(snapshot(shell), before)


@every_loss
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": torch.zeros(6, 5)}, ValueError, r"expected logits of shape \[N, \d\], got \[6, 5\]"),
        ({"logits": torch.zeros(6, 3).long()}, TypeError, "int64"),
        ({"targets": torch.zeros(4).long()}, ValueError, r"expected targets of shape \[6.*\], got \[4\]"),
        ({"iid_mask": torch.zeros(6)}, TypeError, "iid_mask.*bool.*float32"),
        ({"iid_mask": torch.zeros(5).bool()}, ValueError, r"iid_mask.*\[6\].*\[5\]"),
        ({"sample_weight": torch.zeros(6, 2)}, ValueError, r"sample_weight.*\[6\].*\[6, 2\]"),
        ({"targets": torch.zeros(6, 3, 2).long()}, ValueError, "targets"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_bad_shapes_and_dtypes_are_refused_and_leave_the_state(
    case: Case, change: dict[str, Tensor], error: type[Exception], message: str
) -> None:
    shell = stepped(case)
    before = snapshot(shell)
    inputs = Inputs(**{**vars(float_inputs(case, 3)), **change})
    with pytest.raises(error, match=message):
        called(shell, inputs)
    assert_bits(snapshot(shell), before)


@every_class
@pytest.mark.parametrize(
    "setting",
    [
        {"num_classes": 0},
        {"queue_size": -1},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"reduction": "median"},
        {"max_pool_size": 0},
        {"num_classes": 1.5},
        {"queue_size": "1024"},
    ],
    ids=str,
)
def test_bad_settings_are_refused_at_construction(shell_class: type, setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises((ValueError, TypeError), match=name):
        shell_class(**{"num_classes": 1, **setting})


# --- warnings, gathering, repr ----------------------------------------------------------------------------------------


@every_class
def test_subsampling_warns_once(shell_class: type) -> None:
    shell = shell_class(1, queue_size=16, max_pool_size=12)
    logits, targets = torch.randn(8), (torch.arange(8) % 2).long()
    with pytest.warns(UserWarning, match="max_pool_size"):
        shell(logits, targets)
    for _ in range(3):
        assert shell(logits, targets).isfinite()  # warnings are errors here


@every_class
def test_a_pool_that_fits_does_not_warn(shell_class: type) -> None:
    shell = shell_class(1, queue_size=4, max_pool_size=12)
    logits, targets = torch.randn(8), (torch.arange(8) % 2).long()
    limited, unlimited = shell(logits, targets), shell_class(1, queue_size=4)(logits, targets)
    assert_bits(limited, unlimited)


@every_class
def test_subsampling_does_not_warn_under_compile(shell_class: type) -> None:
    compiled = torch.compile(shell_class(1, queue_size=16, max_pool_size=12), fullgraph=True, backend="eager")
    assert compiled(torch.randn(8), (torch.arange(8) % 2).long()).isfinite()


@every_class
def test_gather_without_a_process_group(shell_class: type) -> None:
    """``True`` is an error, ``None`` and ``False`` compute locally."""
    logits, targets = torch.randn(8), (torch.arange(8) % 2).long()
    shell = shell_class(1, queue_size=4, gather_distributed=True)
    with pytest.raises(RuntimeError, match="process group"):
        shell(logits, targets)
    assert_bits(snapshot(shell), snapshot(shell_class(1, queue_size=4)))
    for setting in (None, False):
        assert shell_class(1, queue_size=4, gather_distributed=setting)(logits, targets).isfinite()


@pytest.mark.parametrize("gather", [None, False, True])
@every_class
def test_one_rank_computes_locally(shell_class: type, gather: bool | None, group_of_one: None) -> None:
    logits, targets = torch.randn(8), (torch.arange(8) % 2).long()
    shell, alone = (shell_class(1, queue_size=4, gather_distributed=setting) for setting in (gather, False))
    assert_bits(shell(logits, targets), alone(logits, targets))
    assert_bits(snapshot(shell), snapshot(alone))


@every_class
def test_what_happens_to_gradients_is_checked_and_copied(shell_class: type, group_of_one: None) -> None:
    with pytest.raises(ValueError, match="expected grad_reduction to be one of"):
        shell_class(1, grad_reduction="max")
    group = torch.distributed.group.WORLD
    shell = shell_class(1, grad_reduction="sum", group=group)
    for same in (shell, copy.deepcopy(shell)):
        assert same.group is group
        assert same.grad_reduction == "sum"


def test_compiled_shells_gather_no_less_than_eager_ones() -> None:
    """A compiled shell must not quietly leave out what an eager one refuses to leave out."""
    logits, targets = torch.randn(6), torch.arange(6) % 2
    for shell in (SmoothAPLoss(1, gather_distributed=True), SigmoidFocalLoss(gather_distributed=True)):
        with pytest.raises(Exception, match=r"initialised process group|Observed exception"):
            torch.compile(shell, fullgraph=True, backend="eager")(logits, targets)


@every_case
def test_repr_names_the_settings(case: Case) -> None:
    shell = case.shell(temperature=0.5)
    text = repr(shell)
    assert text.startswith(type(shell).__name__)
    for setting in (f"num_classes={case.num_classes}", f"queue_size={QUEUE_SIZE}", "temperature=0.5"):
        assert setting in text
    for name, value in case.options.items():
        assert f"{name}={value!r}" in text
    shell.temperature = 0.125
    assert "temperature=0.125" in repr(shell)


@every_class
def test_a_module_without_trouble_in_containers(shell_class: type) -> None:
    """``apply``, ``zero_grad``, ``requires_grad_``, ``named_modules``, ``to("meta")`` of a parent meet nothing odd."""
    parent = nn.Sequential(nn.Linear(2, 1), shell_class(1))
    parent.apply(lambda module: module.train())
    parent.zero_grad()
    parent.requires_grad_(False)
    assert [name for name, _ in parent.named_modules()] == ["", "0", "1"]
    assert all(buffer.is_meta for buffer in parent.to("meta").buffers())

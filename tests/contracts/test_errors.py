"""Every documented error says what was expected and what came, and leaves the state as it was."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from imbalanced_losses import SigmoidFocalConfig, init_queue
from imbalanced_losses.losses._ranking import RankingConfig
from tests.contracts.cases import Case, example, over
from tests.registry import BAD_RANKING, RANKING
from tests.strategies import KINDS

Arguments = dict[str, Any]


def replaced(**changes: Any) -> Callable[[Arguments], Arguments]:
    return lambda arguments: {**arguments, **changes}


def changed(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Arguments], Arguments]:
    return lambda arguments: {**arguments, name: change(arguments[name])}


def labelled(row: Any, label: float) -> Callable[[Tensor], Tensor]:
    def change(targets: Tensor) -> Tensor:
        targets = targets.clone() if isinstance(label, int) else targets.double()
        targets[row] = label
        return targets

    return change


Mistake = tuple[str, Callable[[Arguments], Arguments], type[Exception], str]

# shapes, dtypes, devices: function and shell both look. Problems have 14 rows; multi-class and multi-label 3 classes.
STRUCTURE: list[Mistake] = [
    (
        "multiclass",
        changed("logits", lambda x: x[:, :2]),
        ValueError,
        r"expected logits of shape \[N, 3\], got \[14, 2\]",
    ),
    ("multiclass", changed("logits", lambda x: x[:, 0]), ValueError, r"expected logits of shape \[N, 3\], got \[14\]"),
    (
        "binary",
        changed("logits", lambda x: x[None]),
        ValueError,
        r"expected logits of shape \[N, 1\], got \[1, 14, 1\]",
    ),
    ("binary", changed("logits", lambda x: x[0, 0]), ValueError, r"expected logits of shape \[N, 1\], got \[\]"),
    ("binary", changed("logits", lambda x: x.long()), TypeError, r"expected floating-point logits, got torch.int64"),
    ("binary", changed("logits", lambda x: x.bool()), TypeError, r"expected floating-point logits, got torch.bool"),
    (
        "binary",
        changed("logits", lambda x: x.to(torch.complex64)),
        TypeError,
        r"expected .*logits, got torch.complex64",
    ),
    *[
        ("binary", changed(name, lambda x: x.tolist()), TypeError, rf"expected {name} to be a Tensor, got list")
        for name in ("logits", "targets", "iid_mask", "sample_weight")
    ],
    ("binary", changed("targets", lambda x: x[:5]), ValueError, r"expected targets of shape \[14\], got \[5\]"),
    ("binary", changed("targets", lambda x: x[None]), ValueError, r"expected targets of shape \[14\], got \[1, 14\]"),
    ("multiclass", changed("targets", lambda x: x[:, None].expand(14, 3)), ValueError, r"shape \[14\], got \[14, 3\]"),
    (
        "multilabel",
        changed("targets", lambda x: x[:, 0]),
        ValueError,
        r"expected targets of shape \[14, 3\], got \[14\]",
    ),
    ("multilabel", changed("targets", lambda x: x[:, :2]), ValueError, r"shape \[14, 3\], got \[14, 2\]"),
    (
        "multiclass",
        changed("targets", lambda x: x.float()),
        TypeError,
        r"expected integer .*targets, got torch.float32",
    ),
    ("multiclass", changed("targets", lambda x: x > 0), TypeError, r"expected integer .*targets, got torch.bool"),
    (
        "binary",
        changed("targets", lambda x: x.to(torch.complex64)),
        TypeError,
        r"expected .*targets, got torch.complex64",
    ),
    ("binary", changed("targets", lambda x: x.to("meta")), ValueError, r"expected targets on cpu.*, got meta"),
    ("binary", changed("iid_mask", lambda x: x[:3]), ValueError, r"expected iid_mask of shape \[14\], got \[3\]"),
    (
        "binary",
        changed("iid_mask", lambda x: x[None]),
        ValueError,
        r"expected iid_mask of shape \[14\], got \[1, 14\]",
    ),
    (
        "multiclass",
        changed("iid_mask", lambda x: x[:, None]),
        ValueError,
        r"expected iid_mask of shape \[14\], got \[14, 1\]",
    ),
    (
        "multilabel",
        changed("sample_weight", lambda x: x[:, None]),
        ValueError,
        r"expected sample_weight of shape \[14\], got \[14, 1\]",
    ),
    ("binary", changed("iid_mask", lambda x: x.long()), TypeError, r"expected iid_mask .*torch.bool, got torch.int64"),
    ("binary", changed("iid_mask", lambda x: x.to("meta")), ValueError, r"expected iid_mask on cpu.*, got meta"),
    (
        "binary",
        changed("sample_weight", lambda x: x[:3]),
        ValueError,
        r"expected sample_weight of shape \[14\], got \[3\]",
    ),
    ("multilabel", changed("sample_weight", lambda x: x[:, None].expand(14, 3)), ValueError, r"\[14\], got \[14, 3\]"),
    ("binary", changed("sample_weight", lambda x: x.bool()), TypeError, r"expected sample_weight .*, got torch.bool"),
    (
        "binary",
        changed("sample_weight", lambda x: x.to(torch.complex64)),
        TypeError,
        r"sample_weight .*, got torch.complex64",
    ),
    (
        "binary",
        changed("sample_weight", lambda x: x.to("meta")),
        ValueError,
        r"expected sample_weight on cpu.*, got meta",
    ),
]

# values: only the shell looks
VALUES: list[Mistake] = [
    ("binary", changed("targets", labelled(2, 2)), ValueError, r"expected labels in \{0, 1\}.*, got 2"),
    ("binary", changed("targets", labelled(2, -1)), ValueError, r"expected labels in \{0, 1\}.*, got -1"),
    ("binary", changed("targets", labelled(2, 0.5)), ValueError, r"expected labels in \{0, 1\}.*, got 0.5"),
    ("binary", changed("targets", labelled(2, float("nan"))), ValueError, r"expected labels in \{0, 1\}.*, got nan"),
    (
        "binary",
        changed("targets", lambda x: x.byte()),
        ValueError,
        r"expected labels in \{0, 1\}.*, got 156",
    ),  # was -100
    ("multiclass", changed("targets", labelled(2, 3)), ValueError, r"expected class ids in \[0, 3\).*, got 3"),
    ("multiclass", changed("targets", labelled(2, -1)), ValueError, r"expected class ids in \[0, 3\).*, got -1"),
    ("multilabel", changed("targets", labelled((2, 1), 2)), ValueError, r"expected labels in \{0, 1\}.*, got 2"),
    ("multilabel", changed("targets", labelled((2, 1), 0.5)), ValueError, r"expected labels in \{0, 1\}.*, got 0.5"),
    ("binary", changed("sample_weight", lambda x: -x), ValueError, r"expected .*sample_weight >= 0, got -"),
    (
        "binary",
        changed("sample_weight", lambda x: x * float("nan")),
        ValueError,
        r"expected finite sample_weight.*, got nan",
    ),
    ("binary", changed("sample_weight", lambda x: x / 0), ValueError, r"expected finite sample_weight.*, got inf"),
]

# only the functions take these
FUNCTION: list[Mistake] = [
    ("binary", replaced(temperature=0.0), ValueError, r"expected temperature .*above 0, got 0"),
    ("binary", replaced(temperature=-1.0), ValueError, r"expected temperature .*above 0, got -1"),
    ("binary", replaced(temperature=float("nan")), ValueError, r"expected temperature .*, got nan"),
    ("binary", replaced(temperature=1e-60), ValueError, r"expected temperature .*float32.*, got 1e-60"),
    ("binary", replaced(temperature=1e39), ValueError, r"expected temperature .*float32.*, got 1e\+39"),
    ("binary", replaced(temperature=torch.ones(2)), ValueError, r"expected temperature .*0-dim.*, got .*\[2\]"),
    ("multiclass", replaced(queue_state=init_queue(4, 2)), ValueError, r"expected .*3.*, got .*2"),
    (
        "multiclass",
        replaced(queue_state=init_queue(4, 3, multilabel=True)),
        ValueError,
        r"expected .*queue.*, got .*\[4, 3\]",
    ),
    ("multilabel", replaced(queue_state=init_queue(4, 3)), ValueError, r"expected .*queue.*, got "),
    ("binary", replaced(queue_state=init_queue(4, 1, device="meta")), ValueError, r"expected .*cpu.*, got .*meta"),
    ("binary", replaced(queue_state=None), TypeError, r"expected queue_state .*QueueState, got None"),
    ("binary", replaced(cfg=SigmoidFocalConfig()), TypeError, r"expected cfg to be a .*, got SigmoidFocalConfig"),
    ("binary", replaced(cfg=RankingConfig(num_classes=1)), TypeError, r"expected cfg to be a .*, got RankingConfig"),
]


def arguments_of(case: Case, kind: str) -> Arguments:
    problem = example(kind)
    return {
        "logits": problem.logits,
        "targets": problem.targets,
        "queue_state": problem.state,
        "iid_mask": problem.iid_mask,
        "sample_weight": problem.sample_weight,
        "cfg": case.config(problem),
    }


def table(mistakes: list[Mistake]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        ("kind", "mistake", "error", "message"), mistakes, ids=[f"{m[0]}: {m[3]}" for m in mistakes]
    )


@over["losses"]
@table(STRUCTURE + FUNCTION)
def test_function(
    case: Case, kind: str, mistake: Callable[[Arguments], Arguments], error: type[Exception], message: str
) -> None:
    for function in (case.loss.function, case.loss.per_class):
        with pytest.raises(error, match=message):
            function(**mistake(arguments_of(case, kind)))


@over["losses"]
@table(STRUCTURE + VALUES)
def test_shell(
    case: Case, kind: str, mistake: Callable[[Arguments], Arguments], error: type[Exception], message: str
) -> None:
    """The shell raises too, and its buffers are the ones it had."""
    good = {key: value for key, value in arguments_of(case, kind).items() if key not in ("queue_state", "cfg")}
    shell = case.shell(example(kind))
    shell(**good)
    before = {name: buffer.clone() for name, buffer in shell.named_buffers()}
    assert len(before) >= 6
    for flags in ({}, {"return_per_class": True}):
        with pytest.raises(error, match=message):
            shell(**mistake(good), **flags)
    after = dict(shell.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    shell(**good)  # and it still works


@pytest.mark.parametrize("loss", RANKING)
@pytest.mark.parametrize("other", RANKING)
def test_each_loss_wants_its_own_config(loss: str, other: str) -> None:
    problem = example("binary")
    cfg = RANKING[other].config(num_classes=1)
    for function in (RANKING[loss].function, RANKING[loss].per_class):
        if loss == other:
            function(problem.logits, problem.targets, problem.state, cfg)
        else:
            expected = rf"expected cfg to be a {RANKING[loss].config.__name__}, got {RANKING[other].config.__name__}"
            with pytest.raises(TypeError, match=expected):
                function(problem.logits, problem.targets, problem.state, cfg)


@over["losses"]
def test_structure_is_checked_also_without_validation(case: Case) -> None:
    problem = example("binary")
    shell = case.shell(problem, validate_targets=False)
    for logits, error in ((problem.logits.tolist(), TypeError), (torch.tensor(0.0), ValueError)):
        with pytest.raises(error, match="expected logits"):
            shell(logits, problem.targets)


@over["losses"]
def test_validation_can_be_switched_off(case: Case) -> None:
    problem = example("binary")
    shell = case.shell(problem, validate_targets=False)
    assert shell(problem.logits, problem.targets.masked_fill(problem.targets == 1, 2)).isfinite()


@over["losses"]
@over["kinds"]
def test_ignore_index_is_not_a_wrong_label(case: Case, kind: str) -> None:
    problem = example(kind)
    for ignore_index in (-100, 255, -1):
        targets = problem.targets.masked_fill(problem.targets == -100, ignore_index)
        assert case.shell(problem, ignore_index=ignore_index)(problem.logits, targets).isfinite()
        if ignore_index != -100:
            with pytest.raises(ValueError, match=rf"ignore_index={ignore_index}, got -100"):
                case.shell(problem, ignore_index=ignore_index)(problem.logits, problem.targets)


# --- configuration ----------------------------------------------------------------------------------------------------

BAD_CONFIGS = [(name, *bad) for name, loss in RANKING.items() for bad in (*BAD_RANKING, *loss.bad)]


@pytest.mark.parametrize(("loss", "name", "value", "error"), BAD_CONFIGS)
def test_configuration(loss: str, name: str, value: Any, error: type[Exception]) -> None:
    """Checked when the config is built, and so when the shell is."""
    message = rf"expected .*{name}.*, got .*{re.escape(str(value))}"
    for build in (RANKING[loss].config, RANKING[loss].shell):
        with pytest.raises(error, match=message):
            build(**{"num_classes": 2, name: value})


@pytest.mark.parametrize("loss", RANKING)
def test_queue_size(loss: str) -> None:
    with pytest.raises(ValueError, match=r"expected queue_size .*, got -1"):
        RANKING[loss].shell(num_classes=1, queue_size=-1)
    with pytest.raises(TypeError, match=r"expected queue_size .*, got 2.5"):
        RANKING[loss].shell(num_classes=1, queue_size=2.5)


def test_init_queue() -> None:
    with pytest.raises(ValueError, match=r"expected queue_size .*, got -1"):
        init_queue(-1, 1)
    with pytest.raises(ValueError, match=r"expected num_classes .*, got 0"):
        init_queue(1, 0)
    with pytest.raises(TypeError, match=r"expected .*dtype, got torch.int64"):
        init_queue(1, 1, dtype=torch.int64)


@pytest.mark.parametrize("loss", RANKING)
def test_configs_are_frozen_and_keyword_only(loss: str) -> None:
    config = RANKING[loss].config(num_classes=2)
    with pytest.raises(AttributeError):
        config.temperature = 1.0
    with pytest.raises(TypeError):
        RANKING[loss].config(2)
    assert config == RANKING[loss].config(num_classes=2)
    assert hash(config) == hash(RANKING[loss].config(num_classes=2))
    with pytest.raises(TypeError):
        RANKING[loss].config()  # num_classes is required


def test_kinds_of_mistakes_cover_every_kind_of_targets() -> None:
    for mistakes in (STRUCTURE, VALUES, FUNCTION):
        assert {mistake[0] for mistake in mistakes} == set(KINDS)

"""Logit-adjusted cross-entropy: torch's own losses, its priors, and what it refuses besides what every loss does."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import LogitAdjustedConfig, class_priors, init_class_counts, logit_adjusted, update_class_counts
from tests.compiled.worker import code_for
from tests.contracts.elements import Case, case_named, cases_of, value_and_grad
from tests.registry import COUNTS, ELEMENTWISE, Elements

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

IGNORE = -100


every_case = pytest.mark.parametrize("case", cases_of("logit_adjusted"), ids=str)


def new_case(rest: tuple[int, ...], options: dict[str, Any], soft: bool = False) -> Case:
    own = Elements(options, rest, labels=bool(options.get("multilabel")), soft=soft)
    return Case("", ELEMENTWISE["logit_adjusted"], own)


# --- values -----------------------------------------------------------------------------------------------------------


def test_numbers_by_hand() -> None:
    cfg = LogitAdjustedConfig(priors=[9, 1], reduction="none")
    rows = torch.zeros(2, 2), torch.tensor([0, 1])
    assert_close(logit_adjusted(*rows, cfg), -torch.tensor([0.9, 0.1]).log())
    assert_close(logit_adjusted(torch.zeros(2), rows[1], cfg), -torch.tensor([0.9, 0.1]).log())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("rest", [(4,), (4, 3), (4, 2, 3)])
def test_softmax_against_torch(rest: tuple[int, ...], smoothing: float) -> None:
    """``tau=1``: balanced softmax, by torch's cross-entropy; ``tau=gamma=0`` is the cross-entropy itself."""
    case = new_case(rest, {"priors": COUNTS, "label_smoothing": smoothing})
    logits, targets = case.inputs()
    shares = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    adjusted = logits + shares.log().reshape(-1, *[1] * (len(rest) - 1))
    assert_close(case.call(logits, targets), F.cross_entropy(adjusted, targets, label_smoothing=smoothing))
    assert_close(case.call(logits, targets, tau=0), F.cross_entropy(logits, targets, label_smoothing=smoothing))


def test_binary_against_torch() -> None:
    case = new_case((4,), {"priors": (0.6, 0.02, 0.1, 0.5), "multilabel": True}, soft=True)
    logits, targets = case.inputs()
    targets.view(-1)[:1] = 0.3
    log_odds = torch.tensor(case.own.options["priors"], dtype=torch.float64).logit()
    assert_close(case.call(logits, targets), F.binary_cross_entropy_with_logits(logits + log_odds, targets))
    assert_close(case.call(logits, targets, tau=0), F.binary_cross_entropy_with_logits(logits, targets))


def test_two_classes_are_one_binary_logit() -> None:
    logits, targets = new_case((2,), {}).inputs()
    targets[0] = 1
    cfg = LogitAdjustedConfig(priors=(30, 70), tau=0.8)
    pair = logit_adjusted(logits, targets, cfg)
    assert_close(logit_adjusted(logits[:, 1] - logits[:, 0], targets, cfg), pair)
    assert_close(logit_adjusted(logits[:, 1] - logits[:, 0], targets, LogitAdjustedConfig(priors=0.7, tau=0.8)), pair)


def test_scale_of_the_priors_does_not_count() -> None:
    logits, targets = case_named("logit_adjusted_vs").inputs()
    expected = value_and_grad(case_named("logit_adjusted_vs").call, logits, targets)
    assert_close(
        value_and_grad(case_named("logit_adjusted_vs").call, logits, targets, priors=(4e6, 3e6, 2e6, 1e6)), expected
    )


def test_labels_between_interpolate_the_factor() -> None:
    cfg = LogitAdjustedConfig(priors=0.2, gamma=1.0, tau=0.0)  # factors 1/4 and 1
    loss = logit_adjusted(torch.tensor([2.0]), torch.tensor([0.6]), cfg)
    factor = 0.6 * 0.25 + 0.4
    assert_close(loss, F.binary_cross_entropy_with_logits(torch.tensor([2 * factor]), torch.tensor([0.6])))


def test_binary_targets_without_the_class_axis() -> None:
    case = case_named("logit_adjusted_binary_vs")
    logits, targets = case.inputs()
    assert_close(case.call(logits, targets[:, 0].long()), case.call(logits, targets))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, lambda v: torch.tensor(v, dtype=torch.float64)])
def test_priors_of_any_sequence(kind: Any) -> None:
    assert LogitAdjustedConfig(priors=kind(COUNTS)).priors == COUNTS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@every_case
def test_priors_as_an_argument(case: Case, dtype: torch.dtype) -> None:
    priors = torch.tensor(case.config().priors)
    if dtype == torch.int64 and max(case.config().priors or ()) <= 1:
        return
    logits, targets = case.inputs(dtype=torch.float32)
    cfg = case.config(priors=None)
    assert_close(logit_adjusted(logits, targets, cfg, priors=priors.to(dtype)), case.call(logits, targets))


# --- extremes ---------------------------------------------------------------------------------------------------------


def test_a_class_that_is_ruled_out() -> None:
    logits, targets = case_named("logit_adjusted").inputs()
    logits[:, 3], targets[targets == 3] = -torch.inf, 0
    loss, gradient = value_and_grad(case_named("logit_adjusted").call, logits, targets)
    assert loss.isfinite()
    assert (gradient[:, 3] == 0).all()
    assert_close(loss, new_case((3,), {"priors": COUNTS[:3]}).call(logits[:, :3], targets))


# --- weights ----------------------------------------------------------------------------------------------------------


# --- derivatives and transforms ---------------------------------------------------------------------------------------


def test_priors_carry_no_tangent() -> None:
    logits, targets, priors = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([0.5, 0.3, 0.2])
    cfg = LogitAdjustedConfig(gamma=0.5)
    _, pushed = jvp(lambda pi: logit_adjusted(logits, targets, cfg, priors=pi), (priors,), (torch.rand(3),))
    assert pushed == 0


def test_vmap_over_priors() -> None:
    logits, targets = case_named("logit_adjusted_vs").inputs()
    priors = torch.rand(3, 4, dtype=torch.float64)
    cfg = case_named("logit_adjusted_vs").config(priors=None)
    mapped = vmap(lambda p: logit_adjusted(logits, targets, cfg, priors=p))(priors)
    assert_close(mapped, torch.stack([logit_adjusted(logits, targets, cfg, priors=p) for p in priors]))


def step(z: Tensor, ids: Tensor, labels: Tensor, counts: Any) -> Any:
    """Every path of the loss, and both ways to count, at sizes that the compiler splits over threads."""
    softmax = LogitAdjustedConfig(gamma=0.2, label_smoothing=0.1)
    multilabel = LogitAdjustedConfig(gamma=0.2, multilabel=True)
    counts = update_class_counts(counts, ids)
    labelled = update_class_counts(init_class_counts(10), labels, multilabel=True)
    loss = logit_adjusted(z, ids, softmax, priors=class_priors(counts))
    loss = loss + logit_adjusted(z, labels, multilabel, priors=class_priors(labelled))
    return loss + logit_adjusted(z[:, 0], labels[:, 0], LogitAdjustedConfig(priors=0.1)), counts, labelled


@pytest.mark.exhaustive  # tests/compiled has the module and the function
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_default_backend_is_eager_mode(threads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 10, generator=generator)
    ids = torch.randint(0, 10, (2000,), generator=generator)
    labels = torch.rand(2000, 10, generator=generator).round()
    ids[::7], labels[::7] = IGNORE, IGNORE
    leaves = [z.clone().requires_grad_() for _ in range(2)]
    expected, *states = step(leaves[0], ids, labels, init_class_counts(10))
    expected.backward()
    with code_for(threads):
        loss, *compiled_states = torch.compile(step, fullgraph=True)(leaves[1], ids, labels, init_class_counts(10))
        loss.backward()
    assert_close(loss, expected)
    assert_close(leaves[1].grad, leaves[0].grad, rtol=1e-5, atol=1e-8)
    for state, compiled in zip(states, compiled_states, strict=True):
        assert torch.equal(state.positives, compiled.positives)
        assert torch.equal(state.labels, compiled.labels)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"tau": -1.0}, ValueError, "expected tau to be a finite number of at least 0"),
        ({"gamma": math.inf}, ValueError, "expected gamma"),
        ({"reduction": "max"}, ValueError, "expected reduction to be one of"),
        ({"label_smoothing": 2}, ValueError, "expected label_smoothing in"),
        ({"label_smoothing": 0.1, "multilabel": True}, ValueError, "smooth the targets"),
        ({"multilabel": 1}, TypeError, "expected multilabel to be True or False"),
        ({"ignore_index": 0.5}, TypeError, "expected ignore_index to be an int"),
        ({"priors": (1, -1)}, ValueError, "expected every weight in priors"),
        ({"priors": (0, 0)}, ValueError, "expected priors with a class above 0"),
        ({"priors": ()}, ValueError, "expected priors with a class above 0"),
        ({"priors": "stream"}, TypeError, "expected priors to be a sequence of numbers"),
        ({"priors": torch.ones(2, 2)}, ValueError, r"expected priors of shape \[C\], got \[2, 2\]"),
        ({"priors": torch.ones(2, requires_grad=True)}, TypeError, "detach"),
        ({"priors": (5, 3), "multilabel": True}, ValueError, "divide the number of positives"),
        ({"priors": 7}, ValueError, "divide the number of positives"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LogitAdjustedConfig(**settings)


ROWS, IDS = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ROWS, IDS), {}, ValueError, "expected priors, got none: give class counts"),
        ((ROWS, IDS), {"priors": torch.ones(2)}, ValueError, r"expected priors of shape \[3\], got \[2\]"),
        ((ROWS[:, 0], IDS), {"priors": torch.ones(3)}, ValueError, r"expected priors of shape \[1\], or \[2\]"),
        ((ROWS, IDS), {"priors": [1, 1, 1]}, TypeError, "expected priors to be a Tensor"),
        ((ROWS, IDS), {"priors": torch.ones(3, device="meta")}, ValueError, "expected priors on cpu like the logits"),
        ((ROWS.long(), IDS), {"priors": torch.ones(3)}, TypeError, "expected floating-point logits"),
        ((ROWS, IDS.float()), {"priors": torch.ones(3)}, TypeError, "use targets.long()"),
        ((ROWS, IDS[:2]), {"priors": torch.ones(3)}, ValueError, r"expected targets of shape \[4\]"),
        ((ROWS[:, 0], ROWS), {"priors": torch.ones(1)}, ValueError, r"expected targets of shape \[4\]"),
        ((ROWS, IDS), {"priors": torch.ones(3), "sample_weight": IDS[:2]}, ValueError, "expected sample_weight"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        logit_adjusted(*arguments, LogitAdjustedConfig(), **options)
    with pytest.raises(TypeError, match="expected cfg to be a LogitAdjustedConfig"):
        logit_adjusted(ROWS, IDS, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="smooth the targets"):
        logit_adjusted(ROWS[:, 0], IDS, LogitAdjustedConfig(priors=0.5, label_smoothing=0.1))


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_rarer_classes_need_a_larger_margin() -> None:
    """The loss of a tie grows as the target's class gets rarer."""
    cfg = LogitAdjustedConfig(priors=COUNTS, reduction="none")
    losses = logit_adjusted(torch.zeros(4, 4), torch.arange(4), cfg).tolist()
    assert all(frequent < rare for frequent, rare in pairwise(losses))

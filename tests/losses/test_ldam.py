"""The LDAM loss: the paper's formula in NumPy, torch's own losses, and the contract of every loss."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.func import jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import (
    LDAMConfig,
    LDAMLoss,
    class_weights,
    deferred_weights,
    init_class_counts,
    ldam,
    update_class_counts,
)
from tests.compiled.processes import run_python
from tests.losses import reference as written_down

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")

IGNORE = -100
COUNTS = (700, 250, 49, 1)


@dataclass(frozen=True)
class Case:
    """The loss in one configuration, for logits ``[N, *rest]``."""

    name: str
    rest: tuple[int, ...] = (4,)
    options: Mapping[str, Any] = field(default_factory=dict)
    soft: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def is_binary(self) -> bool:
        return not self.rest or self.rest[0] == 1

    def config(self, **changes: Any) -> LDAMConfig:
        return LDAMConfig(**{**self.options, **changes})

    def call(self, logits: Tensor, targets: Tensor, *, weight: Tensor | None = None, **changes: Any) -> Tensor:
        return ldam(logits, targets, self.config(**changes), sample_weight=weight)

    def inputs(self, n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Cosines, and targets of which the first is ignored."""
        generator = torch.Generator().manual_seed(seed)
        logits = 2 * torch.rand(n, *self.rest, generator=generator, dtype=torch.float64) - 1
        if self.is_binary:
            targets = torch.rand(n, *self.rest, generator=generator, dtype=torch.float64)
            targets = targets if self.soft else targets.round()
        else:
            targets = torch.randint(0, self.rest[0], (n, *self.rest[1:]), generator=generator)
        targets.view(-1)[:1] = IGNORE
        return logits.to(dtype), targets


CASES = [
    Case("softmax", (4,), {"counts": COUNTS}),
    Case("small-scale", (4,), {"counts": COUNTS, "scale": 1.0, "max_margin": 2.0}),
    Case("weighted", (4,), {"counts": COUNTS, "scale": 4.0, "class_weights": (0.1, 0.4, 1.5, 2.0)}),
    Case("dense", (4, 2, 3), {"counts": (0.4, 0.3, 0.2, 0.1), "scale": 5.0, "class_weights": (1, 0, 2, 3)}),
    Case("unseen", (4,), {"counts": (10, 0, 5, 5), "scale": 3.0}),
    Case("no-margin", (4, 3), {"counts": COUNTS, "max_margin": 0.0, "scale": 3.0}),
    Case("binary", (), {"counts": (190, 10)}),
    Case("one-column", (1,), {"counts": (10, 30), "scale": 2.0, "class_weights": (0.5, 1.5)}),
    Case("soft", (1, 3), {"counts": (0.9, 0.1), "scale": 4.0, "class_weights": (0.5, 1.5)}, soft=True),
]
every_case = pytest.mark.parametrize("case", CASES, ids=str)


def reference(case: Case, logits: Tensor, targets: Tensor, **changes: Any) -> Tensor:
    return torch.from_numpy(written_down.ldam(logits.double().numpy(), targets.numpy(), case.config(**changes)))


def value_and_grad(case: Case, logits: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.clone().requires_grad_()
    loss = case.call(leaf, targets, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


# --- values -----------------------------------------------------------------------------------------------------------


@every_case
def test_it_is_the_papers_formula(case: Case) -> None:
    logits, targets = case.inputs(n=9)
    expected = reference(case, logits, targets)
    assert_close(case.call(logits, targets, reduction="none"), expected, rtol=1e-9, atol=1e-9)
    assert_close(case.call(logits, targets, reduction="sum"), expected.sum())
    assert_close(case.call(logits, targets), expected.sum() / (targets != IGNORE).sum())


def test_numbers_by_hand() -> None:
    """Margins 0.25 and 0.5, as 16^(1/4) = 2."""
    cfg = LDAMConfig(counts=(1600, 100), scale=2.0, reduction="none")
    loss = ldam(torch.tensor([[0.5, 0.0], [0.0, 0.5]]), torch.tensor([0, 1]), cfg)
    assert_close(loss, torch.tensor([math.log(1 + math.exp(-0.5)), math.log(2)]))
    assert_close(ldam(torch.tensor([-0.5, 0.5]), torch.tensor([0, 1]), cfg), loss)


@pytest.mark.parametrize("rest", [(4,), (4, 3), (4, 2, 3)])
def test_without_a_margin_it_is_the_cross_entropy_of_scaled_logits(rest: tuple[int, ...]) -> None:
    case = Case("", rest, {"counts": COUNTS, "max_margin": 0, "scale": 7})
    logits, targets = case.inputs()
    assert_close(case.call(logits, targets), F.cross_entropy(7 * logits, targets))
    weights = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    own = case.call(logits, targets, class_weights=weights, reduction="sum")
    assert_close(own, F.cross_entropy(7 * logits, targets, weight=weights, reduction="sum"))


def test_without_a_margin_binary() -> None:
    case = Case("", (3,), {"counts": (9, 1), "max_margin": 0, "scale": 7}, soft=True)
    logits, targets = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    assert_close(case.call(logits, targets), F.binary_cross_entropy_with_logits(7 * logits, targets))


def test_two_classes_are_one_binary_logit() -> None:
    logits, targets = Case("", (2,)).inputs()
    targets[0] = 1
    cfg = LDAMConfig(counts=(30, 70), scale=3.0, class_weights=(2, 0.5))
    assert_close(ldam(logits[:, 1] - logits[:, 0], targets, cfg), ldam(logits, targets, cfg))
    column = (logits[:, 1:] - logits[:, :1]).unflatten(1, (1, 1))
    assert_close(ldam(column, targets[:, None], cfg), ldam(logits, targets, cfg))


def test_scale_of_the_counts_does_not_count() -> None:
    logits, targets = CASES[0].inputs()
    expected = value_and_grad(CASES[0], logits, targets)
    assert_close(value_and_grad(CASES[0], logits, targets, counts=[count / 1000 for count in COUNTS]), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
@every_case
def test_counts_and_weights_as_arguments(case: Case, dtype: torch.dtype) -> None:
    cfg = case.config()
    assert cfg.counts is not None
    counts = torch.tensor(cfg.counts)
    if dtype == torch.int64 and counts.max() < 1:
        counts = counts * 10
    weights = None if cfg.class_weights is None else torch.tensor(cfg.class_weights)
    logits, targets = case.inputs(dtype=torch.float32)
    bare = case.config(counts=None, class_weights=None)
    own = ldam(logits, targets, bare, counts=counts.round(decimals=4).to(dtype), class_weights=weights)
    assert_close(own, case.call(logits, targets))


def test_counts_of_a_stream() -> None:
    targets = torch.tensor([0] * 16 + [1])
    counts = update_class_counts(init_class_counts(2), targets)
    cfg = LDAMConfig(scale=2.0)
    logits = torch.randn(17, 2)
    expected = ldam(logits, targets, LDAMConfig(scale=2.0, counts=(16, 1)))
    assert_close(ldam(logits, targets, cfg, counts=counts.positives), expected)


def test_before_the_first_batch_all_margins_are_the_largest() -> None:
    logits, targets = CASES[0].inputs()
    own = ldam(logits, targets, LDAMConfig(), counts=torch.zeros(4))
    assert_close(own, CASES[0].call(logits, targets, counts=(1, 1, 1, 1)))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=6), st.floats(0.1, 2))
def test_margins_by_hypothesis(counts: list[int], largest: float) -> None:
    """The margin is what the target's logit must lead by for the loss of a tie."""
    cfg = LDAMConfig(counts=counts, max_margin=largest, scale=1.0, reduction="none")
    n = len(counts)
    led = torch.eye(n, dtype=torch.float64) * torch.tensor(written_down.ldam_margins(cfg), dtype=torch.float64)
    assert_close(ldam(led, torch.arange(n), cfg), torch.full((n,), math.log(n), dtype=torch.float64))


# --- extremes ---------------------------------------------------------------------------------------------------------


def test_a_class_that_is_ruled_out() -> None:
    logits, targets = CASES[1].inputs()
    logits[:, 0], targets[targets == 0] = -torch.inf, 1
    loss, gradient = value_and_grad(CASES[1], logits, targets)
    assert loss.isfinite()
    assert (gradient[:, 0] == 0).all()
    assert_close(loss, CASES[1].call(logits[:, 1:], (targets - 1).where(targets != IGNORE, targets), counts=COUNTS[1:]))


# --- derivatives and transforms ---------------------------------------------------------------------------------------


def test_counts_and_weights_carry_no_tangent() -> None:
    logits, targets = CASES[0].inputs()
    for name in ("counts", "class_weights"):
        numbers = {"counts": torch.tensor(COUNTS).double(), "class_weights": torch.ones(4).double()}

        def loss(values: Tensor, name: str = name, numbers: Any = numbers) -> Tensor:
            return ldam(logits, targets, LDAMConfig(), **{**numbers, name: values})

        _, pushed = jvp(loss, (numbers[name],), (torch.rand(4).double(),))
        assert pushed == 0


def test_vmap_over_counts_and_weights() -> None:
    logits, targets = CASES[1].inputs()
    counts, weights = (torch.rand(3, 4, dtype=torch.float64) for _ in range(2))
    cfg = CASES[1].config(counts=None)
    mapped = vmap(lambda n, w: ldam(logits, targets, cfg, counts=n, class_weights=w))(counts, weights)
    looped = [ldam(logits, targets, cfg, counts=n, class_weights=w) for n, w in zip(counts, weights, strict=True)]
    assert_close(mapped, torch.stack(looped))


COMPILED = """
import torch
from torch.testing import assert_close
from imbalanced_losses import LDAMConfig, deferred_weights, ldam

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)
logits = 2 * torch.rand(2000, 10, generator=generator) - 1
ids = torch.randint(0, 10, (2000,), generator=generator)
labels = torch.rand(2000, generator=generator).round()
ids[::7], labels[::5] = -100, -100
logits[0], logits[1] = torch.nan, 1e4 * logits[1]  # row 0 is ignored
counts = torch.arange(10, 0, -1) ** 3

def step(z, epoch):
    weights = deferred_weights(epoch, counts, start=10)
    loss = ldam(z, ids, LDAMConfig(), counts=counts, class_weights=weights)
    dense = ldam(z.mT.unflatten(1, (50, 40)).movedim(1, 0), ids.view(50, 40), LDAMConfig(scale=2.0), counts=counts)
    return loss + dense + ldam(z[:, 0], labels, LDAMConfig(counts=(9, 1), class_weights=(1, 2)))

compiled = torch.compile(step, fullgraph=True)
weights = torch.compile(lambda epoch: deferred_weights(epoch, counts, start=10), fullgraph=True)(torch.tensor(10))
assert_close(weights, deferred_weights(10, counts, start=10), rtol=1e-6, atol=0)
for epoch in (torch.tensor(9), torch.tensor(10)):
    results = []
    for function, leaf in ((step, logits.double()), (step, logits.clone()), (compiled, logits.clone())):
        loss = function(leaf.requires_grad_(), epoch)
        loss.backward()
        results.append((loss.detach().double(), leaf.grad.double()))
    exact, *others = results
    # Scaled logits less margins are below 64, so each is rounded by up to 16 eps: of a probability p, 32 eps p. The
    # rest is the rounding of p - 1, in units of the largest entry.
    eps, largest = torch.finfo(torch.float32).eps, exact[1].abs().max().item()
    for loss, gradient in others:
        assert_close(loss, exact[0], rtol=1e-6, atol=0)
        assert_close(gradient, exact[1], rtol=32 * eps, atol=2 * eps * largest)
"""


@pytest.mark.exhaustive
def test_the_default_backend_with_weights_of_a_schedule(tmp_path: Any) -> None:
    """In a process of its own, as the registry's cases are on 1, 2 and 4 threads."""
    script, output = tmp_path / "step.py", tmp_path / "output"
    script.write_text(COMPILED)
    failure = run_python([str(script)], output, timeout=300)
    assert not failure, output.read_text()


# --- deferred re-weighting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999])
def test_deferred_weights(beta: float) -> None:
    """Cui et al., eq. 2, class by class, normalised as there over the classes that have examples."""
    counts = [5000, 120, 3, 1, 0]
    raw = [(1 - beta) / (1 - beta**count) for count in counts[:-1]]
    expected = torch.tensor([weight * len(raw) / sum(raw) for weight in raw] + [1.0])
    late = deferred_weights(160, torch.tensor(counts), 160, beta)
    assert_close(late, expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(late, class_weights(counts, "effective", beta))
    assert_close(deferred_weights(159, torch.tensor(counts), 160, beta), torch.ones(5))


def test_steps_beyond_the_integers_of_float32() -> None:
    counts, start = torch.tensor([900, 100]), 2**24 + 1
    for dtype in (torch.int32, torch.int64):
        assert torch.equal(deferred_weights(torch.tensor(start - 1, dtype=dtype), counts, start), torch.ones(2))
        assert deferred_weights(torch.tensor(start, dtype=dtype), counts, start)[0] < 1


def test_classes_without_examples_leave_the_deferred_weights_of_the_others() -> None:
    """Half of the classes of a stream not seen yet: the weights of the others keep their scale."""
    seen = torch.tensor([900, 100])
    weights = deferred_weights(1, torch.cat([seen, torch.zeros(50, dtype=torch.int64)]), 1)
    assert torch.equal(weights[:2], deferred_weights(1, seen, 1))


def test_deferred_weights_of_any_progress() -> None:
    counts = torch.tensor([900.0, 100.0], dtype=torch.float64)
    late = deferred_weights(1, counts, 0.8)
    assert late.dtype == torch.float64
    progress = torch.tensor([0.0, 0.79, 0.81, 1.0])
    mapped = vmap(lambda p: deferred_weights(p, counts, 0.8))(progress)
    assert_close(mapped, torch.stack([torch.ones_like(late)] * 2 + [late] * 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, [1, 2], 1), TypeError, "expected counts to be a Tensor"),
        ((0, torch.ones(2, 2), 1), ValueError, r"expected counts of shape \[C\], got \[2, 2\]"),
        ((0, torch.ones(2, dtype=torch.bool), 1), TypeError, "expected counts of a real dtype"),
        ((0, torch.ones(2), 1, 1.0), ValueError, r"expected beta in \[0, 1\), got 1.0"),
        (("x", torch.ones(2), 1), TypeError, "expected progress to be a number"),
        ((torch.ones(2), torch.ones(2), 1), ValueError, "expected progress as a number or a 0-dim tensor"),
        ((0, torch.ones(2), None), TypeError, "expected start to be a number"),
        ((0, torch.ones(2), math.nan), ValueError, "expected start to be a number, got nan"),
    ],
)
def test_deferred_weights_that_do_not_fit(arguments: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        deferred_weights(*arguments)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"counts": (1, -1)}, ValueError, "expected every weight in counts"),
        ({"counts": (0, 0)}, ValueError, "expected counts with a class above 0"),
        ({"counts": torch.ones(2, 2)}, ValueError, r"expected counts of shape \[C\], got \[2, 2\]"),
        ({"counts": torch.ones(2, requires_grad=True)}, TypeError, "detach"),
        ({"class_weights": (1, -1)}, ValueError, "expected every weight in class_weights"),
        ({"scale": 1e39}, ValueError, r"expected scale in .* \(normal in float32\), got 1e\+39"),
        ({"class_weights": "balanced"}, TypeError, "expected class_weights to be a sequence of numbers"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LDAMConfig(**options)
    with pytest.raises(error, match=message):
        LDAMLoss(**{"counts": COUNTS, **options})


ROWS, IDS, ONES = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((ROWS, IDS), {}, ValueError, "expected counts, got none: give them to the config, or counts= to the call"),
        ((ROWS, IDS), {"counts": torch.ones(2)}, ValueError, r"expected counts of shape \[3\], got \[2\]"),
        (
            (ROWS[:, 0], IDS),
            {"counts": torch.ones(1)},
            ValueError,
            r"of shape \[2\], for the labels 0 and 1, got \[1\]",
        ),
        (
            (ROWS[:, 0], IDS),
            {"counts": ONES},
            ValueError,
            r"expected counts of shape \[2\], for the labels 0 and 1, got",
        ),
        ((ROWS, IDS), {"counts": [1, 1, 1]}, TypeError, "expected counts to be a Tensor"),
        ((ROWS, IDS), {"counts": ONES.to("meta")}, ValueError, "expected counts on cpu like the logits"),
        (
            (ROWS, IDS),
            {"counts": ONES, "class_weights": ONES[:2]},
            ValueError,
            r"expected class_weights of shape \[3\]",
        ),
        ((ROWS, IDS.float()), {"counts": ONES}, TypeError, "use targets.long()"),
    ],
)
def test_arguments_that_do_not_fit(arguments: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ldam(*arguments, LDAMConfig(), **options)


# --- the module -------------------------------------------------------------------------------------------------------


def test_settings_can_be_assigned() -> None:
    """In each epoch, for deferred re-weighting."""
    counts = torch.tensor(COUNTS)
    loss_fn = LDAMLoss(counts, scale=3.0)
    logits, targets = CASES[0].inputs(dtype=torch.float32)
    for epoch in (0, 5):
        loss_fn.class_weights = deferred_weights(epoch, counts, start=5)
        cfg = LDAMConfig(counts=COUNTS, scale=3.0)
        own = ldam(logits, targets, cfg, class_weights=deferred_weights(epoch, counts, start=5))
        assert torch.equal(loss_fn(logits, targets), own)
    assert set(loss_fn.state_dict()) == {"counts", "class_weights"}
    loss_fn.class_weights = None
    loss_fn.counts = torch.ones(4)
    loss_fn.max_margin = 0
    assert_close(loss_fn(logits, targets), F.cross_entropy(3 * logits, targets))
    with pytest.raises(ValueError, match="expected scale"):
        loss_fn.scale = 0


# --- what it is for ---------------------------------------------------------------------------------------------------


def test_rarer_classes_need_a_larger_margin() -> None:
    """The loss of a tie grows as the target's class gets rarer."""
    losses = ldam(torch.zeros(4, 4), torch.arange(4), LDAMConfig(counts=COUNTS, reduction="none")).tolist()
    assert all(frequent < rare for frequent, rare in pairwise(losses))

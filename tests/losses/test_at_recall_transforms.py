"""Precision and false-positive rate at a recall under ``torch.func``, compilers, on meta tensors, and as modules."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call, grad, jvp, vmap
from torch.testing import assert_close

from imbalanced_losses import LossWarmupWrapper, SigmoidFocalLoss, init_queue, stack_states, unstack_states
from imbalanced_losses.queue import push
from tests.compiled.matrix import THREADS
from tests.compiled.processes import last_words, run_python
from tests.contracts.cases import assert_same_state, example, over
from tests.losses.at_recall_cases import PRECISION, AtRecall, both, gradients
from tests.losses.at_recall_compiled import CASES
from tests.strategies import Problem

# torch's own forward mode
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")


def value_of(loss: AtRecall, problem: Problem, **options: object):
    """The loss as a function of the logits."""
    cfg = loss.config(problem, reduction="sum", **options)

    def value(logits: Tensor) -> Tensor:
        return loss.names.function(logits, problem.targets, problem.state, cfg, **problem.extras)[0]

    return value


# --- derivatives ------------------------------------------------------------------------------------------------------


@both
@over["kinds"]
def test_gradcheck_of_the_constant_threshold(loss: AtRecall, kind: str) -> None:
    """Under "implicit" the gradient is not that of the value: finite differences test it with the threshold moved."""
    problem = example(kind)
    problem = replace(problem, logits=problem.logits + 0)
    value = value_of(loss, problem, threshold_gradient="stop")
    # the positives hold the threshold, where the value jumps to another constant
    positive = loss.run(problem, threshold_gradient="implicit").gradient < 0
    fixed = problem.logits.clone()

    def of_negatives(logits: Tensor) -> Tensor:
        return value(torch.where(positive, fixed, logits))

    logits = problem.logits.clone().requires_grad_()
    assert gradcheck(of_negatives, logits, check_forward_ad=True)
    assert gradgradcheck(of_negatives, logits)


@both
@gradients
@over["kinds"]
def test_forward_mode_is_reverse_mode(loss: AtRecall, mode: str, kind: str) -> None:
    problem = example(kind)
    value, tangent = value_of(loss, problem, threshold_gradient=mode), torch.randn_like(problem.logits)
    expected = (loss.run(problem, threshold_gradient=mode, reduction="sum").gradient * tangent).sum()
    primal, moved = jvp(value, (problem.logits,), (tangent,))
    assert_close(primal, value(problem.logits))
    assert_close(moved, expected)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(problem.logits, tangent)
        assert_close(torch.autograd.forward_ad.unpack_dual(value(dual)).tangent, expected)


@both
@gradients
@over["kinds"]
def test_func_grad_is_backward(loss: AtRecall, mode: str, kind: str) -> None:
    problem = example(kind)
    cfg = loss.config(problem, reduction="sum", threshold_gradient=mode)
    expected = loss.run(problem, reduction="sum", threshold_gradient=mode)

    def member(logits: Tensor):
        return loss.names.function(logits, problem.targets, problem.state, cfg, **problem.extras)

    gradient, state = grad(member, has_aux=True)(problem.logits)
    assert_close(gradient, expected.gradient)
    assert_same_state(state, expected.state)


@both
@gradients
@over["kinds"]
@over["queue"]
def test_vmap_is_a_loop(loss: AtRecall, mode: str, kind: str, with_queue: bool) -> None:
    members = [example(kind, with_queue, seed=seed) for seed in range(3)]
    members[1] = replace(members[1], sample_weight=members[1].sample_weight * (torch.arange(14) % 3).double())
    cfg = loss.config(members[0], reduction="none", threshold_gradient=mode)

    def member(logits: Tensor, targets: Tensor, state, weight: Tensor):
        value, new_state = loss.names.function(logits, targets, state, cfg, sample_weight=weight)
        return value.nansum(), (value, new_state)

    rows = [torch.stack([getattr(p, name) for p in members]) for name in ("logits", "targets", "sample_weight")]
    states = stack_states([p.state for p in members])
    gradient, (value, new_states) = vmap(grad(member, has_aux=True))(rows[0], rows[1], states, rows[2])
    for i, (problem, state) in enumerate(zip(members, unstack_states(new_states), strict=True)):
        problem = replace(problem, iid_mask=None)
        expected = loss.run(problem, reduction="none", threshold_gradient=mode)
        assert_close(value[i], expected.loss, equal_nan=True)
        assert_close(gradient[i], expected.gradient)
        assert state.logits.shape == problem.state.logits.shape


@both
def test_vmap_over_temperatures(loss: AtRecall) -> None:
    problem, temperatures = example("multiclass"), torch.tensor([0.1, 0.5, 2.0])
    cfg = loss.config(problem)

    def at(temperature: Tensor) -> Tensor:
        arguments = (problem.logits, problem.targets, problem.state, cfg)
        return loss.names.function(*arguments, temperature=temperature, **problem.extras)[0]

    expected = [loss.run(problem, temperature=float(t)).loss for t in temperatures]
    assert_close(vmap(at)(temperatures), torch.stack(expected), rtol=1e-6, atol=1e-7)


# --- without values ---------------------------------------------------------------------------------------------------


@both
@gradients
@over["kinds"]
def test_meta(loss: AtRecall, mode: str, kind: str) -> None:
    problem = example(kind, dtype=torch.float32)
    logits = problem.logits.to("meta").requires_grad_()
    state = init_queue(16, problem.num_classes, multilabel=problem.multilabel, device="meta")
    cfg = loss.config(problem, threshold_gradient=mode)
    value, new_state = loss.names.function(logits, problem.targets.to("meta"), state, cfg)
    value.backward()
    assert (value.shape, value.dtype, logits.grad.shape) == ((), torch.float32, logits.shape)
    assert new_state.logits.shape == state.logits.shape
    per_class, _ = loss.names.per_class(logits, problem.targets.to("meta"), state, cfg)
    assert {name: tuple(t.shape) for name, t in per_class.diagnostics.items()} == dict.fromkeys(
        ("threshold", "recall"), (problem.num_classes,)
    )


# --- compiled ---------------------------------------------------------------------------------------------------------


@both
@gradients
@over["kinds"]
def test_traced_is_eager(loss: AtRecall, mode: str, kind: str) -> None:
    """One graph for every temperature, as the tracer sees it; the default backend is in the process below."""
    problem = example(kind)
    cfg = loss.config(problem, threshold_gradient=mode)
    graphs = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss.names.function, fullgraph=True, backend=graphs)
    for temperature in (0.5, 0.1):
        logits = problem.logits.clone().requires_grad_()
        extras = {"temperature": torch.tensor(temperature), **problem.extras}
        value, state = compiled(logits, problem.targets, problem.state, cfg, **extras)
        value.backward()
        expected = loss.run(problem, extras, threshold_gradient=mode)
        assert_close(value.detach(), expected.loss)
        assert_close(logits.grad, expected.gradient)
        assert_same_state(state, expected.state)
    assert graphs.frame_count == 1


@pytest.mark.parametrize("case", CASES, ids=str)
def test_compiled_on_several_threads(case: str, tmp_path: Path) -> None:
    """By the default backend, in a process of its own, which wrong code may kill."""
    report, output = tmp_path / "report", tmp_path / "output"
    script = Path(__file__).with_name("at_recall_compiled.py")
    end = run_python([str(script), str(report), case], output, timeout=600)
    assert not end, f"the process {end}: {last_words(output)}"
    wrong = [json.loads(line) for line in report.read_text().splitlines()]
    assert wrong == [[]] * len(THREADS)


# --- modules ----------------------------------------------------------------------------------------------------------


@both
@gradients
@over["kinds"]
def test_the_module_is_the_function(loss: AtRecall, mode: str, kind: str) -> None:
    problem = example(kind)
    loss_fn = loss.shell(problem, queue_size=16, threshold_gradient=mode).double()
    state = init_queue(16, problem.num_classes, multilabel=problem.multilabel, dtype=torch.float64)
    for step in range(3):
        rows = replace(problem, logits=problem.logits.roll(step, 0) + 0.1 * step, state=state)
        cfg_temperature = {"temperature": loss_fn.temperature}
        expected = loss.run(rows, cfg_temperature, threshold_gradient=mode)
        logits = rows.logits.clone().requires_grad_()
        value = loss_fn(logits, rows.targets, rows.iid_mask, sample_weight=rows.sample_weight)
        value.backward()
        assert torch.equal(value.detach(), expected.loss)
        assert torch.equal(logits.grad, expected.gradient)
        assert_same_state(loss_fn.queue_state, expected.state)
        state = expected.state


@both
def test_diagnostics(loss: AtRecall) -> None:
    problem = example("multilabel", with_queue=False)
    problem = replace(problem, targets=problem.targets.index_fill(1, torch.tensor([2]), 0))
    loss_fn = loss.shell(problem, recall=0.5).double()
    value, per_class, valid = loss_fn(problem.logits, problem.targets, return_per_class=True)
    stats = loss_fn.diagnostics()
    assert valid.tolist() == [True, True, False]
    assert stats["valid"].tolist() == valid.tolist()
    assert_close(stats["loss"], per_class, equal_nan=True)
    assert_close(value, per_class[:2].mean())
    pure = loss.per_class(replace(problem, sample_weight=None), recall=0.5).diagnostics
    for name in ("threshold", "recall"):
        assert_close(stats[name], pure[name], equal_nan=True)
    assert (stats["recall"][:2] >= 0.5).all()
    exact = loss.metric(problem.logits, problem.targets, 0.5, multilabel=True)
    limit = exact if "FPR" in type(loss_fn).__name__ else 1 - exact
    assert_close(stats["gap"][:2], (per_class - limit)[:2])
    loss_fn.temperature = 1e-5
    loss_fn(problem.logits, problem.targets)
    assert loss_fn.diagnostics()["gap"][:2].abs().max() < 1e-12


@both
def test_settings_of_the_module(loss: AtRecall) -> None:
    problem = example("binary")
    loss_fn = loss.shell(problem, recall=0.5)
    before = loss_fn(problem.logits, problem.targets)
    loss_fn.recall = 1.0
    assert loss_fn.config == loss.config(problem, recall=1.0)
    assert loss_fn(problem.logits, problem.targets) > before
    with pytest.raises(ValueError, match="expected recall above 0 and at most 1, got"):
        loss_fn.recall = 0.0
    assert "recall=1.0" in repr(loss_fn)
    assert type(loss_fn)(1).threshold_gradient == "implicit"


@both
def test_life_of_the_module(loss: AtRecall) -> None:
    problem = example("binary", dtype=torch.float32)
    loss_fn = loss.shell(problem, queue_size=16)
    loss_fn(problem.logits, problem.targets)
    expected = loss_fn(problem.logits + 1, problem.targets, update_queue=False)
    restored = loss.shell(problem, queue_size=16)
    restored.load_state_dict(loss_fn.state_dict())
    for other in (copy.deepcopy(loss_fn), pickle.loads(pickle.dumps(loss_fn)), restored):
        assert torch.equal(other(problem.logits + 1, problem.targets, update_queue=False), expected)
    with torch.device("meta"):
        empty = loss.shell(problem, queue_size=16)
    empty.to_empty(device="cpu").reset_parameters()
    fresh = loss.shell(problem, queue_size=16)
    assert torch.equal(empty(problem.logits, problem.targets), fresh(problem.logits, problem.targets))
    buffers = {name: torch.stack([b, b]) for name, b in loss_fn.named_buffers()}
    mapped = vmap(lambda b, x: functional_call(copy.deepcopy(fresh), b, (x, problem.targets)))
    values = mapped(buffers, torch.stack([problem.logits + 1, problem.logits]))
    assert_close(values[0], expected)


@both
def test_after_a_warm_up(loss: AtRecall) -> None:
    """The wrapper sets the temperature and empties the queue at the switch."""
    problem = example("binary", dtype=torch.float32)
    main = loss.shell(problem, queue_size=16)
    wrapper = LossWarmupWrapper(
        SigmoidFocalLoss(), main, warmup_steps=1, blend_steps=1, temp_start=0.5, temp_end=0.05, temp_decay_steps=2
    )
    temperatures = []
    for step in range(5):
        wrapper.on_train_batch_start(step)
        logits = problem.logits.clone().requires_grad_()
        labels = (problem.targets == 1).float()
        value = wrapper(logits[:, 0], labels)
        value.backward()
        assert value.isfinite()
        assert logits.grad.abs().sum() > 0
        temperatures.append(round(main.temperature.item(), 4))
    assert temperatures == [0.5, 0.5, 0.1581, 0.05, 0.05]
    assert main.diagnostics()["recall"].item() >= 0.7


@both
def test_training_finds_the_positives(loss: AtRecall) -> None:
    """Descent on a linear model with a misleading feature ends near what the exact metric allows."""
    generator = torch.Generator().manual_seed(0)
    targets = (torch.arange(400) % 20 == 0).long()
    inputs = torch.randn(400, 2, generator=generator)
    inputs[:, 0] += 3.0 * targets
    model = torch.nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 1.0]]))
    loss_fn = type(loss.shell(example("binary")))(1, recall=0.8, queue_size=0, temperature=0.3)
    before = loss.metric(model(inputs), targets, 0.8).item()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        loss_fn(model(inputs), targets).backward()
        optimizer.step()
    after = loss.metric(model(inputs), targets, 0.8).item()
    best = loss.metric(inputs[:, 0], targets, 0.8).item()
    assert abs(after - best) < 0.1 * abs(best - before)
    assert loss_fn.diagnostics()["recall"].item() >= 0.8


def test_a_queue_that_wraps() -> None:
    """A run on the queue's contents equals one on the same rows in another place of the ring."""
    problem = example("binary", with_queue=False)
    flags, weight = torch.ones(10, dtype=torch.bool), torch.ones(10, dtype=torch.float64)
    rows, labels = torch.randn(10, 1, dtype=torch.float64), torch.arange(10) % 3 // 2
    results = []
    for shift in (0, 3, 7):
        state = init_queue(10, 1, dtype=torch.float64)
        for part in (rows[:shift] + 9, rows):  # what comes first is overwritten
            n = len(part)
            state = push(state, part, labels[:n], flags[:n], weight[:n])
        results.append(PRECISION.run(replace(problem, state=state)))
    for result in results[1:]:
        assert_close(result.loss, results[0].loss)
        assert_close(result.gradient, results[0].gradient)

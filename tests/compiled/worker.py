"""Compiles cases of the matrix and compares them with eager mode, in forks that processes.py expects to die.

Eager mode takes all steps of a case before anything is compiled: code that writes out of bounds may change any number
in the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch._functorch.config
import torch._inductor.config
from torch import Tensor
from torch._dynamo.utils import counters
from torch.func import grad, vmap
from torch.utils import _pytree

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # for the tests; the package is the installed one

from imbalanced_losses import stack_states, unstack_states
from tests.compiled.matrix import CASES, MEMBERS, Batch, Case

STEPS = 3
CALLS = 3
"""Calls of each step, all from the same state and each compared with eager mode.

Stale memory may hold the right number in one of them. Two calls need not agree bit by bit: parallel atomic additions
have no order.
"""

TOLERANCE = 2e-5
"""Relative to the largest entry: float32 sums in another order."""


class Outcome(NamedTuple):
    """Result of one step."""

    loss: Tensor
    gradient: Tensor
    state: Any


Step = Callable[[Batch, Any], Outcome]
Compile = Callable[[Any], Any]


def compile_whole(function: Any) -> Any:
    return torch.compile(function, fullgraph=True)


def leave(function: Any) -> Any:
    return function


@contextlib.contextmanager
def code_for(threads: int) -> Iterator[None]:
    """Generate new code, for this number of threads, for everything that is compiled in this context.

    Inductor writes the number into its code. The graph caches are off because their keys lack it in older torch. The
    cache of compiled C++ stays on: its key is the source.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch._dynamo.reset()
    counters.clear()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield
    torch.set_num_threads(before)


# --- the forms of call ------------------------------------------------------------------------------------------------


def run_backward(function: Callable[..., tuple[Tensor, Any]], batch: Batch, state: Any) -> Outcome:
    leaf = batch.logits.clone().requires_grad_()
    loss, new_state = function(leaf, batch.targets, state, batch.extras)
    loss.backward()
    assert leaf.grad is not None
    return Outcome(loss.detach(), leaf.grad, new_state)


def function_step(case: Case, transform: Compile) -> Step:
    function = transform(case.evaluate)
    return lambda batch, state: run_backward(function, batch, state)


def module_step(case: Case, transform: Compile) -> Step:
    """The state is the module's ``state_dict``; the module is compiled in place."""
    module = case.module()
    if transform is not leave:
        module.compile(fullgraph=True)

    def call(logits: Tensor, targets: Tensor, state: Any, extras: dict[str, Tensor]) -> tuple[Tensor, Any]:
        module.load_state_dict(state)
        loss = module(logits, targets, **extras)
        return loss, {name: buffer.clone() for name, buffer in module.state_dict().items()}

    return lambda batch, state: run_backward(call, batch, state)


def ensemble_step(case: Case, transform: Compile) -> Step:
    """One call of ``vmap(grad)`` for all members. The eager reference is a loop without ``vmap``."""

    def member(*arguments: Any) -> tuple[Tensor, tuple[Tensor, Any]]:
        loss, state = case.evaluate(*arguments)
        return loss, (loss, state)

    mapped = transform(vmap(grad(member, has_aux=True)))

    def at_once(batch: Batch, state: Any) -> Outcome:
        gradient, (loss, new_state) = mapped(batch.logits, batch.targets, state, batch.extras)
        return Outcome(loss, gradient, new_state)

    def one_by_one(batch: Batch, state: Any) -> Outcome:
        states = unstack_states(state) if state else [()] * MEMBERS
        extras = [{name: value[i] for name, value in batch.extras.items()} for i in range(MEMBERS)]
        outcomes = [
            run_backward(case.evaluate, Batch(*rows), own)
            for *rows, own in zip(batch.logits, batch.targets, extras, states, strict=True)
        ]
        losses, gradients, new_states = zip(*outcomes, strict=True)
        return Outcome(torch.stack(losses), torch.stack(gradients), stack_states(new_states) if state else ())

    return one_by_one if transform is leave else at_once


FORMS: dict[str, Callable[[Case, Compile], Step]] = {
    "function": function_step,
    "module": module_step,
    "ensemble": ensemble_step,
}


# --- compiled against eager -------------------------------------------------------------------------------------------


def check(case: Case, threads: int) -> list[str]:
    """Everything that is wrong with a case on this number of threads."""
    with code_for(threads):
        batches = [case.batch(step) for step in range(STEPS)]
        state = case.module().state_dict() if case.form == "module" else case.state()
        expected = take_steps(FORMS[case.form](case, leave), batches, state)
        if any(outcome.gradient.count_nonzero() == 0 for outcome in expected):
            raise ValueError(f"expected a gradient other than 0 in eager mode, got 0 everywhere for {case}")
        compiled = FORMS[case.form](case, compile_whole)
        wrong = []
        for i, (batch, right) in enumerate(zip(batches, expected, strict=True)):
            found = [compiled(batch, state) for _ in range(CALLS)]
            for j, outcome in enumerate(found):
                wrong += [f"step {i}, call {j}: {difference}" for difference in differences(outcome, right)]
            state = found[0].state
        return wrong + compiler_differences()


def take_steps(step: Step, batches: list[Batch], state: Any) -> list[Outcome]:
    outcomes = []
    for batch in batches:
        outcomes.append(step(batch, state))
        state = outcomes[-1].state
    return outcomes


def differences(found: Outcome, right: Outcome) -> Iterator[str]:
    """Where loss or gradient differ by more than rounding, or states differ at all."""
    for name in ("loss", "gradient"):
        own, other = getattr(found, name), getattr(right, name)
        if own.shape != other.shape or own.dtype != other.dtype:
            yield f"{name} {tuple(own.shape)} {own.dtype}, not {tuple(other.shape)} {other.dtype}"
            continue
        error, largest = (own - other).abs(), other.abs().max()
        wrong = ~(error <= TOLERANCE * largest)  # nan is wrong
        if wrong.any():
            place = f"{wrong.sum()} of {wrong.numel()} entries"
            yield f"{name} off by {error.max():.2g} where the largest is {largest:.2g}, in {place}"
    own, other = _pytree.tree_leaves(found.state), _pytree.tree_leaves(right.state)
    if _pytree.tree_structure(found.state) != _pytree.tree_structure(right.state):
        yield "a state of another structure"
    elif not all(a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(own, other, strict=True)):
        yield "another state"


def compiler_differences() -> list[str]:
    """Anything but one graph, or a graph from a cache, whose code may be for another number of threads."""
    graphs = counters["stats"]["unique_graphs"]
    hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
    return [f"{graphs} graphs"] * (graphs != 1) + [f"{hits} graphs from a cache"] * (hits != 0)


def check_safely(case: Case, threads: int) -> list[str]:
    """An error counts as wrong."""
    try:
        return check(case, threads)
    except Exception as error:
        return [f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"]


# --- the process and its forks ----------------------------------------------------------------------------------------


def warm_up() -> None:
    """Do once what every fork needs: the compiler's imports and its search for the processor's instructions.

    No gradient and one thread: a fork inherits neither autograd's nor OpenMP's threads.
    """
    with code_for(1), torch.no_grad():
        compile_whole(lambda x: x + 1)(torch.zeros(64))


def report_on(runs: list[tuple[str, int]], report: str) -> None:
    """Write one line of JSON per run as soon as it is done. A run is the name of a case and a number of threads."""
    with Path(report).open("w", buffering=1) as lines:
        for name, threads in runs:
            lines.write(json.dumps(check_safely(CASES[name], threads)) + "\n")


def main() -> None:
    """For each line of input, execute its runs in a fork and print the exit status (less than 0: a signal)."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what else is printed is no answer
    warm_up()
    for line in sys.stdin:
        report, output, timeout, runs = json.loads(line)
        fork = os.fork()
        if fork == 0:
            answers.close()
            signal.alarm(timeout)
            file = os.open(output, os.O_WRONLY)
            os.dup2(file, 1)
            os.dup2(file, 2)
            report_on(runs, report)
            return  # to end like any other process
        print(os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1]), file=answers)


if __name__ == "__main__":
    main()

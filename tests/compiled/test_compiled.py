"""Losses compiled with the default backend equal eager mode.

``make test`` runs the first case of each loss and surrogate on 2 threads, at sizes for which torch 2.13 generated wrong
code where there are any. ``make test-exhaustive`` adds the other cases, and 1 and 4 threads; ``make test-compiled``
runs the whole matrix.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from tests.compiled.matrix import CASES, LOSSES, THREADS
from tests.compiled.processes import Run, Template, check
from tests.compiled.worker import code_for


def groups() -> dict[str, list[str]]:
    """Cases of the suite, those of a group in one process, because starting one takes longer than a case."""
    grouped: dict[str, list[str]] = {"ranking": [], "elementwise": [], "further": []}
    seen = set[object]()
    for name, loss in LOSSES.items():
        objective = loss.function, loss.options.get("surrogate")
        for case in loss.in_suite:
            first = "ranking" if loss.has_queue else "elementwise"
            grouped["further" if objective in seen else first].append(f"{name} {case}")
            seen.add(objective)
    return grouped


GROUPS = groups()


def find(name: str) -> str:
    """The name of a case, completed by ``weighted`` where the matrix has it with weights."""
    return name if name in CASES else f"{name} weighted"


@pytest.fixture(scope="module")
def template() -> Iterator[Template]:
    with Template() as process:
        yield process


@pytest.mark.parametrize("threads", THREADS)
@pytest.mark.parametrize("names", GROUPS.values(), ids=list(GROUPS))
def test_compiled_equals_eager(names: list[str], threads: int, template: Template) -> None:
    findings = check([Run(find(name), threads) for name in names], template)
    wrong = [str(finding) for finding in findings if finding.wrong]
    assert not wrong, "\n".join(["compiled code is wrong:", *wrong])


@pytest.mark.exhaustive
def test_a_run_that_dies_is_wrong_and_the_next_one_runs(template: Template) -> None:
    right = Run(find("ldam function C=3 64+0"), 1)
    findings = check([Run("no such case", 1), right], template)
    assert "ended with exit status 1" in str(findings[0])
    assert "KeyError" in str(findings[0])
    assert findings[1].wrong == ()
    several = check([right] * 4, template, timeout=1)  # one may be faster than that
    assert "did not end within 1 s" in "\n".join(map(str, several))


def test_every_loss_is_among_them() -> None:
    assert {CASES[find(name)].loss_name for names in GROUPS.values() for name in names} == set(LOSSES)


def test_code_is_generated_for_each_number_of_threads() -> None:
    """Otherwise the tests above would run the same code three times."""

    def add_one(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    x, sources = torch.zeros(1 << 18), set()
    for threads in THREADS:
        with code_for(threads):
            result, code = run_and_get_code(torch.compile(add_one), x)
        assert torch.equal(result, x + 1)
        assert any("#pragma omp parallel" in source for source in code) == (threads > 1)
        sources.add("".join(code))
    assert len(sources) == len(THREADS)

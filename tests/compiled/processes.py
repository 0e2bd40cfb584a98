"""Runs cases in processes that may die, and collects what they reported before that."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")


@dataclass(frozen=True)
class Run:
    """The name of a case, and a number of threads."""

    case: str
    threads: int

    def __str__(self) -> str:
        return f"{self.case}, threads={self.threads}"


@dataclass(frozen=True)
class Finding:
    """Result of a run. ``wrong`` is empty if everything is right."""

    run: Run
    wrong: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.run}: {'; '.join(self.wrong[:3]) or 'right'}{' ...' if len(self.wrong) > 3 else ''}"


def environment() -> dict[str, str]:
    """The environment of a process that sets its own number of threads.

    MALLOC_PERTURB_ makes glibc fill new memory with a pattern. An element that is never written then does not hold 0 or
    the right number from the previous call.
    """
    unset = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    inherited = {name: value for name, value in os.environ.items() if name not in unset}
    return {**inherited, "MALLOC_PERTURB_": "165", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class Template:
    """A process that has imported everything and executes each list of runs in a fork of its own.

    A fork saves the seconds that imports and the first compilation take, and starts from the same heap every time.
    """

    def __enter__(self) -> Template:
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER)], env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()  # it ends at the end of its input, after the fork that is running

    def execute(self, runs: Sequence[Run], report: Path, output: Path, timeout: int) -> str:
        """One line of JSON per run in ``report``, the rest in ``output``. Return how the fork failed, or ""."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = [str(report), str(output), timeout, [[run.case, run.threads] for run in runs]]
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, either
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"expected an exit status, got the end of the template process: {self._process.wait()}")
        status = int(answer)
        return f"did not end within {timeout} s" if status == -signal.SIGALRM else failure(status)


def check(runs: Sequence[Run], template: Template, timeout: int = 900) -> list[Finding]:
    """Execute the runs in one process, and in a new one after each death. One finding per run, in order.

    The run in which a process dies is wrong. If a process executes several cases, an earlier one may have corrupted the
    heap, so the whole matrix uses one process per case.
    """
    findings: list[Finding] = []
    while len(findings) < len(runs):
        findings += _check_until_death(runs[len(findings) :], template, timeout)
    return findings


def _check_until_death(runs: Sequence[Run], template: Template, timeout: int) -> list[Finding]:
    """At least one finding. If the process died, the last finding says so."""
    with tempfile.TemporaryDirectory() as folder:
        report, output = Path(folder) / "report", Path(folder) / "output"
        output.touch()  # a fork may die before it opens it
        end = template.execute(runs, report, output, timeout)
        lines = report.read_text().splitlines() if report.exists() else []
        findings = [Finding(run, tuple(json.loads(line))) for run, line in zip(runs, lines, strict=False)]
        if not end and len(findings) == len(runs):
            return findings
        death = f"the process {end or 'ended early'}: {last_words(output)}"
    if len(findings) == len(runs):  # it died after its last run
        last = findings.pop()
        return [*findings, Finding(last.run, (*last.wrong, death))]
    return [*findings, Finding(runs[len(findings)], (death,))]


def run_python(arguments: Sequence[str], output: Path, timeout: float) -> str:
    """Run Python with stdout and stderr in ``output``. Return how it failed, or an empty string."""
    with output.open("w") as file:
        process = subprocess.Popen([sys.executable, *arguments], env=environment(), stdout=file, stderr=file)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            return f"did not end within {timeout:.0f} s"
    return failure(status)


def failure(status: int) -> str:
    """How a process with this exit status failed, or an empty string."""
    if status < 0:
        return f"died of {signal.Signals(-status).name} (exit status {status})"
    return f"ended with exit status {status}" if status else ""


def last_words(output: Path) -> str:
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines()]
    return " | ".join([line for line in lines if line][-3:])[-300:]

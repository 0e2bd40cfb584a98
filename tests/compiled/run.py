"""Compiles the whole matrix and compares it with eager mode; takes under two hours on two cores.

    python tests/compiled/run.py --jobs 2 --only "pairwise C=1"

Each case has a process of its own, which compiles it once for each number of threads. Exits with 1 if any run is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

import torch
from tqdm import tqdm

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))  # for the tests; the package is the installed one

from tests.compiled.matrix import CASES, LOSSES, POOLS, ROWS, THREADS, Case, Pool, kinds_of
from tests.compiled.processes import Finding, Run, Template, check


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--threads", type=int, nargs="+", default=list(THREADS))
    parser.add_argument(
        "--only",
        action="append",
        metavar="WORDS",
        help="only cases whose name has all these words, such as 'pairwise C=1 600+0'; may be given several times",
    )
    return parser.parse_args(arguments)


def chosen(only: Sequence[str] | None) -> list[Case]:
    """The words of a name: loss, form, kind (``C=3``, or ``C=3m`` if multi-label), pool and maybe ``weighted``."""
    return [case for name, case in CASES.items() if not only or any(set(w.split()) <= set(name.split()) for w in only)]


def check_all(cases: Sequence[Case], threads: Sequence[int], jobs: int) -> list[Finding]:
    findings: list[Finding] = []
    idle: SimpleQueue[Template] = SimpleQueue()

    def check_one(case: Case) -> list[Finding]:
        template = idle.get()
        try:
            return check([Run(str(case), count) for count in threads], template)
        finally:
            idle.put(template)

    with (
        ExitStack() as stack,
        ThreadPoolExecutor(jobs) as pool,
        tqdm(total=len(cases), unit="case", smoothing=0.1) as progress,
    ):
        for _ in range(min(jobs, len(cases))):
            idle.put(stack.enter_context(Template()))
        running = [pool.submit(check_one, case) for case in cases]
        for done in as_completed(running):
            findings += done.result()
            for finding in done.result():
                if finding.wrong:
                    progress.write(str(finding))
            progress.set_postfix(wrong=sum(bool(finding.wrong) for finding in findings))
            progress.update()
    return findings


def table(findings: Sequence[Finding]) -> str:
    """The number of wrong runs and of all runs, by loss, kind and pool."""
    pools = list(dict.fromkeys([*POOLS, *ROWS]))
    lines = [f"{'wrong/runs':<36}" + "".join(f"{pool!s:>11}" for pool in pools)]
    for loss in LOSSES:
        for kind in kinds_of(loss):
            row = [_cell([f for f in findings if _is_of(CASES[f.run.case], loss, str(kind), pool)]) for pool in pools]
            if any(row):
                lines.append(f"{loss:<30}{kind!s:<6}" + "".join(f"{cell:>11}" for cell in row))
    return "\n".join(lines)


def _is_of(case: Case, loss: str, kind: str, pool: Pool) -> bool:
    return (case.loss_name, str(case.kind), case.pool) == (loss, kind, pool)


def _cell(findings: Sequence[Finding]) -> str:
    return f"{sum(bool(finding.wrong) for finding in findings)}/{len(findings)}" if findings else ""


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    cases = chosen(options.only)
    if not cases:
        print(f"no case has the words {options.only}; one name is {next(iter(CASES))!r}")
        return 2
    findings = check_all(cases, options.threads, options.jobs)
    wrong = sum(bool(finding.wrong) for finding in findings)
    print(f"torch {torch.__version__}, threads {options.threads}\n\n{table(findings)}\n")
    print(f"{wrong} of {len(findings)} runs are wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

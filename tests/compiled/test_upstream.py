"""Two bugs in the C++ code that torch's default compiler generates. Kernels over pairs are opaque operators for them.

These tests report a change in torch, not a bug in this library. One fails when the installed torch has fixed a bug that
``BUGS`` lists as open, and when a bug is back in a version that should be free of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from tests.compiled.processes import last_words, run_python

VERSION = torch.__version__.partition("+")[0]


@dataclass(frozen=True)
class Bug:
    """An issue of pytorch/pytorch, its reproducer in upstream.py and the first torch known to be free of it."""

    issue: int
    reproducer: str
    fixed_in: str | None

    def __str__(self) -> str:
        return self.reproducer

    @property
    def is_expected(self) -> bool:
        return self.fixed_in is None or TorchVersion(VERSION) < self.fixed_in


BUGS = [
    Bug(191837, "scatter_tile", fixed_in="2.14.1"),  # reproduced in 2.8.0 and 2.13.0
    Bug(195582, "loop_split", fixed_in=None),  # reproduced in 2.8.0, 2.13.0, 2.14.1 and 2.15.0
]


@pytest.mark.exhaustive
@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_bug_is_where_the_table_says(bug: Bug, tmp_path: Path) -> None:
    """A process that dies counts as broken: it may corrupt its heap before it prints. Any other failure is an error."""
    output = tmp_path / "output"
    end = run_python([str(Path(__file__).with_name("upstream.py")), bug.reproducer], output, timeout=300)
    result = last_words(output)
    assert not end or end.startswith("died"), f"the reproducer {end}: {result}"
    broken = bool(end) or not result.endswith("right")  # torch may warn before it
    assert broken or not bug.is_expected, (
        f"torch {VERSION} has fixed pytorch issue {bug.issue}: set fixed_in in {Path(__file__).name} to {VERSION!r} "
        f"and update the notes that `grep -r {bug.issue} imbalanced_losses` finds"
    )
    assert bug.is_expected or not broken, (
        f"torch {VERSION} has pytorch issue {bug.issue} again, which was fixed in {bug.fixed_in} ({end or result}): "
        f"update its fixed_in in {Path(__file__).name}"
    )

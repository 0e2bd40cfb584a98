"""What holds for every test: one thread, a known seed, no compiled code left over from the test before."""

from __future__ import annotations

import os
from collections.abc import Iterator

# One process per core runs the suite, see the Makefile: more threads, here or in what a test starts, would only wait
# for each other. Tests of what threads change set their number themselves, see tests/compiled.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch

import imbalanced_losses

torch.set_num_threads(1)

# Derandomised, so that CI is green or red for a reason in the commit. HYPOTHESIS_PROFILE=search looks for new examples.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, imbalanced_losses from {imbalanced_losses.__path__[0]}"


@pytest.fixture(autouse=True)
def _fresh_torch() -> Iterator[None]:
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()

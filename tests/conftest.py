"""Setup of every test: one thread, a fixed seed, and no compiled code from the previous test."""

from __future__ import annotations

import os
from collections.abc import Iterator

# The suite runs one process per core (see the Makefile), so more threads, here or in processes that tests start, would
# only wait for each other. Tests that depend on threads set their number themselves, see tests/compiled.
os.environ["OMP_NUM_THREADS"] = "1"

import hypothesis
import pytest
import torch
import torch.distributed as dist

import imbalanced_losses

torch.set_num_threads(1)

# Derandomised, so that the result of CI depends only on the commit. HYPOTHESIS_PROFILE=search looks for new examples.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=1000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.hookimpl(tryfirst=True)  # pytest then groups the tests that share a fixture of their module
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests.exhaustive import mark_and_sort

    items[:] = mark_and_sort(items)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Pause coverage before an uncovered test and resume it before a covered one.

    pytest-cov's ``no_cover`` does both for every test, which takes longer than most tests.
    """
    plugin = item.config.pluginmanager.getplugin("_cov")
    controller = plugin.cov_controller if plugin else None
    uncovered = item.get_closest_marker("uncovered") is not None
    if controller is not None and controller.started == uncovered:
        (controller.pause if uncovered else controller.resume)()


def pytest_report_header() -> str:
    return f"torch {torch.__version__}, imbalanced_losses from {imbalanced_losses.__path__[0]}"


@pytest.fixture
def group_of_one() -> Iterator[None]:
    """A process group of this process alone; the tests in tests/distributed have several processes."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def _fresh_torch() -> Iterator[None]:
    torch.default_generator.manual_seed(0)  # torch.manual_seed formats a stack trace for each kind of accelerator
    yield
    torch._dynamo.reset()

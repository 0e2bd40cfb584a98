"""One side of the comparison: a process that times one package, asked over stdin and stdout, a line of JSON each way.

``imbalanced_losses`` is whatever the interpreter running this file has installed: ours, or the package we compare with,
whose import name is the same. ``run.py`` starts two workers a series, one for time and one for memory, and lets one
compute at a time.

    {"do": "hello"}                      -> {"package": "0.6.0", "torch": "2.13.0", "device": "cpu"}
    {"do": "prepare", "work": {...}}     -> {"seconds": 0.01}         builds the inputs and the loss, and calls it once
    {"do": "time", "seconds": 0.1}       -> {"seconds": 0.001}        median over as many calls as fit
    {"do": "memory", "work": {...}}      -> {"bytes": 123456}         peak of one call above its inputs
    {"do": "compilations", "work": ...}  -> {"compilations": 1, "graph_breaks": 0}
    {"do": "operators", "work": {...}}   -> {"operators": 80, "host_reads": 0, "names": {...}}, or {"fails": "..."}

``work`` is ``Cell.work``. Requests that build a call name a folder for what Inductor compiles, ``cache``.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import os
import re
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from operators import count_operators
from steps import Call, build, loss_module, ranking_inputs, training_step
from torch import Tensor

# mallopt's parameters, and the values that glibc's own adaptation of them ends at in a long training run
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
STEADY_TRIM, STEADY_MMAP = 64 << 20, 32 << 20
# a block this large is mapped when allocated and unmapped when freed: slower, but only live blocks are resident
SMALLEST_MAPPED = 64 << 10


def seconds_of(call: Call, device: str) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def median_seconds(call: Call, budget: float, device: str) -> float:
    """Median over as many calls as fit into ``budget`` seconds, one at least."""
    times: list[float] = []
    while sum(times) < budget:
        times.append(seconds_of(call, device))
    return statistics.median(times)


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes."""
    found = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def fix_allocator(mmap_threshold: int) -> None:
    """Fix what glibc's allocator adapts while it runs, so that the order of the measurements does not matter."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, mmap_threshold)
        libc.mallopt(M_TRIM_THRESHOLD, STEADY_TRIM)


def peak_bytes(call: Call, device: str) -> int | None:
    """Most memory that one call holds at a time, above what is there before it: its inputs and the libraries.

    On Linux the kernel's high-water mark of resident memory, reset right before the call. It counts what PyTorch's own
    books leave out, such as the scratch space of a sort, and means live bytes in a process that gives back freed blocks
    at once.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds_of(call, device)
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return None
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return max(0, _status("VmHWM") - before)


def least_peak_bytes(call: Call, device: str) -> int | None:
    """Peak of the second call or the third; of the first one alone if that is slow, and what it sets up is little."""
    start = time.perf_counter()
    first = peak_bytes(call, device)
    if first is None or time.perf_counter() - start > 1:
        return first
    return min(peak_bytes(call, device) or 0 for _ in range(2))


def count_compilations(work: dict[str, Any], device: str) -> dict[str, int]:
    """Train ``steps`` steps with a new temperature each, and count the graphs that Dynamo hands to its backend."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    graphs = 0

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return graph.forward

    loss_fn = loss_module(work, device)
    step = training_step(torch.compile(loss_fn, backend=backend), *ranking_inputs(work, device), work["batch"])
    for temperature in torch.linspace(0.5, 0.01, work["steps"]).tolist():
        loss_fn.temperature = temperature
        step()
    return {"compilations": graphs, "graph_breaks": sum(torch._dynamo.utils.counters["graph_break"].values())}


def operators_of_step(work: dict[str, Any]) -> dict[str, Any]:
    """Operators of a step, and those that read the device: ours on ``meta``, the peer's, which cannot, on the CPU."""
    step = build(work, "meta" if work["series"] == "ours" else "cpu")
    try:
        step()  # what only a first step does is not counted
        operators, host_reads = count_operators(step)
    except Exception as error:  # torch raises where a meta tensor is read; the promise is missed then, not unmeasured
        return {"fails": first_line(error)}
    return {"operators": operators.total(), "host_reads": host_reads.total(), "names": dict(operators.most_common())}


@functools.cache
def start_compiler() -> None:
    """Let a trivial function pay for what a process does before it compiles anything.

    It imports Inductor, looks at the processor's vector unit and precompiles C++ headers: together as long as several
    compilations of a loss.
    """
    torch.compile(lambda x: x.sin().sum())(torch.ones(2, requires_grad=True)).backward()


def compile_into(cache: str) -> None:
    """Let the next compilation use the given folder as its cache and nothing that is in memory."""
    from torch._inductor.utils import clear_caches  # takes seconds, which only these workers need to spend

    start_compiler()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch._dynamo.reset()
    clear_caches()


def first_line(error: Exception) -> str:
    """What kind of error, and what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


class Worker:
    """Answers requests; holds the call that is being measured."""

    def __init__(self, purpose: str, device: str, threads: int, memory_limit: int) -> None:
        self.device = device
        self.call: Call = lambda: None
        torch.set_num_threads(threads)
        fix_allocator(SMALLEST_MAPPED if purpose == "memory" else STEADY_MMAP)
        if device == "cpu" and sys.platform == "linux":
            # beyond this torch raises, instead of the machine starting to swap or to kill
            resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + memory_limit,) * 2)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked."""
        if request["do"] == "hello":
            device = torch.cuda.get_device_name() if self.device == "cuda" else "cpu"
            return {"package": version("imbalanced-losses"), "torch": torch.__version__, "device": device}
        if request["do"] in ("prepare", "memory"):
            self._build(request["work"], request["cache"])
        if request["do"] == "memory" and request["work"]["compiled"]:
            self.call()  # a compiler takes memory, too
        if request["do"] == "prepare":
            return {"seconds": seconds_of(self.call, self.device)}
        if request["do"] == "time":
            return {"seconds": median_seconds(self.call, request["seconds"], self.device)}
        if request["do"] == "memory":
            return {"bytes": least_peak_bytes(self.call, self.device)}
        if request["do"] == "operators":
            return operators_of_step(request["work"])
        return dict(count_compilations(request["work"], self.device))

    def _build(self, work: dict[str, Any], cache: str) -> None:
        self.call = lambda: None  # its inputs go before the next ones come
        if work["compiled"]:
            compile_into(cache)
        self.call = build(work, self.device)
        gc.collect()


def main() -> None:
    """Answer line by line until stdin ends; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    purpose, device, threads, memory_limit = sys.argv[1:]
    worker = Worker(purpose, device, int(threads), int(memory_limit))
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except Exception as error:  # whatever a package or a compiler raises is a result; run.py records it
            reply = {"error": first_line(error)}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()

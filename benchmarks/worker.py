"""One side of the comparison: a process that times one package, asked over stdin and stdout, a line of JSON each way.

``imbalanced_losses`` is whatever the interpreter running this file has installed: ours, or the package we compare with,
whose import name is the same. This file therefore imports nothing else of the project. ``run.py`` starts two workers a
series (ours, ours compiled, peer, ``torch.sort``), one for time and one for memory, and lets one compute at a time.

    {"do": "hello"}                      -> {"package": "0.6.0", "torch": "2.13.0", "device": "cpu"}
    {"do": "prepare", "work": {...}}     -> {"seconds": 0.01}         builds the inputs and the loss, and calls it once
    {"do": "time", "seconds": 0.1}       -> {"seconds": 0.001}        median over as many calls as fit
    {"do": "memory", "work": {...}}      -> {"bytes": 123456}         peak of one call above its inputs
    {"do": "compilations", "work": ...}  -> {"compilations": 1, "graph_breaks": 0}
"""

from __future__ import annotations

import ctypes
import gc
import itertools
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
from torch import Tensor, nn

Call = Callable[[], object]

# mallopt's parameters, and the values that glibc's own adaptation of them ends at in a long training run
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
STEADY_TRIM, STEADY_MMAP = 64 << 20, 32 << 20
# a block this large is mapped when allocated and unmapped when freed: slower, but only live blocks are resident
SMALLEST_MAPPED = 64 << 10


def labels(rows: int, classes: int, rate: float, generator: torch.Generator) -> Tensor:
    """Int64 ``[rows]``: exact counts in random order, so that a measurement does not hang on the luck of a draw.

    Every class but class 0 has ``min(rate, 1 / classes)`` of the rows; one class is binary, with labels {0, 1}.
    """
    positives = max(1, int(rows * min(rate, 1 / classes)))
    ids = torch.arange(1, max(classes, 2)).repeat_interleave(positives)
    return torch.cat([ids, torch.zeros(rows - len(ids), dtype=torch.int64)])[torch.randperm(rows, generator=generator)]


def ranking_inputs(work: dict[str, Any], device: str) -> tuple[Tensor, Tensor]:
    """Logits ``[M, C]``, a standard deviation higher where the row is positive, and targets ``[M]``."""
    generator = torch.Generator().manual_seed(0)
    rows, classes = work["batch"] + work["queue"], work["classes"]
    targets = labels(rows, classes, work["rate"], generator)
    logits = torch.randn(rows, classes, generator=generator)
    hot = targets.unsqueeze(1) if classes == 1 else nn.functional.one_hot(targets, classes)
    return logits.add_(hot).to(device), targets.to(device)


def focal_inputs(work: dict[str, Any], device: str) -> tuple[Tensor, Tensor]:
    """Logits ``[N]`` or ``[N, C, ...]`` of the given shape, and targets for them."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(work["shape"], generator=generator)
    if work["loss"] == "SigmoidFocalLoss":
        targets = (torch.rand(work["shape"], generator=generator) < work["rate"]).float()
    else:
        n, classes, *spatial = work["shape"]
        targets = torch.randint(classes, (n, *spatial), generator=generator)
    return logits.to(device), targets.to(device)


def loss_module(work: dict[str, Any], device: str) -> nn.Module:
    """The loss at its defaults but for the options asked for."""
    import imbalanced_losses

    sizes = {} if work["shape"] else {"num_classes": work["classes"], "queue_size": work["queue"]}
    module: nn.Module = getattr(imbalanced_losses, work["loss"])(**sizes, **work["options"])
    return module.to(device)


def training_step(loss_fn: Callable[..., Tensor], logits: Tensor, targets: Tensor, batch: int) -> Call:
    """Forward and backward on the next batch.

    The batches take turns, so that a queue of the remaining rows and the batch are always the same pool.
    """
    leaves = [rows.clone().requires_grad_() for rows in torch.split(logits, batch)]
    turns = itertools.cycle(zip(leaves, torch.split(targets, batch), strict=True))

    def step() -> object:
        leaf, target = next(turns)
        return torch.autograd.grad(loss_fn(leaf, target), leaf)

    return step


def build(work: dict[str, Any], device: str) -> Call:
    """The call to measure."""
    logits, targets = (focal_inputs if work["shape"] else ranking_inputs)(work, device)
    if work["series"] == "sort":
        scores = (logits.flatten() if work["shape"] else logits.T).contiguous()
        return lambda: torch.sort(scores)
    loss_fn = loss_module(work, device)
    if work["queue"]:
        with torch.no_grad():
            loss_fn(logits[work["batch"] :], targets[work["batch"] :])
    called: Callable[..., Tensor] = loss_fn
    if work["series"] == "compiled":
        torch._dynamo.reset()
        called = torch.compile(loss_fn, fullgraph=True)
    return training_step(called, logits, targets, work["batch"] or len(logits))


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
            self.call = lambda: None  # its inputs go before the next ones come
            self.call = build(request["work"], self.device)
            gc.collect()
        if request["do"] == "memory" and request["work"]["series"] == "compiled":
            self.call()  # a compiler takes memory, too
        if request["do"] == "prepare":
            return {"seconds": seconds_of(self.call, self.device)}
        if request["do"] == "time":
            return {"seconds": median_seconds(self.call, request["seconds"], self.device)}
        if request["do"] == "memory":
            return {"bytes": least_peak_bytes(self.call, self.device)}
        return dict(count_compilations(request["work"], self.device))


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
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()

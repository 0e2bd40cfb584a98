"""One of W processes: joins a gloo group, then runs what it is told to until the line closes. See processes.py."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import traceback
import warnings
from datetime import timedelta
from multiprocessing.connection import Client
from pathlib import Path

import coverage
import torch
import torch.distributed as dist

# What torch's compiler does that torch warns of.
COMPILERS_OWN = (
    "The .grad attribute of a Tensor that is not a leaf Tensor",
    "<class 'torch.autograd.function.Function'> should not be instantiated",
)


def main(address: str, store: str, rank: int, size: int, timeout: float) -> None:
    sys.path.append(str(Path(__file__).parents[2]))  # for the tests; the package is the installed one
    torch.set_num_threads(1)
    coverage.process_startup()  # where a test is measured, so are its processes
    measured = coverage.Coverage.current()
    line = Client(address, "AF_UNIX")
    line.send(rank)
    dist.init_process_group(
        "gloo",
        store=dist.FileStore(store, size),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    while True:
        try:
            job, options, is_covered = pickle.loads(line.recv_bytes())
        except EOFError:
            if measured is not None:
                measured.stop()
                measured.save()
            os._exit(0)
        if measured is not None and is_covered != (coverage.Coverage.current() is not None):
            (measured.start if is_covered else measured.stop)()
        module, _, name = job.partition(":")
        torch.manual_seed(0)
        try:
            function = getattr(importlib.import_module(module), name)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                for message in COMPILERS_OWN:
                    warnings.filterwarnings("ignore", message)
                reply = function(**options), None
        except Exception:
            reply = None, traceback.format_exc()
        line.send_bytes(pickle.dumps(reply))  # as bytes: a connection would pass tensors through shared memory


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))

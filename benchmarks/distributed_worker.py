"""One of W processes that take an optimizer step together under DDP; ``distributed.py`` starts them and compares.

``imbalanced_losses`` is whatever the interpreter running this file has installed: ours, or the package we compare with,
whose import name is the same. This file therefore imports nothing else of the project.

    python distributed_worker.py SERIES RANK SIZE SHARDS FIRST FOLDER    writes FOLDER/result.json, on rank 0

``FIRST`` is the number of the loss to begin with: a process may die of one, and the driver goes on with the next.
"""

from __future__ import annotations

import json
import platform
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

ROWS, FEATURES, EMBEDDING = 64, 16, 8
SECONDS = 10  # how long a rank waits for another one that has failed

PACKAGES = {
    "ours": "imbalanced-losses",
    "peer": "imbalanced-losses",
    "metric learning": "pytorch-metric-learning",
}


@dataclass(frozen=True)
class Case:
    """A loss; ``classes`` are the columns of its logits, ``labels`` the kind of its targets."""

    loss: str
    options: dict[str, Any]
    classes: int = 1
    labels: str = "ids"

    @property
    def key(self) -> str:
        """Name in the results."""
        settings = [f"{name}={value!r}" for name, value in self.options.items() if name != "queue_size"]
        classes = "" if self.labels == "embeddings" else f", {self.classes} class{'es' * (self.classes > 1)}"
        return f"{self.loss}({', '.join(settings)}){classes}"

    def make(self) -> Callable[..., Any]:
        """The loss as a user makes it."""
        if self.labels == "embeddings":
            from pytorch_metric_learning import losses
            from pytorch_metric_learning.utils.distributed import DistributedLossWrapper

            options = dict(self.options)
            efficient = options.pop("efficient", False)
            loss: Callable[..., Any] = getattr(losses, self.loss)(**options)
            return DistributedLossWrapper(loss, efficient=efficient) if dist.is_initialized() else loss
        import imbalanced_losses

        sizes = {} if "Focal" in self.loss else {"num_classes": self.classes}
        made: Callable[..., Any] = getattr(imbalanced_losses, self.loss)(**sizes, **self.options)
        return made

    def batch(self, rows: int = ROWS) -> tuple[Tensor, Tensor]:
        """Features and targets of all ranks; every rank has positives of every class."""
        generator = torch.Generator().manual_seed(0)
        features = torch.randn(rows, FEATURES, generator=generator)
        if self.labels == "multilabel":
            return features, (torch.rand(rows, self.classes, generator=generator) < 0.3).float()
        if self.labels == "embeddings":
            return features, torch.arange(rows) % 4
        if self.classes > 1:
            return features, torch.arange(rows) % self.classes
        targets = (torch.arange(rows) % 4 == 0).long()
        return features, targets[:, None].float() if "Focal" in self.loss else targets


def _ranking(loss: str, classes: int = 1, labels: str = "ids", **options: Any) -> Case:
    return Case(loss, {"queue_size": 2 * ROWS, **options}, classes, labels)


SHARED = [
    _ranking("SmoothAPLoss", temperature=0.1),
    _ranking("SmoothAPLoss", classes=3, temperature=0.1),
    _ranking("SmoothAPLoss", classes=3, temperature=0.1, reduction="sum"),
    _ranking("RecallAtQuantileLoss", quantile=0.3, temperature=0.3),
    _ranking("PAUCAtBudgetLoss", beta=0.5),
    _ranking("PAUCAtBudgetLoss", beta=0.5, surrogate="pairwise"),
    Case("SigmoidFocalLoss", {"reduction": "mean"}),
    Case("SigmoidFocalLoss", {"reduction": "sum"}),
    Case("SoftmaxFocalLoss", {"reduction": "mean"}, 3),
    Case("SoftmaxFocalLoss", {"reduction": "mean_positive"}, 3),
]
OURS_ALONE = [
    _ranking("SmoothAPLoss", classes=3, labels="multilabel", temperature=0.1, multilabel=True),
    _ranking("RecallAtQuantileLoss", quantile=0.3, temperature=0.3, threshold_gradient="implicit"),
    _ranking("PAUCAtBudgetLoss", beta=0.5, threshold_gradient="implicit"),
]
METRIC_LEARNING = [
    Case("ContrastiveLoss", {}, EMBEDDING, "embeddings"),
    Case("ContrastiveLoss", {"efficient": True}, EMBEDDING, "embeddings"),
    Case("NTXentLoss", {}, EMBEDDING, "embeddings"),
    Case("FastAPLoss", {}, EMBEDDING, "embeddings"),
    Case("SmoothAPLoss", {}, EMBEDDING, "embeddings"),
]
CASES = {"ours": SHARED + OURS_ALONE, "peer": SHARED, "metric learning": METRIC_LEARNING}


def bounds(shards: str, size: int) -> list[int]:
    """Where each rank's rows begin, and the end."""
    if shards == "uneven":
        return [ROWS - ROWS * (size - k) ** 2 // size**2 for k in range(size)] + [ROWS]
    if shards == "empty":  # the last rank has no rows
        return [ROWS * k // (size - 1) for k in range(size)] + [ROWS]
    return [ROWS * k // size for k in range(size + 1)]


def update(case: Case, start: int, end: int) -> Tensor:
    """What one SGD step on the rows from ``start`` to ``end`` adds to the parameters, as one vector."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, case.classes))
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    net = DistributedDataParallel(model) if dist.is_initialized() else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    features, targets = case.batch()
    case.make()(net(features[start:end]), targets[start:end]).backward()
    optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - before


class Collectives(TorchDispatchMode):
    """Counts collectives, and the bytes that this rank puts into them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Look at what comes by."""
        if func.namespace == "c10d":
            self.count += 1
            given = args[1] if "gather" in func.overloadpacket.__name__ else args[0]  # gathers name their output first
            self.bytes += sum(leaf.nbytes for leaf in _pytree.tree_leaves(given) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def cost(case: Case, rank: int) -> dict[str, int]:
    """Collectives of one forward and backward of the loss alone, with 32 rows a rank."""
    features, targets = case.batch(32 * dist.get_world_size())
    own = slice(32 * rank, 32 * (rank + 1))
    logits = features[own, : case.classes].clone().requires_grad_()
    loss_fn = case.make()
    with Collectives() as seen:
        loss_fn(logits, targets[own]).backward()
    return {"collectives": seen.count, "bytes": seen.bytes}


def together(job: Callable[[], Any], name: str, rank: int, size: int, folder: Path, meeting: Any) -> Any:
    """Run a job in a group of its own, so that a failure spoils no other; an error is a result."""
    meeting.set(f"{name} {rank}", "here")
    meeting.wait([f"{name} {other}" for other in range(size)], timedelta(seconds=120))
    store = dist.FileStore(str(folder / f"store {name}"), size)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=SECONDS))
    try:
        return job()
    except Exception as error:
        message = re.sub(r"\[[^]]*\]:?\S*", "", f"{type(error).__name__}: {error}".splitlines()[0])  # addresses, lines
        return {"error": " ".join(message.split())[:120]}
    finally:
        dist.destroy_process_group()


def compare(case: Case, alone: Tensor, start: int, end: int) -> dict[str, float]:
    """Set this group's step against the single process's."""
    step = update(case, start, end)
    return {
        "ratio": (step.norm() / alone.norm()).item(),
        "distance": ((step - alone).norm() / alone.norm()).item(),
    }


def main() -> None:
    """Take the steps and write what came of them."""
    series, shards, folder = sys.argv[1], sys.argv[4], Path(sys.argv[6])
    rank, size, first = int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[5])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    start, end = bounds(shards, size)[rank : rank + 2]
    about = {"package": version(PACKAGES[series]), "torch": torch.__version__, "python": platform.python_version()}
    # one for all jobs: the last of a file's stores to go removes it, which may be while another process opens it anew
    place = folder, dist.FileStore(str(folder / "meeting"), size)  # type: ignore[attr-defined]
    result: dict[str, Any] = {**about, "cases": [case.key for case in CASES[series]], "steps": {}, "costs": {}}
    for number, case in enumerate(CASES[series][first:]):
        if rank == 0:
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
        alone = update(case, 0, ROWS)  # there is no group yet
        found = together(partial(compare, case, alone, start, end), f"step {number}", rank, size, *place)
        result["steps"][case.key] = found
    for number, case in enumerate(CASES[series] if shards == "even" else ()):
        if case.options.get("reduction", "mean") == "mean":
            result["costs"][case.key] = together(partial(cost, case, rank), f"cost {number}", rank, size, *place)
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()

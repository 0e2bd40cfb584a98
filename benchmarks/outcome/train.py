"""One training run, asked over stdin and stdout, a line of JSON each way.

``imbalanced_losses`` is whatever the interpreter running this file has installed: ours, or the package that we compare
with, whose import name is the same; in a third environment there is ``libauc``. This file therefore imports nothing
else of the project.

    {"do": "hello", "series": "ours"}                   -> {"package": "0.1.0", "torch": "2.13.0"}
    {"do": "train", "data": "FILE", "output": "FILE", "contender": {...}, "setting": {...}, "seed": 0, ...}
        -> {"seconds": 0.0005}          median of a step; validation and test logits [N, C] are in the output file
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import os
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

# logits [B, C], targets, row numbers [B] -> a scalar
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
Job = dict[str, Any]
Tensors = dict[str, Tensor]

HIDDEN = 64
PACKAGES = {"ours": "imbalanced-losses", "peer": "imbalanced-losses", "libauc": "libauc"}


class CrossEntropy(nn.Module):
    """(Weighted, logit-adjusted) cross-entropy: of the classes, or of each label.

    ``weighting`` is the power of the inverse class frequency that weighs a class; ``adjustment`` the weight of the
    logarithm of the class frequencies (of the odds, for a label) that is added to the logits in training: Menon et
    al., ICLR 2021, equation 10.
    """

    def __init__(self, job: Job, targets: Tensor, weighting: float = 0.0, adjustment: float = 0.0) -> None:
        super().__init__()
        self.of_classes = job["kind"] == "multiclass"
        if self.of_classes:
            shares = functional.one_hot(targets, job["n_classes"]).float().mean(0)
            self.weight = (1 / (job["n_classes"] * shares)) ** weighting
            self.shift = adjustment * shares.log()
        else:
            shares = targets.view(len(targets), -1).float().mean(0)
            self.weight = ((1 - shares) / shares) ** weighting
            self.shift = adjustment * (shares / (1 - shares)).log()

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch."""
        if self.of_classes:
            return functional.cross_entropy(logits + self.shift, targets, self.weight)
        labels = targets.view_as(logits).float()
        return functional.binary_cross_entropy_with_logits(logits + self.shift, labels, pos_weight=self.weight)


class Focal(nn.Module):
    """Our focal losses, on hot labels where they are of classes."""

    def __init__(self, job: Job, **options: Any) -> None:
        super().__init__()
        import imbalanced_losses

        self.loss = getattr(imbalanced_losses, job["contender"]["loss"])(**options)
        self.n_classes = job["n_classes"]
        self.hot = job["contender"]["loss"] == "SigmoidFocalLoss"

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean over the batch, or over its elements."""
        if self.hot:
            one_hot = self.n_classes > 1 and targets.dim() == 1
            targets = (functional.one_hot(targets, self.n_classes) if one_hot else targets.view_as(logits)).float()
        loss: Tensor = self.loss(logits, targets)
        return loss


def ranking_loss(job: Job, options: dict[str, Any]) -> nn.Module:
    """Ours or the peer's; the share of alerts, or of false ones, is the task's budget, or ``band`` times that."""
    import imbalanced_losses

    name = job["contender"]["loss"]
    share = min(1.0, options.pop("band", 1.0) * job["budget"])
    shares = {"RecallAtQuantileLoss": "quantile", "PAUCAtBudgetLoss": "beta"}
    options = {**options, **({shares[name]: share} if name in shares else {})}
    if job["kind"] == "multilabel":
        options["multilabel"] = True
    module: nn.Module = getattr(imbalanced_losses, name)(num_classes=job["n_classes"], **options)
    return module


def warmed_up(job: Job, main: Any, targets: Tensor, shape: dict[str, Any]) -> nn.Module:
    """Cross-entropy for a share of the steps, a blend for another, then the main loss; one temperature by default."""
    from imbalanced_losses import LossWarmupWrapper

    steps, temperature = job["steps"], float(main.temperature)
    return LossWarmupWrapper(
        CrossEntropy(job, targets, adjustment=shape.get("adjustment", 0.0)),
        main,
        temp_start=shape.get("temp_start", temperature),
        temp_end=shape.get("temp_end", temperature),
        temp_decay_steps=round(steps * (1 - shape["warmup"])) or 1,
        warmup_steps=round(steps * shape["warmup"]),
        blend_steps=round(steps * shape["blend"]),
        final_main_weight=shape.get("final", 1.0),
        auto_step=True,
    )


def make_loss(job: Job, targets: Tensor) -> Loss:
    """The contender's loss, of our series or of the peer."""
    contender, options = job["contender"], {**job["contender"]["options"], **job["setting"]}
    options.pop("lr")
    if contender["loss"] == "CrossEntropy":
        module: nn.Module = CrossEntropy(job, targets, **options)
    elif contender["loss"].endswith("FocalLoss"):
        module = Focal(job, **options)
    else:
        module = ranking_loss(job, options)
        if contender["schedule"]:
            module = warmed_up(job, module, targets, contender["schedule"])
    return lambda logits, of_batch, _: module(logits, of_batch)


def batches(n_rows: int, job: Job) -> Iterator[Tensor]:
    """Row numbers: one random order after another, cut into batches."""
    generator = torch.Generator().manual_seed(job["seed"])
    needed = job["steps"] * job["batch"]
    orders = [torch.randperm(n_rows, generator=generator) for _ in range(-(-needed // n_rows))]
    return iter(torch.split(torch.cat(orders)[:needed], job["batch"]))


def libauc_parts(job: Job, model: nn.Module, targets: Tensor) -> tuple[Loss, torch.optim.Optimizer, Iterator[Tensor]]:
    """LibAUC's loss, the optimizer made for it, and its sampler with its default: half of each batch is positive."""
    from libauc import losses, optimizers, sampler

    class Rows(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return len(targets)

        def __getitem__(self, row: int) -> int:
            return row

    half = job["batch"] // 2
    dual = sampler.DualSampler(Rows(), job["batch"], labels=targets.numpy(), sampling_rate=0.5, random_seed=job["seed"])
    lr, options = job["setting"]["lr"], {name: value for name, value in job["setting"].items() if name != "lr"}
    optimizer: torch.optim.Optimizer
    if job["contender"]["loss"] == "AUCMLoss":
        auc = losses.AUCMLoss(version="v2", **options)  # the version for batches that a sampler has balanced
        optimizer = optimizers.PESG(model.parameters(), loss_fn=auc, lr=lr, momentum=0.9, verbose=False)
        return (lambda p, y, _: auc(p.sigmoid(), y.view_as(p))), optimizer, _sampled(dual, job)
    if job["contender"]["loss"] == "APLoss":
        indexed = losses.APLoss(data_len=len(targets), **options)
        optimizer = optimizers.SOAP(model.parameters(), lr=lr, mode="adam", verbose=False)
    else:
        positives = int(targets.sum())
        indexed = losses.pAUC_CVaR_Loss(len(targets), positives, num_neg=half, **options)
        optimizer = optimizers.SOPA(model.parameters(), lr=lr, mode="adam", verbose=False)
    return (lambda p, y, rows: indexed(p.sigmoid(), y.view_as(p), rows)), optimizer, _sampled(dual, job)


def _sampled(sampler: Any, job: Job) -> Iterator[Tensor]:
    """Batches of the sampler, epoch after epoch."""
    made = 0
    while made < job["steps"]:
        for batch in torch.split(torch.tensor([int(row) for row in sampler]), job["batch"]):
            yield batch
            made += 1
            if made == job["steps"]:
                return


def make_model(n_features: int, job: Job) -> nn.Module:
    """One hidden layer; the same initial weights for all contenders of a seed."""
    torch.manual_seed(job["seed"])
    return nn.Sequential(nn.Linear(n_features, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, job["n_classes"]))


def train(data: Tensors, job: Job) -> tuple[nn.Module, float]:
    """The trained model, and the median of a step's seconds: forward, loss, backward and optimizer."""
    features, targets = data["train_features"], data["train_targets"]
    if job["contender"]["series"] == "libauc":  # it expects the positives first
        order = targets.argsort(descending=True, stable=True)
        features, targets = features[order], targets[order]
    model = make_model(features.shape[1], job)
    if job["contender"]["series"] == "libauc":
        loss_fn, optimizer, rows = libauc_parts(job, model, targets)
    else:
        loss_fn, rows = make_loss(job, targets), batches(len(features), job)
        optimizer = torch.optim.Adam(model.parameters(), lr=job["setting"]["lr"], fused=True)
    seconds = []
    for batch in rows:
        inputs, of_batch = features[batch], targets[batch]
        start = time.perf_counter()
        loss = loss_fn(model(inputs), of_batch, batch)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    return model, statistics.median(seconds)


class Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for torchvision, which libauc imports for image models that nobody here uses."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Any module of torchvision."""
        found = fullname.split(".")[0] == "torchvision"
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Make a module in which every public name is an empty class."""

        def empty_class(name: str) -> type:
            if name.startswith("__"):
                raise AttributeError(name)
            return type(name, (), {})

        module = types.ModuleType(spec.name)
        module.__getattr__ = empty_class  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to do."""


class Worker:
    """Answers requests; keeps the data of the last job."""

    def __init__(self) -> None:
        self.path, self.data = "", Tensors()

    def answer(self, request: Job) -> dict[str, Any]:
        """Do what is asked."""
        if request["do"] == "hello":
            return hello(request["series"])
        if request["data"] != self.path:
            self.path, self.data = request["data"], torch.load(request["data"])
        model, seconds = train(self.data, request)
        with torch.no_grad():
            logits = {name: model(self.data[f"{name}_features"]) for name in ("validation", "test")}
        torch.save(logits, request["output"])
        return {"seconds": seconds}


def hello(series: str) -> dict[str, Any]:
    """Versions, once the package has been imported."""
    if series == "libauc":
        import libauc.losses
        import libauc.optimizers
        import libauc.sampler  # noqa: F401
    else:
        import imbalanced_losses  # noqa: F401
    return {"package": version(PACKAGES[series]), "torch": torch.__version__}


def main() -> None:
    """Answer line by line until stdin ends; what libraries print goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    sys.meta_path.insert(0, Absent())
    worker = Worker()
    for line in sys.stdin:
        try:
            reply = worker.answer(json.loads(line))
        except Exception as error:  # whatever a package raises is a result; run.py records it
            reply = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
        print(json.dumps(reply), file=replies)


if __name__ == "__main__":
    main()

"""LibAUC's losses with the optimizers and the sampler that are made for them; runs in its environment only."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Absent", "make_parts"]


def make_parts(
    job: dict[str, Any], model: nn.Module, targets: Tensor, batch: int
) -> tuple[Callable[[Tensor, Tensor, Tensor], Tensor], torch.optim.Optimizer, Iterator[Tensor]]:
    """Loss of logits, targets and row numbers; optimizer; batches. ``targets`` have the positives first.

    The sampler is left with its default: half of each batch is positive.
    """
    from libauc import losses, optimizers, sampler

    class Rows(torch.utils.data.Dataset[int]):
        def __len__(self) -> int:
            return len(targets)

        def __getitem__(self, row: int) -> int:
            return row

    half = batch // 2
    dual = sampler.DualSampler(Rows(), batch, labels=targets.numpy(), sampling_rate=0.5, random_seed=job["seed"])
    lr, own = job["setting"]["lr"], {name: value for name, value in job["setting"].items() if name != "lr"}
    optimizer: torch.optim.Optimizer
    if job["contender"]["loss"] == "AUCMLoss":
        auc = losses.AUCMLoss(version="v2", **own)  # the version for batches that a sampler has balanced
        optimizer = optimizers.PESG(model.parameters(), loss_fn=auc, lr=lr, momentum=0.9, verbose=False)
        return (lambda p, y, _: auc(p.sigmoid(), y.view_as(p))), optimizer, _batches(dual, batch)
    if job["contender"]["loss"] == "APLoss":
        indexed = losses.APLoss(data_len=len(targets), **own)
        optimizer = optimizers.SOAP(model.parameters(), lr=lr, mode="adam", verbose=False)
    else:
        indexed = losses.pAUC_CVaR_Loss(len(targets), int(targets.sum()), num_neg=half, **own)
        optimizer = optimizers.SOPA(model.parameters(), lr=lr, mode="adam", verbose=False)
    return (lambda p, y, rows: indexed(p.sigmoid(), y.view_as(p), rows)), optimizer, _batches(dual, batch)


def _batches(sampler: Any, batch: int) -> Iterator[Tensor]:
    while True:
        yield from torch.split(torch.tensor([int(row) for row in sampler]), batch)


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

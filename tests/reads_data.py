"""Counts the operators that make an accelerator wait, for the tests of eager mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode


class ReadsData(TorchDispatchMode):
    """Collects the operators whose result or shape depends on data: an accelerator would wait at each one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.total += 1
        if self.depends_on_data(func, args):
            self.calls.append(str(func))
        return func(*args, **(kwargs or {}))

    @staticmethod
    def depends_on_data(func: Any, args: Any) -> bool:
        name = func.overloadpacket.__name__
        if name.startswith(("index", "_index_put", "_unsafe_index")):  # tagged for their boolean masks only
            indices = [leaf for leaf in _pytree.tree_leaves(args[1:2]) if isinstance(leaf, Tensor)]
            return any(index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name == "repeat_interleave" or name in ("_local_scalar_dense", "equal", "is_nonzero"):
            return True
        return torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags

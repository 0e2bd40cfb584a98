"""States: frozen dataclasses of tensors that are pytrees of torch and of optree.

Only states carry values from one call to the next. They are registered here with both libraries, which do not share a
registry, so that ``vmap``, ``torch.compile`` and ``optree.tree_map`` accept them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import optree
import torch
from torch.utils import _pytree as torch_pytree

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:  # typing has it from Python 3.11 on

    def dataclass_transform(**_):
        return lambda decorator: decorator


__all__ = ["stack_states", "state_dataclass", "unstack_states"]

T = TypeVar("T")

# optree's "every namespace" has no public name, so fall back to a namespace of our own.
_EVERY_NAMESPACE: Any = getattr(optree.registry, "__GLOBAL_NAMESPACE", "imbalanced_losses")


@dataclass_transform(frozen_default=True, kw_only_default=True, eq_default=False)
def state_dataclass(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen, keyword-only dataclass and a pytree node of torch and optree.

    Every field must hold a tensor (or a pytree of tensors) from the start. A field that is ``None`` first and a tensor
    later changes the structure, which forces a recompilation.

    Examples
    --------
    >>> @state_dataclass
    ... class Counter:
    ...     count: torch.Tensor
    >>> state = Counter(count=torch.zeros(()))
    >>> optree.tree_map(lambda leaf: leaf + 1, state).count
    tensor(1.)
    """
    node: Any = dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)(cls)
    names = tuple(field.name for field in dataclasses.fields(node))
    torch_pytree.register_dataclass(node)
    optree.register_pytree_node(
        node,
        lambda state: (tuple(getattr(state, name) for name in names), None, names),
        lambda _, children: node(**dict(zip(names, children, strict=True))),
        namespace=_EVERY_NAMESPACE,
    )
    return node  # type: ignore[no-any-return]


def stack_states(states: Sequence[T]) -> T:
    """Stack states of one structure along a new leading axis: an ensemble for ``torch.func.vmap``.

    Parameters
    ----------
    states : sequence of states
        At least one; all of the same class, shapes and dtypes.

    Raises
    ------
    ValueError
        If ``states`` is empty or the states differ in structure, shapes or dtypes.

    Examples
    --------
    >>> from imbalanced_losses import init_queue
    >>> stack_states([init_queue(8, 3) for _ in range(5)]).logits.shape
    torch.Size([5, 8, 3])
    """
    if not states:
        raise ValueError("expected at least one state to stack, got an empty sequence")
    structures = {torch_pytree.tree_structure(state) for state in states}
    if len(structures) > 1:
        raise ValueError(f"expected states of one structure, got {len(structures)} different structures")
    for leaves in zip(*map(torch_pytree.tree_leaves, states), strict=True):
        layouts = {f"{list(leaf.shape)} of {leaf.dtype}" for leaf in leaves}
        if len(layouts) > 1:
            raise ValueError(f"expected states of the same shapes and dtypes, got {' and '.join(sorted(layouts))}")
    return torch_pytree.tree_map(lambda *leaves: torch.stack(leaves), *states)  # type: ignore[no-any-return]


def unstack_states(stacked: T) -> list[T]:
    """Undo :func:`stack_states`: return the states of the ensemble as a list.

    Examples
    --------
    >>> from imbalanced_losses import init_queue
    >>> [state.logits.shape for state in unstack_states(stack_states([init_queue(8, 3)] * 2))]
    [torch.Size([8, 3]), torch.Size([8, 3])]
    """
    leaves, structure = torch_pytree.tree_flatten(stacked)
    columns = zip(*(leaf.unbind(0) for leaf in leaves), strict=True)
    return [torch_pytree.tree_unflatten(list(column), structure) for column in columns]

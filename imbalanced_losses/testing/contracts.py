"""Check a loss against the contract of this library's losses."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import torch
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from imbalanced_losses import QueueState
from imbalanced_losses.modules._callables import takes
from imbalanced_losses.testing import ranking_properties
from imbalanced_losses.testing.elementwise_properties import make_properties
from imbalanced_losses.testing.properties import (
    ContractError,
    Property,
    check_compiled,
    compiled,
    hold,
    with_optional,
)
from imbalanced_losses.testing.strategies import elementwise_batches, ranking_batches

__all__ = [
    "ELEMENTWISE_PROPERTIES",
    "RANKING_PROPERTIES",
    "ContractError",
    "check_elementwise_loss",
    "check_ranking_loss",
]

COMPILED = "the loss under torch.compile(fullgraph=True) equals the loss."
ROWS = 6  # in batches and queues of compiled losses: other shapes would be compiled again

RANKING_PROPERTIES = {
    **{own.name: own.statement for own in ranking_properties.PROPERTIES},
    "compile": COMPILED,
}
"""The contract of a ranking loss: the names for ``skip``, each with its statement."""

ELEMENTWISE_PROPERTIES = {**{own.name: own.statement for own in make_properties(-100)}, "compile": COMPILED}
"""The contract of an elementwise loss: the names for ``skip``, each with its statement."""


def check_ranking_loss(
    loss: Callable[..., tuple[Tensor, QueueState]],
    *,
    num_classes: int = 1,
    multilabel: bool = False,
    ignore_index: int = -100,
    skip: Collection[str] = (),
    backend: str = "aot_eager",
    max_examples: int = 25,
) -> None:
    """Check a ranking loss against the contract.

    The loss is called as ``loss(logits, targets, queue_state)``, and with ``sample_weight=`` and ``iid_mask=`` if it
    takes them, see :class:`RankingBatch`. It returns ``(loss, new_state)``. Hypothesis draws the same batches in every
    run. If a property does not hold, the error shows the smallest failing batch.

    Parameters
    ----------
    loss : callable
        For example ``functools.partial(smooth_ap, cfg=cfg)``, or your own function.
    num_classes, multilabel, ignore_index
        The logits and targets that the loss takes, as in :func:`imbalanced_losses.init_queue`.
    skip : collection of str
        Properties that the loss does not have by design, see ``RANKING_PROPERTIES``. For example, ``reduction="sum"``
        with several classes does not have ``"range"``.
    backend : str
        Backend of ``torch.compile``. ``"inductor"`` is the default of users, and takes longer.
    max_examples : int
        Number of batches for each property.

    Raises
    ------
    ContractError
        If a property does not hold, with the name of the first one and the smallest batch.
    ValueError
        If a name in ``skip`` is not that of a property.

    Notes
    -----
    Numbers are compared up to 1e-5 of the largest element. ``torch.compiler.reset()`` is called before the loss is
    compiled.

    Examples
    --------
    >>> from functools import partial
    >>> from imbalanced_losses import SmoothAPConfig, smooth_ap
    >>> from imbalanced_losses.testing import check_ranking_loss
    >>> check_ranking_loss(partial(smooth_ap, cfg=SmoothAPConfig(num_classes=3)), num_classes=3, max_examples=5)

    The metric is not a loss: it is 1 if no row counts.

    >>> def metric(logits, targets, queue_state):
    ...     loss, new_state = smooth_ap(logits, targets, queue_state, SmoothAPConfig(num_classes=1))
    ...     return 1 - loss, new_state
    >>> check_ranking_loss(metric)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    imbalanced_losses.testing.properties.ContractError: empty: without rows that count the loss is 0...
    """
    optional = [name for name in ("sample_weight", "iid_mask") if takes(loss, name)]
    draw = partial(
        ranking_batches,
        num_classes,
        multilabel=multilabel,
        ignore_index=ignore_index,
        sample_weights="sample_weight" in optional,
        iid_masks="iid_mask" in optional,
    )
    fixed = {"min_queue": ROWS, "max_queue": ROWS}
    properties = [*ranking_properties.PROPERTIES, _compile_property(loss, backend, fixed)]
    _hold_all(properties, RANKING_PROPERTIES, loss, draw, optional, skip, max_examples)


def check_elementwise_loss(
    loss: Callable[..., Tensor],
    *,
    num_classes: int = 1,
    multilabel: bool = False,
    positions: Sequence[int] = (),
    ignore_index: int | None = -100,
    skip: Collection[str] = (),
    backend: str = "aot_eager",
    max_examples: int = 25,
) -> None:
    """Check an elementwise loss against the contract.

    The loss is called as ``loss(logits, targets)``, and with ``sample_weight=`` if it takes it, see
    :class:`ElementwiseBatch`. It returns one number, or the losses of the elements. If a property does not hold, the
    error shows the smallest failing batch.

    Parameters
    ----------
    loss : callable
        For example ``functools.partial(softmax_focal, cfg=cfg)``, an ``nn.Module``, or your own function.
    num_classes, multilabel, positions, ignore_index
        The logits and targets that the loss takes, see :func:`elementwise_batches`.
    skip : collection of str
        Properties that the loss does not have by design, see ``ELEMENTWISE_PROPERTIES``. For example, a loss with label
        smoothing does not have ``"direction"``.
    backend : str
        Backend of ``torch.compile``. ``"inductor"`` is the default of users, and takes longer.
    max_examples : int
        Number of batches for each property.

    Raises
    ------
    ContractError
        If a property does not hold, with the name of the first one and the smallest batch.
    ValueError
        If a name in ``skip`` is not that of a property.

    Notes
    -----
    Numbers are compared up to 1e-5 of the largest element. ``torch.compiler.reset()`` is called before the loss is
    compiled.

    Examples
    --------
    >>> from torch import nn
    >>> from imbalanced_losses import SoftmaxFocalLoss
    >>> from imbalanced_losses.testing import check_elementwise_loss
    >>> check_elementwise_loss(SoftmaxFocalLoss(), num_classes=3, max_examples=5)

    ``nn.CrossEntropyLoss`` is nan if no element counts:

    >>> check_elementwise_loss(nn.CrossEntropyLoss(), num_classes=3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    imbalanced_losses.testing.properties.ContractError: empty: without elements that count the loss is 0...
    """
    optional = [name for name in ("sample_weight",) if takes(loss, name)]
    draw = partial(
        elementwise_batches,
        num_classes,
        multilabel=multilabel,
        positions=positions,
        ignore_index=ignore_index,
        sample_weights=bool(optional),
    )
    properties = [*make_properties(ignore_index), _compile_property(loss, backend, {})]
    _hold_all(properties, ELEMENTWISE_PROPERTIES, loss, draw, optional, skip, max_examples)


def _compile_property(loss: Callable[..., Any], backend: str, fixed: dict[str, int]) -> Property:
    check = partial(check_compiled, compiled(loss, backend))
    return Property("compile", COMPILED, check, {"min_rows": ROWS, "max_rows": ROWS, **fixed}, all_optional=True)


def _hold_all(
    properties: list[Property],
    known: Collection[str],
    loss: Callable[..., Any],
    draw: Callable[..., SearchStrategy[Any]],
    optional: list[str],
    skip: Collection[str],
    max_examples: int,
) -> None:
    """Check each property that is not skipped and whose arguments the loss takes."""
    unknown = sorted(set([skip] if isinstance(skip, str) else skip) - set(known))
    if unknown:
        raise ValueError(f"expected names of properties in skip ({', '.join(known)}), got {', '.join(unknown)}")
    skipped = {*skip} | ({"weights"} if "sample_weight" not in optional else set())
    for own in properties:
        if own.name in skipped:
            continue
        if own.name == "compile":
            torch.compiler.reset()
        batches = draw(**{"min_rows": 1, "dtypes": (torch.float64,), **own.batches})
        if own.all_optional:
            batches = batches.map(lambda batch: with_optional(batch, optional))
        hold(own, loss, batches, max_examples)

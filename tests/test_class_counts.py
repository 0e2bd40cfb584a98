"""Class counts: exact against a loop over the labels, a state like the others, finite priors."""

from __future__ import annotations

from typing import Any

import optree
import pytest
import torch
from torch import Tensor
from torch.func import vmap

from imbalanced_losses import ClassCounts, class_priors, init_class_counts, stack_states, update_class_counts

IDS = torch.tensor([0, 2, 2, -100, 7, -1, 1, 2])  # of 4 classes: three are no class
LABELS = torch.tensor([[1.0, 0.0], [0.0, -100.0], [0.7, 0.2], [torch.nan, 1.0], [2.0, 1 + 1e-7]])


def lists(state: ClassCounts) -> tuple[list[int], list[int]]:
    return state.positives.tolist(), state.labels.tolist()


def compiled(state: ClassCounts, targets: Tensor, **options: Any) -> ClassCounts:
    function = torch.compile(update_class_counts, fullgraph=True, backend="aot_eager")
    return function(state, targets, **options)  # type: ignore[no-any-return]


def mapped(state: ClassCounts, targets: Tensor, **options: Any) -> ClassCounts:
    states = vmap(lambda s, y: update_class_counts(s, y, **options))(
        stack_states([state, state]), targets.expand(2, *targets.shape)
    )
    return optree.tree_map(lambda leaf: leaf[1], states)  # type: ignore[return-value]


every_way = pytest.mark.parametrize("update", [update_class_counts, compiled, mapped])


@every_way
@pytest.mark.parametrize(
    ("num_classes", "targets", "options", "positives", "labels"),
    [
        (4, IDS, {}, [1, 1, 3, 0], [5] * 4),
        (4, IDS.reshape(2, 2, 2), {}, [1, 1, 3, 0], [5] * 4),
        (4, IDS, {"ignore_index": 2}, [1, 1, 0, 0], [2] * 4),
        (4, IDS[:0], {}, [0] * 4, [0] * 4),
        (256, torch.tensor([156, 255], dtype=torch.uint8), {}, [0] * 156 + [1] + [0] * 98 + [1], [2] * 256),
        (2, LABELS, {"multilabel": True}, [2, 2], [3, 4]),
        (2, LABELS[:, :, None].expand(5, 2, 3), {"multilabel": True}, [6, 6], [9, 12]),
        (2, torch.tensor([[0.5, 0.75], [0.5, -100.0]]), {"multilabel": True}, [0, 1], [2, 1]),
        (2, torch.tensor([[1, 0], [1, 0]]), {"multilabel": True}, [2, 0], [2, 2]),
        (2, torch.tensor([[1, 0], [1, 0]]), {"multilabel": True, "ignore_index": 0}, [2, 0], [2, 0]),
        (2, LABELS[:0], {"multilabel": True}, [0, 0], [0, 0]),
        (1, torch.tensor([1, 0, 0, -100]), {}, [1], [3]),
        (1, torch.tensor([0.5, 0.75]), {}, [1], [2]),
        (1, torch.tensor([[True], [False]]), {}, [1], [2]),
    ],
)
def test_counts(
    update: Any, num_classes: int, targets: Tensor, options: Any, positives: list[int], labels: list[int]
) -> None:
    """Out-of-range labels and nan count for no class."""
    state = init_class_counts(num_classes)
    once = update(state, targets, **options)
    assert lists(once) == (positives, labels)
    assert lists(state) == ([0] * num_classes,) * 2
    assert lists(update(once, targets, **options)) == ([2 * n for n in positives], [2 * n for n in labels])
    for new, old in zip(optree.tree_leaves(once), optree.tree_leaves(state), strict=True):
        assert (new.shape, new.dtype, new.device) == (old.shape, old.dtype, old.device)


def test_on_meta_tensors() -> None:
    state = init_class_counts(4, device="meta")
    assert class_priors(update_class_counts(state, IDS.to("meta"))).is_meta


def test_priors_are_finite() -> None:
    """Before the first batch they are equal; a class that was never seen has some."""
    assert class_priors(init_class_counts(3)).tolist() == [0.5] * 3
    priors = class_priors(update_class_counts(init_class_counts(4), IDS))
    torch.testing.assert_close(priors, torch.tensor([1.5, 1.5, 3.5, 0.5]) / 6)
    torch.testing.assert_close(
        class_priors(update_class_counts(init_class_counts(1), torch.zeros(9))), torch.tensor([0.05])
    )


@pytest.mark.parametrize(
    ("num_classes", "targets", "options", "error", "message"),
    [
        (3, [0, 1], {}, TypeError, "expected targets to be a Tensor"),
        (3, LABELS, {}, TypeError, "multilabel=True"),
        (3, LABELS, {"multilabel": True}, ValueError, r"expected targets of shape \[N, 3, ...\]"),
        (3, IDS * 1j, {}, TypeError, "expected targets of a real dtype"),
        (3, IDS.to("meta"), {}, ValueError, "expected targets on cpu like the class counts"),
        (3, IDS, {"multilabel": 2}, TypeError, "expected multilabel to be True or False"),
        (3, IDS, {"ignore_index": None}, TypeError, "expected ignore_index to be an int"),
    ],
)
def test_errors(num_classes: int, targets: Any, options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        update_class_counts(init_class_counts(num_classes), targets, **options)
    with pytest.raises(ValueError, match="expected num_classes to be at least 1"):
        init_class_counts(0)

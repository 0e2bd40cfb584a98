"""What the ranking losses do to the queue that they are given."""

from __future__ import annotations

import pytest
import torch

from imbalanced_losses import init_queue
from imbalanced_losses.queue import push
from tests.transforms.cases import CASES, ONE_PER_LOSS, Case, assert_same_state

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@every_case
def test_losses_push_the_live_rows(case: Case) -> None:
    inputs = case.inputs()
    flags = {"iid_mask": inputs.iid_mask, "sample_weight": inputs.sample_weight}
    _, new = case.loss.function(inputs.logits, inputs.targets, inputs.state, case.config(), **flags)
    assert_same_state(new, push(inputs.state, inputs.logits, inputs.targets, inputs.iid_mask, inputs.sample_weight))
    plain = case.call(inputs.logits, inputs.targets, inputs.state, inputs.temperature)[1]
    ones = torch.ones(len(inputs.logits))
    assert_same_state(plain, push(inputs.state, inputs.logits, inputs.targets, ones.bool(), ones))


@pytest.mark.parametrize("case", ONE_PER_LOSS, ids=str)
def test_ignored_live_rows_are_stored_as_ignored(case: Case) -> None:
    """Under the state's own mark, so that the next loss finds them ignored."""
    inputs = case.inputs()
    targets = torch.full_like(inputs.targets, -100)
    state = case.call(inputs.logits, targets, case.empty_queue(), inputs.temperature)[1]
    assert (state.targets == -100).all()


@pytest.mark.parametrize("case", ONE_PER_LOSS, ids=str)
def test_state_with_another_ignore_index_than_the_config(case: Case) -> None:
    """An unfilled slot is never a row, and an ignored live row never becomes one, whatever the two marks are."""
    inputs = case.inputs()
    settings = {"multilabel": case.multilabel, "dtype": torch.float64}
    ours = case.call(inputs.logits, inputs.targets, init_queue(8, case.num_classes, **settings), inputs.temperature)
    other_mark = init_queue(8, case.num_classes, ignore_index=-7, **settings)
    theirs = case.call(inputs.logits, inputs.targets, other_mark, inputs.temperature)
    assert torch.equal(ours[0], theirs[0])
    again = [case.value(inputs.logits, inputs.targets, state, inputs.temperature) for _, state in (ours, theirs)]
    assert torch.equal(*again)

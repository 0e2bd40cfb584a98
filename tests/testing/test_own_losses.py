"""Every loss of the library, as a function and as a module, keeps the contract that it publishes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from imbalanced_losses.modules._callables import takes
from imbalanced_losses.testing import check_elementwise_loss, check_ranking_loss
from tests.contracts import elements
from tests.contracts.cases import CASES, Case, case_named, over
from tests.strategies import KINDS
from tests.testing.shells import as_function

EXAMPLES = 12
IN_TURN = [(case, list(KINDS)[i % 3]) for i, case in enumerate(CASES)]


def not_meant(case: Case) -> tuple[str, ...]:
    """Properties that a loss is not meant to have; positives in the queue do not count in a numerator of live ones."""
    meant = {"pool": not case.live_numerator, "range": case.variant.bounded, "shift": case.loss.shift_invariant}
    return tuple(name for name, is_meant in meant.items() if not is_meant)


@pytest.mark.exhaustive  # `make test` checks a function in the doctest of check_ranking_loss, and a module below
@pytest.mark.parametrize(("case", "kind"), IN_TURN, ids=lambda part: getattr(part, "name", part))
def test_ranking_functions(case: Case, kind: str) -> None:
    num_classes, multilabel = KINDS[kind]
    cfg = case.loss.config(num_classes=num_classes, multilabel=multilabel, **case.options)
    check_ranking_loss(
        partial(case.loss.function, cfg=cfg),
        num_classes=num_classes,
        multilabel=multilabel,
        skip=not_meant(case),
        max_examples=EXAMPLES,
    )


def test_keywords_of_a_wrapped_module_are_those_of_its_forward() -> None:
    class Unweighted(nn.Module):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            raise NotImplementedError

    for loss in (Unweighted(), partial(Unweighted()), torch.compile(Unweighted(), backend="eager")):
        assert not takes(loss, "sample_weight")
        assert takes(loss, "targets")


@pytest.mark.exhaustive
@pytest.mark.parametrize(("reduction", "skip"), [("sum", ["range"]), ("none", [])])
def test_other_reductions(reduction: str, skip: list[str]) -> None:
    loss = case_named("recall").loss
    cfg = loss.config(num_classes=3, ignore_index=7, reduction=reduction, **case_named("recall").options)
    check_ranking_loss(
        partial(loss.function, cfg=cfg), num_classes=3, ignore_index=7, skip=[*skip, "compile"], max_examples=EXAMPLES
    )


@over["losses"]
def test_ranking_modules(case: Case) -> None:
    shell = case.loss.shell(num_classes=3, **case.options)
    check_ranking_loss(as_function(shell), num_classes=3, skip=not_meant(case), max_examples=EXAMPLES)


@pytest.mark.parametrize("as_module", [False, True], ids=["function", "module"])
@elements.every_case
def test_elementwise(case: elements.Case, as_module: bool) -> None:
    """Labels in [0, 1] take one decision each, also along a class axis; class ids take a class axis."""
    smooth = case.own.options.get("label_smoothing", 0.0) > 0
    check_elementwise_loss(
        case.shell() if as_module else case.call,
        num_classes=case.rest[0] if case.rest else 1,
        multilabel=case.own.labels,
        positions=case.rest[1:],
        ignore_index=case.ignore_index,
        skip=["direction"] if smooth else [],
        max_examples=EXAMPLES,
    )

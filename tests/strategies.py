"""What the tests of the ranking losses draw: the package's own strategies, as problems.

A problem is everything that one call of a loss looks at.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from torch import Tensor

from imbalanced_losses import PAUCAtBudgetConfig, QueueState
from imbalanced_losses.testing import ranking_batches
from imbalanced_losses.testing.configurations import config_fields

IGNORE = -100
INTERPOLATIONS = ("linear", "lower", "higher", "midpoint", "nearest")

KINDS = {"binary": (1, False), "multiclass": (3, False), "multilabel": (3, True)}
"""Number of classes and ``multilabel`` of the three ways to label rows."""


def _examples(count: int) -> settings:
    """``count`` of them, or as many as a profile that searches for new ones asks for."""
    profile = settings.default.max_examples
    count = profile if profile > settings.get_profile("default").max_examples else count
    return settings(max_examples=count, deadline=None, suppress_health_check=[HealthCheck.too_slow])


few_examples = _examples(12)
"""For what runs once per loss case."""

many_examples = _examples(80)
"""For what runs once per loss or kernel."""


@dataclass(frozen=True)
class Problem:
    """Live rows and the queue they meet; ``None`` for an optional argument leaves it out."""

    logits: Tensor
    targets: Tensor
    state: QueueState
    iid_mask: Tensor | None
    sample_weight: Tensor | None

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    @property
    def multilabel(self) -> bool:
        return self.state.targets.dim() == 2

    @property
    def extras(self) -> dict[str, Tensor]:
        """The keyword arguments of the losses."""
        extras = {"iid_mask": self.iid_mask, "sample_weight": self.sample_weight}
        return {name: value for name, value in extras.items() if value is not None}

    def rows(self, index: Tensor) -> Problem:
        """The same queue and the live rows at ``index``."""
        return replace(
            self,
            logits=self.logits[index],
            targets=self.targets[index],
            iid_mask=None if self.iid_mask is None else self.iid_mask[index],
            sample_weight=None if self.sample_weight is None else self.sample_weight[index],
        )

    def with_queue(self, **fields: Tensor) -> Problem:
        return replace(self, state=replace(self.state, **fields))


# --- single tensors ---------------------------------------------------------------------------------------------------


def matrices(elements: st.SearchStrategy[Any], n: int, c: int, dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Tensors ``[n, c]``."""
    values = st.lists(elements, min_size=n * c, max_size=n * c)
    return values.map(lambda flat: torch.tensor(flat, dtype=dtype).reshape(n, c))


def vectors(elements: st.SearchStrategy[Any], n: int, dtype: torch.dtype) -> st.SearchStrategy[Tensor]:
    """Tensors ``[n]``."""
    return matrices(elements, n, 1, dtype).map(lambda column: column[:, 0])


def weights(n: int) -> st.SearchStrategy[Tensor]:
    """Sample weights ``[n]``, zero among them."""
    return vectors(st.sampled_from([0.0, 0.5, 1.0, 1.0, 2.0, 3.0]), n, torch.float64)


def flags(n: int) -> st.SearchStrategy[Tensor]:
    """Bool ``[n]``, two in three true."""
    return vectors(st.sampled_from([True, True, False]), n, torch.bool)


# --- problems and configurations --------------------------------------------------------------------------------------


@st.composite
def problems(
    draw: st.DrawFn,
    kind: str | None = None,
    min_rows: int = 0,
    max_queue: int = 8,
    extremes: bool = True,
    ignored: bool = True,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """A batch of up to ten rows and a queue of up to ``max_queue`` slots of which some are filled."""
    num_classes, multilabel = KINDS[kind or draw(st.sampled_from(sorted(KINDS)))]
    batch = draw(
        ranking_batches(
            num_classes,
            multilabel=multilabel,
            min_rows=min_rows,
            max_queue=max_queue,
            dtypes=(dtype,),
            extremes=extremes,
            ignored=ignored,
        )
    )
    return Problem(*batch.args, batch.iid_mask, batch.sample_weight)


def options(config: type) -> st.SearchStrategy[dict[str, Any]]:
    """Configuration of one loss but for its reduction and the number and kind of classes."""
    fields = config_fields(config)
    drawn = fields.map(lambda drawn: {name: value for name, value in drawn.items() if name != "reduction"})
    if config is not PAUCAtBudgetConfig:
        return drawn
    dro = st.fixed_dictionaries(
        {"margin": st.sampled_from([1.0, 0.3]), "positive_temperature": st.sampled_from([None, 0.7, 0.05])}
    )
    robust = st.tuples(drawn, dro).map(lambda both: {**both[0], **both[1], "surrogate": "dro", "alpha": 0.0})
    return st.one_of(drawn, drawn, robust)

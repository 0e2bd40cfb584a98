"""The strategy of configurations: every option is drawn, and what is drawn fits what is fixed."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imbalanced_losses import PAUCAtBudgetConfig, RecallAtKConfig, RetrievalAPConfig
from imbalanced_losses.testing import configs
from tests.registry import ELEMENTWISE, RANKING

OF_THE_BATCH = {"num_classes", "embedding_size", "multilabel", "ignore_index", "max_pool_size"}
CONFIGS = [
    *(loss.config for loss in (*RANKING.values(), *ELEMENTWISE.values())),
    RetrievalAPConfig,
    RecallAtKConfig,
]


@pytest.mark.parametrize("config", CONFIGS)
def test_every_option_is_drawn(config: Any) -> None:
    fields = [field for field in dataclasses.fields(config) if not str(field.type).startswith("tuple[float")]
    defaults = {field.name: field.default for field in fields}  # without class counts, shares and weights
    fixed = {name: 1 for name in ("num_classes", "embedding_size") if name in defaults}
    others = {name: default for name, default in defaults.items() if name not in OF_THE_BATCH}
    drawn: dict[str, set[Any]] = {name: set() for name in others}

    @settings(max_examples=80, database=None)
    @given(configs(config, **fixed))
    def draw(cfg: Any) -> None:
        for name in others:
            drawn[name].add(getattr(cfg, name))

    draw()
    assert [name for name, default in others.items() if not drawn[name] - {default}] == []


FIXED: dict[str, list[Any]] = {
    "surrogate": ["trapezoid", "pairwise", "dro"],
    "alpha": [0.0, 0.01, 0.9],
    "beta": [0.001, 0.95, 1.0],
    "min_tpr": [0.2],
}


@given(st.data())
def test_fixed_fields_fit(data: st.DataObject) -> None:
    """Whatever subset of them is fixed, the rest is drawn to go with it."""
    names = data.draw(st.sets(st.sampled_from(sorted(FIXED))))
    fixed = {name: data.draw(st.sampled_from(FIXED[name])) for name in sorted(names)}
    if fixed.get("alpha", 0) >= fixed.get("beta", 1) or (fixed.get("surrogate") == "dro" and fixed.get("alpha", 0) > 0):
        return  # no configuration has these
    cfg = data.draw(configs(PAUCAtBudgetConfig, num_classes=1, **fixed))
    assert {name: getattr(cfg, name) for name in fixed} == fixed


@given(configs(PAUCAtBudgetConfig, num_classes=1, positive_temperature=0.3))
def test_a_fixed_temperature_of_positives_is_that_of_dro(cfg: PAUCAtBudgetConfig) -> None:
    assert (cfg.surrogate, cfg.positive_temperature) == ("dro", 0.3)

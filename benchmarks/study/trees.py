"""Gradient-boosted trees of scikit-learn: what a user would try who need not have a network."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from study.loop import average_precision

__all__ = ["fit_trees"]

AT_A_TIME, EVERY, PATIENCE, MOST = 100, 20, 5, 600


def fit_trees(data: dict[str, Tensor], job: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Held-out logits of the number of trees that is best on validation, of every 20, and what it took.

    Trees grow by the hundred, as a fit that goes on bins the features again.
    """
    begin = time.process_time()
    setting, arrays = job["setting"], {name: value.numpy() for name, value in data.items()}
    model = HistGradientBoostingClassifier(
        learning_rate=setting["lr"],
        max_leaf_nodes=int(setting["leaves"]),
        class_weight=job["contender"]["options"]["class_weight"],
        early_stopping=False,
        warm_start=True,
        max_iter=0,
        random_state=job["seed"],
    )
    best, since, n_trees, grown = -torch.inf, 0, 0, 0
    while since < PATIENCE and grown < MOST:
        model.set_params(max_iter=grown + AT_A_TIME)
        model.fit(arrays["train_features"], arrays["train_targets"])
        stages = model.staged_decision_function(arrays["validation_features"])
        for scores in islice(stages, grown + EVERY - 1, None, EVERY):
            grown, since = grown + EVERY, since + 1
            score = average_precision(_column(scores), data["validation_targets"])
            if score > best:
                best, since, n_trees = score, 0, grown
            if since == PATIENCE:
                break
    kept = {}
    for name in ("validation", "test"):
        stages = model.staged_decision_function(arrays[f"{name}_features"])
        kept[name] = _column(next(islice(stages, n_trees - 1, None)))
    return kept, {"seconds": time.process_time() - begin, "steps": n_trees, "best": best}


def _column(scores: Any) -> Tensor:
    return torch.tensor(scores, dtype=torch.float64).view(len(scores), -1)

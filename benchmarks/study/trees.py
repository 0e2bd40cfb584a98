"""Gradient-boosted trees of scikit-learn: what a user would try who need not have a network."""

from __future__ import annotations

import time
from typing import Any

import torch
from sklearn.ensemble import HistGradientBoostingClassifier
from torch import Tensor

from study.loop import average_precision

__all__ = ["fit_trees"]

AT_A_TIME, PATIENCE, MOST = 20, 5, 600


def fit_trees(data: dict[str, Tensor], job: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Held-out logits of the number of trees that is best on validation, by 20 trees at a time, and what it took."""
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
    best, since, kept = -torch.inf, 0, {}
    while since < PATIENCE and model.max_iter < MOST:
        model.set_params(max_iter=model.max_iter + AT_A_TIME)
        model.fit(arrays["train_features"], arrays["train_targets"])
        score = average_precision(_logits(model, arrays["validation_features"]), data["validation_targets"])
        since += 1
        if score > best:
            best, since, n_trees = score, 0, model.max_iter
            kept = {name: _logits(model, arrays[f"{name}_features"]) for name in ("validation", "test")}
    return kept, {"seconds": time.process_time() - begin, "steps": n_trees, "best": best}


def _logits(model: HistGradientBoostingClassifier, features: Any) -> Tensor:
    scores = torch.tensor(model.decision_function(features), dtype=torch.float64)
    return scores.view(len(features), -1)

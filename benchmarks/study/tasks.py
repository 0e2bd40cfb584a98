"""Three older tasks of the study, which losses were developed on: functions of a seed, bundled or generated data.

Splits are stratified. Where real positives are thinned to a rate, a held-out set with that rate would have a handful of
positives, and its metrics would be noise. So all held-out positives are kept, in as many groups as there are sets of
that rate in them: each group and all the negatives are a set of their own, and a metric is the mean over these sets.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.datasets import load_digits, make_classification

from study.parts import EVERY_GROUP, RawPart, Sets, standardised

__all__ = ["digits", "digits_long_tail", "generated"]

Array = np.ndarray[Any, Any]

TRAINING_ROWS, TEST_ROWS = 6_000, 20_000


def digits(seed: int, rate: float = 0.03) -> Sets:
    """One digit, which the seed chooses, against the rest, thinned to a rate."""
    features, classes = load_digits(return_X_y=True)
    labels = (classes == seed % 10).astype(np.int64)
    parts = _split_by_class(labels, (0.4, 0.2), np.random.default_rng(seed))
    thinned = [_thin(part, labels, rate, keep=bool(i)) for i, part in enumerate(parts)]
    return standardised(*(RawPart(features[rows], labels[rows], groups) for rows, groups in thinned))


def generated(seed: int, rate: float = 0.01) -> Sets:
    """Two classes of two clusters each."""
    n_rows = 2 * TRAINING_ROWS + TEST_ROWS
    features, labels = make_classification(
        n_samples=n_rows,
        n_features=20,
        n_informative=8,
        n_redundant=4,
        weights=[1 - rate],
        flip_y=0,
        class_sep=1.3,
        random_state=seed,
    )
    share = TRAINING_ROWS / n_rows
    parts = _split_by_class(labels, (share, share), np.random.default_rng(seed))
    return standardised(*(RawPart(features[part], labels[part]) for part in parts))


def digits_long_tail(seed: int, most: int = 90, least: int = 3) -> Sets:
    """Ten classes whose training rows fall geometrically from ``most`` to ``least``; held-out sets are balanced.

    As usual in the field: every class counts the same, and each has enough rows to be measured. The seed turns the
    order of the classes, so that each is rare in some seed.
    """
    features, classes = load_digits(return_X_y=True)
    train, *held_out = _split_by_class(classes, (0.5, 0.15), np.random.default_rng(seed))
    sizes = np.geomspace(most, least, 10).round().astype(int)
    kept = [train[classes[train] == (k + seed) % 10][: sizes[k]] for k in range(10)]
    fewest = [min(np.bincount(classes[part])) for part in held_out]
    level = [
        np.concatenate([part[classes[part] == k][:n] for k in range(10)])
        for part, n in zip(held_out, fewest, strict=True)
    ]
    return standardised(*(RawPart(features[rows], classes[rows]) for rows in (np.concatenate(kept), *level)))


def _split_by_class(labels: Array, shares: tuple[float, float], generator: np.random.Generator) -> list[Array]:
    """Three sets of row numbers, each with its share of each class, in random order; the last takes what is left."""
    parts: list[list[Array]] = [[], [], []]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum([round(share * len(rows)) for share in shares])
        for part, of_class in zip(parts, np.split(rows, ends), strict=True):
            part.append(of_class)
    return [np.concatenate(part) for part in parts]


def _thin(rows: Array, labels: Array, rate: float, *, keep: bool) -> tuple[Array, Array]:
    """Row numbers and groups: positives of one group have the rate; the others make groups of their own, or go."""
    positives, negatives = rows[labels[rows] == 1], rows[labels[rows] == 0]
    per_group = max(1, round(len(negatives) * rate / (1 - rate)))
    positives = positives[: len(positives) // per_group * per_group if keep else per_group]
    groups = np.concatenate([np.arange(len(positives)) // per_group, np.full(len(negatives), EVERY_GROUP)])
    return np.concatenate([positives, negatives]), groups

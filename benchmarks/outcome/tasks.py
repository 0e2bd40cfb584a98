"""The problems of the study: named functions of a seed, which give training, validation and test rows.

All of it is offline: data sets that come with scikit-learn, and generated ones. Splits are stratified, and features
have mean 0 and standard deviation 1 on the training rows.

Where real positives are thinned to a rate, a held-out set with that rate would have a handful of positives, and its
metrics would be noise. So all held-out positives are kept, in as many groups as there are sets of that rate in them:
each group and all the negatives are a set of their own, and a metric is the mean over these sets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_digits, load_wine, make_classification
from torch import Tensor

__all__ = ["TASKS", "Data", "Split", "Task"]

Array = np.ndarray[Any, Any]
Kind = Literal["binary", "multiclass", "multilabel"]

EVERY_GROUP = -1  # a row of all groups of its split
N_FEATURES = 20
TRAINING_ROWS, TEST_ROWS = 6_000, 20_000
GENERATED_SPLIT = (TRAINING_ROWS, TRAINING_ROWS, TEST_ROWS)


class Split(NamedTuple):
    """Features ``[N, D]`` float32, targets (class ids ``[N]`` int64, or labels ``[N, C]`` float32), groups ``[N]``."""

    features: Tensor
    targets: Tensor
    groups: Tensor


class Data(NamedTuple):
    """The three sets of a task."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Task:
    """A problem: how it is made, and what its models are judged by.

    ``budget`` is the share of rows that get an alert, in the test set about the share of positives; ``target`` is the
    measure that settings are tuned for on validation and that decides on test.
    """

    name: str
    make: Callable[[int], Data]
    budget: float
    target: Literal["ap", "recall"]
    kind: Kind = "binary"
    n_classes: int = 1
    imbalanced: bool = True


def real_binary(load: Callable[[], Any], rate: float | None, positive: Callable[[int], int]) -> Callable[[int], Data]:
    """One class of a bundled data set against the rest, thinned to a rate."""

    def make(seed: int) -> Data:
        features, classes = load()
        generator = np.random.default_rng(seed)
        labels = (classes == positive(seed)).astype(np.int64)
        parts = _split_by_class(labels, (0.4, 0.2), generator)
        train, *held_out = [_thin(part, labels, rate, keep=bool(i)) for i, part in enumerate(parts)]
        return _standardised(*((features[rows], labels[rows], groups) for rows, groups in (train, *held_out)))

    return make


def _split_by_class(labels: Array, shares: tuple[float, float], generator: np.random.Generator) -> list[Array]:
    """Three sets of row numbers, each with its share of each class, in random order; the last takes what is left."""
    parts: list[list[Array]] = [[], [], []]
    for label in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum([round(share * len(rows)) for share in shares])
        for part, of_class in zip(parts, np.split(rows, ends), strict=True):
            part.append(of_class)
    return [np.concatenate(part) for part in parts]


def _thin(rows: Array, labels: Array, rate: float | None, *, keep: bool) -> tuple[Array, Array]:
    """Row numbers and groups: positives of one group have the rate; the others make groups of their own, or go."""
    positives, negatives = rows[labels[rows] == 1], rows[labels[rows] == 0]
    per_group = len(positives) if rate is None else max(1, round(len(negatives) * rate / (1 - rate)))
    positives = positives[: len(positives) // per_group * per_group if keep else per_group]
    groups = np.concatenate([np.arange(len(positives)) // per_group, np.full(len(negatives), EVERY_GROUP)])
    return np.concatenate([positives, negatives]), groups


def generated_binary(rate: float, noise: float) -> Callable[[int], Data]:
    """Two classes of two clusters each; ``noise`` of the labels but those of the test set are drawn anew."""

    def make(seed: int) -> Data:
        features, labels = make_classification(
            n_samples=sum(GENERATED_SPLIT),
            n_features=N_FEATURES,
            n_informative=8,
            n_redundant=4,
            weights=[1 - rate],
            flip_y=0,
            class_sep=1.3,
            random_state=seed,
        )
        generator = np.random.default_rng(seed)
        parts = _split_by_class(labels, _shares(GENERATED_SPLIT), generator)
        for part in parts[:2]:
            renewed = part[generator.random(len(part)) < noise]
            labels[renewed] = generator.integers(2, size=len(renewed))
        return _standardised(*((features[part], labels[part], None) for part in parts))

    return make


def contested_top(seed: int) -> Data:
    """1 % positives, and half as many hard negatives that most directions put above them.

    Positives lie apart from most negatives in one direction, hard negatives further out in the same one; only two
    weaker directions tell the two groups apart.
    """
    generator = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(generator.normal(size=(N_FEATURES, N_FEATURES)))
    splits = []
    for n_rows in GENERATED_SPLIT:
        features = generator.normal(size=(n_rows, N_FEATURES))
        n_positives, n_hard = n_rows // 100, n_rows // 200
        features[:n_positives, 0] += 2.5
        features[n_positives : n_positives + n_hard, :3] += (3.5, 1.5, -1.5)
        labels = (np.arange(n_rows) < n_positives).astype(np.int64)
        splits.append((features @ rotation, labels, None))
    return _standardised(*splits)


def long_tail(
    load: Callable[[int], tuple[Array, Array]], most: int, least: int, shares: tuple[float, float]
) -> Callable[[int], Data]:
    """Ten classes whose training rows fall geometrically from ``most`` to ``least``; held-out sets are balanced.

    As usual in the field: every class counts the same, and each has enough rows to be measured. The seed turns the
    order of the classes, so that each is rare in some seed.
    """

    def make(seed: int) -> Data:
        features, classes = load(seed)
        generator = np.random.default_rng(seed)
        train, *held_out = _split_by_class(classes, shares, generator)
        sizes = np.geomspace(most, least, 10).round().astype(int)
        kept = [train[classes[train] == (k + seed) % 10][: sizes[k]] for k in range(10)]
        fewest = [min(np.bincount(classes[part])) for part in held_out]
        level = [
            np.concatenate([part[classes[part] == k][:n] for k in range(10)])
            for part, n in zip(held_out, fewest, strict=True)
        ]
        return _standardised(*((features[rows], classes[rows], None) for rows in (np.concatenate(kept), *level)))

    return make


def generated_classes(seed: int) -> tuple[Array, Array]:
    """Ten classes of one cluster each, 4,000 rows a class."""
    features, classes = make_classification(
        n_samples=40_000,
        n_features=N_FEATURES,
        n_informative=10,
        n_redundant=0,
        n_classes=10,
        n_clusters_per_class=1,
        flip_y=0,
        class_sep=1.0,
        random_state=seed,
    )
    return features, classes


def multilabel(seed: int) -> Data:
    """Six labels of 5 % to 0.5 %: each marks the rows with the highest values of a random nonlinear score."""
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(sum(GENERATED_SPLIT), N_FEATURES))
    hidden = np.tanh(features @ generator.normal(size=(N_FEATURES, 16)) / 2)
    scores = hidden @ generator.normal(size=(16, 6)) + generator.normal(size=(len(features), 6))
    rates = np.geomspace(0.05, 0.005, 6)
    thresholds = [np.quantile(score, 1 - rate) for score, rate in zip(scores.T, rates, strict=True)]
    labels = (scores > thresholds).astype(np.float32)
    ends = np.cumsum(GENERATED_SPLIT[:2])
    parts = zip(np.split(features, ends), np.split(labels, ends), strict=True)
    return _standardised(*((part, of_part, None) for part, of_part in parts))


def _shares(sizes: tuple[int, int, int]) -> tuple[float, float]:
    return sizes[0] / sum(sizes), sizes[1] / sum(sizes)


def _standardised(*splits: tuple[Array, Array, Array | None]) -> Data:
    """Tensors; all features by the mean and standard deviation of the first split's."""
    train = splits[0][0]
    mean, deviation = train.mean(0), train.std(0)
    deviation[deviation == 0] = 1
    made = []
    for features, labels, groups in splits:
        scaled = torch.tensor((features - mean) / deviation, dtype=torch.float32)
        of_rows = np.full(len(features), EVERY_GROUP) if groups is None else groups
        made.append(Split(scaled, torch.tensor(labels), torch.tensor(of_rows)))
    return Data(*made)


def _load(loader: Callable[..., Any]) -> Callable[[], tuple[Array, Array]]:
    return lambda: loader(return_X_y=True)


_DIGITS, _CANCER, _WINE = _load(load_digits), _load(load_breast_cancer), _load(load_wine)

TASKS = (
    Task("digits 3 %", real_binary(_DIGITS, 0.03, lambda seed: seed % 10), 0.03, "ap"),
    Task("digits 1 %", real_binary(_DIGITS, 0.01, lambda seed: seed % 10), 0.01, "ap"),
    Task("breast cancer 10 %", real_binary(_CANCER, 0.1, lambda _: 0), 0.1, "ap"),  # 0 is malignant
    Task("breast cancer 3 %", real_binary(_CANCER, 0.03, lambda _: 0), 0.03, "ap"),
    Task("wine", real_binary(_WINE, None, lambda seed: seed % 3), 0.3, "ap", imbalanced=False),
    *(
        Task(
            f"generated {rate:.1%}".replace(".0%", "%").replace("%", " %") + noisy,
            generated_binary(rate, noise),
            rate,
            "recall",
        )
        for rate in (0.1, 0.01, 0.003)
        for noise, noisy in ((0.0, ""), (0.01, ", noise"))
    ),
    Task("contested top 1 %", contested_top, 0.01, "recall"),
    Task("digits, long tail", long_tail(lambda _: _DIGITS(), 90, 3, (0.5, 0.15)), 0.1, "ap", "multiclass", 10),
    Task("generated, long tail", long_tail(generated_classes, 1_000, 10, (0.3, 0.2)), 0.1, "ap", "multiclass", 10),
    Task("multi-label, rare labels", multilabel, 0.02, "ap", "multilabel", 6),
)

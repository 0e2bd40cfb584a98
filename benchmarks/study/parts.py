"""Rows of a problem, in three sets, with standardised features."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = ["CLIP", "EVERY_GROUP", "Part", "RawPart", "Sets", "standardised"]

Array = np.ndarray[Any, Any]

CLIP = 10.0
EVERY_GROUP = -1  # a row of all groups of its set


class RawPart(NamedTuple):
    """Features ``[N, D]``, labels ``[N]``, groups ``[N]`` or None if there are none, costs ``[N, 2]``."""

    features: Array
    labels: Array
    groups: Array | None = None
    costs: Array | None = None


class Part(NamedTuple):
    """Features ``[N, D]`` float32, targets ``[N]`` int64, groups ``[N]`` (-1: in every group), costs ``[N, 2]``."""

    features: Tensor
    targets: Tensor
    groups: Tensor
    costs: Tensor | None = None


class Sets(NamedTuple):
    """The three sets of a split."""

    train: Part
    validation: Part
    test: Part


def standardised(*parts: RawPart) -> Sets:
    """Tensors: features by the mean and deviation of the first part's, and clipped.

    Without the clip, a rare indicator column or an outlier would decide a linear model.
    """
    mean, deviation = parts[0].features.mean(0), parts[0].features.std(0)
    deviation[deviation < 1e-9] = 1

    def tensors(part: RawPart) -> Part:
        scaled = ((part.features - mean) / deviation).clip(-CLIP, CLIP)
        groups = np.full(len(scaled), EVERY_GROUP) if part.groups is None else part.groups
        costs = None if part.costs is None else torch.tensor(part.costs, dtype=torch.float64)
        features = torch.tensor(scaled, dtype=torch.float32)
        return Part(features, torch.tensor(part.labels), torch.tensor(groups), costs)

    return Sets(*(tensors(part) for part in parts))

"""``max_pool_size``: a random sample of a pool, and for how many rows each of its rows counts."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor

from imbalanced_losses.dtypes import accumulation_dtype
from imbalanced_losses.pool import Pool

__all__ = ["subsample"]


def subsample(pool: Pool, size: int, multilabel: bool, generator: torch.Generator | None) -> Pool:
    """Keep ``size`` rows: up to ``size // (2 * observed classes)`` random ones of each class, the rest uniformly.

    Rows are brought into random order, for each class anew if a row may have several; the first of each class are
    protected and come first, then the others in another random order, and ignored rows last. Without ``generator``
    torch's global one is used, as in ``functional.dropout``.
    """
    takes_part = pool.valid.any(0)
    groups = torch.cat([pool.positive, (takes_part & ~pool.positive.any(0))[None]])  # [G = C + 1, M]: rest = label 0
    quota = size // (2 * groups.any(-1).sum().clamp_min(1))
    shape = (len(groups) + 1 if multilabel else 2, groups.shape[1])
    # the compiler does not take a generator=None beside a size that varies
    random = torch.rand if generator is None else partial(torch.rand, generator=generator)
    noise = random(shape, device=groups.device)
    shuffled = noise[1:].argsort(-1).expand_as(groups)
    members = groups.gather(-1, shuffled)
    first = members & (members.cumsum(-1) <= quota)
    protected = torch.zeros_like(first).scatter(-1, shuffled, first).any(0)
    row_index = torch.where(protected, -1, torch.where(takes_part, noise[0], 2)).argsort()[:size]
    rows = {
        name: getattr(pool, name)[..., row_index] for name in ("scores", "valid", "positive", "iid", "sample_weight")
    }
    # a score that is not finite shows, also where its row is left out: inf - inf is nan
    rows["scores"] = rows["scores"] + (pool.scores - pool.scores).detach().sum(-1, keepdim=True)
    chance = _inclusion_probability(groups, takes_part, quota, protected.sum(), size)[row_index]
    n, k = pool.positive.sum(-1), rows["positive"].sum(-1)
    pair_weight = (n - 1).to(chance.dtype) / (k - 1).clamp_min(
        1
    )  # one over the chance of another, given that one is kept
    dtype = pool.scores.dtype
    return dataclasses.replace(
        pool, row_index=row_index, inclusion_weight=(1 / chance).to(dtype), pair_weight=pair_weight.to(dtype), **rows
    )


def _inclusion_probability(groups: Tensor, takes_part: Tensor, quota: Tensor, n_protected: Tensor, size: int) -> Tensor:
    """``[M]``: of being among the protected of one of the row's classes, or else among those that fill up."""
    dtype = accumulation_dtype(groups.device)
    protection = (quota.to(dtype) / groups.sum(-1).clamp_min(1)).clamp_max(1)
    unprotected = torch.where(groups, 1 - protection[:, None], 1).prod(0)
    n_others = (takes_part.sum() - n_protected).clamp_min(1)
    return 1 - unprotected * (1 - ((size - n_protected).to(dtype) / n_others).clamp_max(1))

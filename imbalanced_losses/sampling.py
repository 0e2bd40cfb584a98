"""``max_pool_size``: a random sample of a pool, with inclusion weights."""

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

    The rows are shuffled, separately for each class if a row can have several. The first of each class are protected.
    The sample takes protected rows first, then the others in another random order, then ignored rows. Without
    ``generator`` it uses torch's global one, as ``functional.dropout`` does.
    """
    takes_part = pool.valid.any(0)
    groups = torch.cat([pool.positive, (takes_part & ~pool.positive.any(0))[None]])  # [G = C + 1, M]: rest = label 0
    quota = size // (2 * groups.any(-1).sum().clamp_min(1))
    shape = (len(groups) + 1 if multilabel else 2, groups.shape[1])
    # the compiler does not accept generator=None with a size that varies
    random = torch.rand if generator is None else partial(torch.rand, generator=generator)
    noise = random(shape, dtype=torch.float32, device=groups.device)  # the default may be a half type, with ties
    shuffled = noise[1:].argsort(-1).expand_as(groups)
    members = groups.gather(-1, shuffled)
    first = members & (members.cumsum(-1) <= quota)
    protected = torch.zeros_like(first).scatter(-1, shuffled, first).any(0)
    row_index = torch.where(protected, -1, torch.where(takes_part, noise[0], 2)).argsort()[:size]
    rows = {
        name: getattr(pool, name)[..., row_index] for name in ("scores", "valid", "positive", "iid", "sample_weight")
    }
    # makes all scores of a class nan if one is not finite, even if its row is left out: inf - inf is nan
    rows["scores"] = rows["scores"] + (pool.scores - pool.scores).detach().sum(-1, keepdim=True)
    chance = _inclusion_probability(groups, takes_part, quota, protected.sum(), size)[row_index]
    n, k = pool.positive.sum(-1), rows["positive"].sum(-1)
    # one over the inclusion probability of another positive, given that one is kept
    pair_weight = (n - 1).to(chance.dtype) / (k - 1).clamp_min(1)
    dtype = pool.scores.dtype
    return dataclasses.replace(
        pool, row_index=row_index, inclusion_weight=(1 / chance).to(dtype), pair_weight=pair_weight.to(dtype), **rows
    )


def _inclusion_probability(groups: Tensor, takes_part: Tensor, quota: Tensor, n_protected: Tensor, size: int) -> Tensor:
    """``[M]``: the probability that a row is protected in one of its classes, or else drawn from the remaining rows."""
    dtype = accumulation_dtype(groups.device)
    protection = (quota.to(dtype) / groups.sum(-1).clamp_min(1)).clamp_max(1)
    unprotected = torch.where(groups, 1 - protection[:, None], 1).prod(0)
    n_others = (takes_part.sum() - n_protected).clamp_min(1)
    return 1 - unprotected * (1 - ((size - n_protected).to(dtype) / n_others).clamp_max(1))

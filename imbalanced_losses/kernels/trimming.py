"""Weights without their share at the top of the ranking, for the two-way partial AUC."""

from __future__ import annotations

import torch
from torch import Tensor

from imbalanced_losses.dtypes import accumulation_dtype

__all__ = ["without_top_share"]


def without_top_share(scores: Tensor, mask: Tensor, weight: Tensor, share: float) -> Tensor:
    """Remove a share of the total weight, from the highest score down; the row or tied rows at the cut keep a part.

    Parameters
    ----------
    scores, mask, weight : Tensor [R, M]
        Weights outside the mask do not count.
    share : float in [0, 1)

    Returns
    -------
    Tensor [R, M]
        Weights that sum to ``1 - share`` of the total, 0 outside the mask. Detached. Cost: O(R M log M).
    """
    scores = scores.detach()
    wide = torch.where(mask, weight, 0).to(accumulation_dtype(weight.device))
    descending, order = torch.where(mask, scores, -torch.inf).sort(-1, descending=True)
    upto = wide.gather(-1, order).cumsum(-1)
    removed = share * upto[:, -1:]
    place = (upto <= removed).sum(-1, keepdim=True).clamp_max(scores.shape[-1] - 1)
    cut = descending.gather(-1, place)
    tied = scores == cut
    n_above, n_tied = (torch.where(rows, wide, 0).sum(-1, keepdim=True) for rows in (scores > cut, tied))
    kept = 1 - ((removed - n_above) / (n_tied + (n_tied == 0))).clamp(0, 1)
    return torch.where(scores > cut, 0, torch.where(tied, wide * kept, wide)).to(weight.dtype)

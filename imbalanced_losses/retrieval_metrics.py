"""Exact metrics of retrieval: what the retrieval losses are surrogates of.

Every labelled row is a query against all other rows. A tied key counts as nearer, so that the metrics do not depend on
the order of the rows. Static shapes, no gradient, and no wait for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.embeddings import SIMILARITIES, Similarity, similarities, take_labelled
from imbalanced_losses.reductions import mean_over_weight
from imbalanced_losses.settings import check_choice, check_ignore_index, check_integer

__all__ = ["map_at_r", "mean_average_precision", "recall_at_k"]

CHUNK = 1 << 24  # similarities that are held at a time


def mean_average_precision(
    embeddings: Tensor, labels: Tensor, *, similarity: Similarity = "cosine", ignore_index: int = -100
) -> Tensor:
    r"""Mean average precision (mAP), the limit of one minus :func:`~imbalanced_losses.retrieval_ap`.

    With :math:`r_i` the rank of a query's positive :math:`i` among all keys, and :math:`r_i^+` among the positives,

    .. math:: \mathrm{mAP} = \frac{1}{|Q|} \sum_{q \in Q} \frac{1}{|P_q|} \sum_{i \in P_q} \frac{r_i^+}{r_i}

    which is the mean of scikit-learn's ``average_precision_score`` over the queries.

    Parameters
    ----------
    embeddings : Tensor [N, D], any floating dtype
    labels : Tensor [N] or [N, 1], integer
        Class ids of any value.
    similarity : {"cosine", "dot"}
    ignore_index : int
        Rows with this label are neither queries nor keys.

    Returns
    -------
    Tensor []
        In [0, 1]; ``nan`` if no query has a positive, or if an embedding is not finite. Queries without a positive do
        not count. Cost: O(N^2 (D + log N)) time; O(N) memory beyond a block of similarities.

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit, or the similarity is unknown.

    References
    ----------
    Musgrave, Belongie, Lim. A Metric Learning Reality Check. ECCV 2020.

    Examples
    --------
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    >>> mean_average_precision(embeddings, torch.tensor([0, 0, 1, 2]))  # ranks 2 and 3: (1/2 + 1/3) / 2
    tensor(0.4167)
    """
    return _mean_over_queries(
        (ranks.mean(ranks.among_positives / ranks.among_keys), ranks)
        for ranks in _rank_all(embeddings, labels, similarity, ignore_index)
    )


def recall_at_k(
    embeddings: Tensor,
    labels: Tensor,
    k: int = 1,
    found: Literal["any", "share"] = "any",
    *,
    similarity: Similarity = "cosine",
    ignore_index: int = -100,
) -> Tensor:
    r"""Recall@k over the k nearest keys of each query.

    .. math:: \text{any: } \frac{1}{|Q|} \sum_{q} [\min_{i \in P_q} r_i \le k], \qquad
        \text{share: } \frac{1}{|Q|} \sum_{q} \frac{|\{i \in P_q: r_i \le k\}|}{|P_q|}

    Parameters
    ----------
    embeddings, labels, similarity, ignore_index
        As in :func:`mean_average_precision`.
    k : int >= 1
        Number of neighbours.
    found : {"any", "share"}
        ``"any"``: the share of queries with a positive among their k nearest keys, as metric learning reports it; with
        ``k=1`` it is precision@1. ``"share"``: the share of a query's positives that are among its k nearest keys, the
        metric behind :func:`~imbalanced_losses.retrieval_recall_at_k`.

    Returns
    -------
    Tensor []
        As in :func:`mean_average_precision`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`mean_average_precision`; also if ``k`` or ``found`` is not one of the above.

    Examples
    --------
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    >>> recall_at_k(embeddings, torch.tensor([0, 0, 1, 2]), k=2)  # one of the two queries finds its positive
    tensor(0.5000)
    """
    k = check_integer("k", k, minimum=1)
    check_choice("found", found, ("any", "share"))
    return _mean_over_queries(
        (_found(ranks, k, found), ranks) for ranks in _rank_all(embeddings, labels, similarity, ignore_index)
    )


def map_at_r(
    embeddings: Tensor, labels: Tensor, *, similarity: Similarity = "cosine", ignore_index: int = -100
) -> Tensor:
    r"""MAP@R: average precision over the R nearest keys of a query that has R positives.

    .. math:: \frac{1}{|Q|} \sum_{q} \frac{1}{R_q} \sum_{i \in P_q, r_i \le R_q} \frac{r_i^+}{r_i}, \qquad R_q = |P_q|

    It is 1 if and only if the R nearest keys of each query are its positives.

    Parameters
    ----------
    embeddings, labels, similarity, ignore_index
        As in :func:`mean_average_precision`.

    Returns
    -------
    Tensor []
        As in :func:`mean_average_precision`.

    Raises
    ------
    ValueError, TypeError
        As in :func:`mean_average_precision`.

    References
    ----------
    Musgrave, Belongie, Lim. A Metric Learning Reality Check. ECCV 2020.

    Examples
    --------
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    >>> map_at_r(embeddings, torch.tensor([0, 0, 1, 1]))  # three of four nearest keys have the query's label
    tensor(0.7500)
    """
    return _mean_over_queries(
        (ranks.mean(_precision_within(ranks)), ranks)
        for ranks in _rank_all(embeddings, labels, similarity, ignore_index)
    )


class _Ranks(NamedTuple):
    """Ranks of a block of B queries' keys, all ``[B, M]``, and whether all similarities of a query are finite."""

    positive: Tensor
    among_keys: Tensor
    among_positives: Tensor
    is_finite: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the positives, ``[B]``."""
        return mean_over_weight(torch.where(self.positive, values, 0).sum(-1), self.positive.sum(-1))


def _found(ranks: _Ranks, k: int, found: str) -> Tensor:
    within = ranks.positive & (ranks.among_keys <= k)
    dtype = ranks.among_keys.dtype
    return within.any(-1).to(dtype) if found == "any" else ranks.mean(within.to(dtype))


def _precision_within(ranks: _Ranks) -> Tensor:
    r = ranks.positive.sum(-1, keepdim=True)
    return torch.where(ranks.among_keys <= r, ranks.among_positives / ranks.among_keys, 0)


def _rank_all(embeddings: Tensor, labels: Tensor, similarity: Similarity, ignore_index: int) -> Iterator[_Ranks]:
    """Rank the keys of all queries, a block of queries at a time."""
    check_choice("similarity", similarity, SIMILARITIES)
    ignore_index = check_ignore_index("ignore_index", ignore_index)
    rows, targets, valid = take_labelled(embeddings, labels, ignore_index)
    n = len(rows)
    positions = torch.arange(n, device=rows.device)
    size = max(1, CHUNK // max(1, n))
    for start in range(0, max(1, n), size):  # one empty block if there are no rows
        part = slice(start, start + size)
        scores = similarities(rows[part], rows, similarity)
        keys = valid[part, None] & valid & (positions[part, None] != positions)
        positive = keys & (targets[part, None] == targets)
        yield _Ranks(
            positive, _count_at_or_above(scores, keys), _count_at_or_above(scores, positive), scores.isfinite().all(-1)
        )


def _count_at_or_above(scores: Tensor, mask: Tensor) -> Tensor:
    """For each score ``[B, M]`` the number of ``mask [B, M]`` scores that are at least as large, at least 1."""
    ascending = torch.where(mask, scores, -torch.inf).sort(-1).values
    below = torch.searchsorted(ascending, scores.contiguous())
    return (scores.shape[-1] - below).clamp_min(1).to(scores.dtype)


def _mean_over_queries(blocks: Iterator[tuple[Tensor, _Ranks]]) -> Tensor:
    parts = []
    for values, ranks in blocks:
        valid = ranks.positive.any(-1)
        guarded = torch.where(ranks.is_finite, torch.where(valid, values, 0), torch.nan)
        parts.append(torch.stack([guarded.sum(), valid.sum().to(values.dtype)]))
    sums = torch.stack(parts).sum(0)
    return sums[0] / sums[1]

"""Recall@k of retrieval: the share of a query's positives among its k nearest keys, with two sigmoids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from imbalanced_losses.dispatch import may_branch_on_values
from imbalanced_losses.embeddings import RetrievalProblems
from imbalanced_losses.kernels.ranks import soft_counts
from imbalanced_losses.losses._retrieval import RetrievalConfig, evaluate
from imbalanced_losses.queue import QueueState
from imbalanced_losses.reductions import mean_over_weight
from imbalanced_losses.settings import check_fields, check_integer, check_normal_number, described, plain

__all__ = ["RecallAtKConfig", "measure_recall_at_k", "retrieval_recall_at_k"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RecallAtKConfig(RetrievalConfig):
    r"""Configuration of :func:`retrieval_recall_at_k`.

    Parameters
    ----------
    k : sequence of int >= 1, or int
        The loss is the mean over these numbers of neighbours.
    temperature : float
        :math:`\tau_2`, of the comparison of two similarities.
    rank_temperature : float
        :math:`\tau_1`, of the comparison of a rank with k.
    embedding_size, similarity, reduction, ignore_index
        As in :class:`~imbalanced_losses.RetrievalAPConfig`.
    """

    k: tuple[int, ...] = (1, 2, 4, 8, 16)
    rank_temperature: float = 1.0

    def __post_init__(self) -> None:
        RetrievalConfig.__post_init__(self)
        check_fields(self, k=_check_k, rank_temperature=check_normal_number)


def _check_k(name: str, value: object) -> tuple[int, ...]:
    """Return ints >= 1, given as one or as a sequence, as a tuple."""
    numbers = plain(value)
    if isinstance(numbers, int):
        numbers = (numbers,)
    numbers = getattr(numbers, "tolist", lambda: numbers)()  # arrays and tensors
    if isinstance(numbers, str) or not isinstance(numbers, Sequence) or len(numbers) == 0:
        raise TypeError(f"expected {name} to be an int or a sequence of ints such as (1, 2, 4), got {described(value)}")
    return tuple(check_integer(f"every number in {name}", number, minimum=1) for number in numbers)


def retrieval_recall_at_k(
    embeddings: Tensor,
    labels: Tensor,
    queue_state: QueueState,
    cfg: RecallAtKConfig,
    *,
    temperature: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
) -> tuple[Tensor, QueueState]:
    r"""Recall@k loss, one minus a differentiable recall@k, averaged over the queries of a batch and over k.

    Every row :math:`q` of the batch is a query. Its keys :math:`\Omega` are the other rows of the batch and the memory,
    with similarities :math:`s`, and its positives :math:`P` are the keys with its label:

    .. math::
        \ell_q = 1 - \frac{1}{|K|} \sum_{k \in K} \frac{1}{|P|} \sum_{i \in P}
        \sigma\Big(\big(k - r_i\big)/\tau_1\Big), \qquad
        r_i = 1 + \sum_{j \in \Omega, j \neq i} \sigma\big((s_j - s_i)/\tau_2\big)

    As both temperatures go to 0, a positive of rank below k counts 1 and one of rank k counts 1/2. The exact metric,
    ``retrieval_metrics.recall_at_k(..., found="share")``, counts rank k in full. A query with more than k positives
    cannot reach a recall@k of 1, so the loss has a floor above 0. A query is valid if it has a positive and a weight
    above 0.

    Parameters
    ----------
    embeddings, labels, queue_state, sample_weight, update_queue
        As in :func:`~imbalanced_losses.retrieval_ap`.
    cfg : RecallAtKConfig
    temperature : float or Tensor [], optional
        Overrides ``cfg.temperature``. As a tensor it costs no compilation when it changes. It carries no gradient.

    Returns
    -------
    loss : Tensor [] or [N]
        In [0, 1]; 0 if no query is valid. Not finite if a valid live embedding is not.
    new_state : QueueState

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit. Values of weights are checked by the module.

    Notes
    -----
    Cost for M keys: O(N M D) for the similarities, O(N M log M) time and O(N M) memory for the ranks.

    References
    ----------
    Patel, Tolias, Matas. Recall@k Surrogate Loss with Large Batches and Similarity Mixup. CVPR 2022.

    Examples
    --------
    >>> from imbalanced_losses import RecallAtKConfig, init_queue, retrieval_recall_at_k
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    >>> cfg = RecallAtKConfig(embedding_size=2, k=2, rank_temperature=0.1)
    >>> loss, memory = retrieval_recall_at_k(embeddings, torch.tensor([0, 0, 1, 2]), init_queue(8, 2), cfg)
    >>> round(loss.item(), 4)  # the positives have rank 2, which counts 1/2, and rank 3
    0.75
    """
    return evaluate(
        measure_recall_at_k,
        RecallAtKConfig,
        embeddings,
        labels,
        queue_state,
        cfg,
        temperature=temperature,
        sample_weight=sample_weight,
        update_queue=update_queue,
    )


def measure_recall_at_k(problems: RetrievalProblems, cfg: RecallAtKConfig) -> tuple[Tensor, Tensor]:
    """The loss of each query and its number of positives, both ``[N]``."""
    scores, positive = problems.scores, problems.positive
    is_finite = scores.isfinite()
    keys = positive | problems.negative
    counted = keys[:, None].to(scores.dtype)
    finite_scores = torch.where(is_finite, scores, 0)
    above = soft_counts(finite_scores, counted, problems.temperature, positive)[:, 0]
    missed = torch.zeros_like(above)
    for k in cfg.k:
        missed = missed + ((above - (k - 1)) / cfg.rank_temperature).sigmoid()
    n_positives = positive.sum(-1)
    total = torch.where(positive, missed, 0).sum(-1) / len(cfg.k)
    loss = mean_over_weight(total, n_positives).to(scores.dtype)
    return _propagate_nonfinite(loss, scores, is_finite), n_positives


def _propagate_nonfinite(loss: Tensor, scores: Tensor, is_finite: Tensor) -> Tensor:
    """Make the loss and the gradient of a query ``nan`` if one of its similarities is not finite."""
    if may_branch_on_values(is_finite) and is_finite.all():
        return loss
    spoilt = ~is_finite.all(-1)
    guard = torch.where(spoilt[:, None], scores, 0).sum(-1)
    return loss + guard * torch.where(spoilt, torch.nan, loss.new_zeros(()))

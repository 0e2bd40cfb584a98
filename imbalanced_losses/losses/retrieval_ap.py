"""Average precision of retrieval: every row of the batch ranks the others and a memory of past embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import Tensor

from imbalanced_losses.embeddings import RetrievalProblems
from imbalanced_losses.kernels.ranks import bounded_missed_precision, missed_precision
from imbalanced_losses.losses._retrieval import RetrievalConfig, evaluate
from imbalanced_losses.queue import QueueState
from imbalanced_losses.reductions import mean_over_weight
from imbalanced_losses.settings import (
    check_choice,
    check_fields,
    check_finite_number,
    check_fraction,
    check_nonnegative,
)

__all__ = ["RetrievalAPConfig", "measure_retrieval_ap", "retrieval_ap"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalAPConfig(RetrievalConfig):
    r"""Configuration of :func:`retrieval_ap`.

    Parameters
    ----------
    embedding_size : int
        Columns of the embeddings.
    similarity : {"cosine", "dot"}
        How a query is compared with a key.
    surrogate : {"sigmoid", "sup"}
        ``"sigmoid"``: Smooth-AP. ``"sup"``: SupAP, an upper bound of the loss of average precision, whose gradient does
        not vanish where a negative is far above a positive.
    temperature : float
        Of the sigmoid; above 0, in units of the similarity.
    reduction : {"mean", "sum", "none"}
        Over the valid queries; ``"none"`` gives the weighted losses ``[N]`` with ``nan`` at each invalid query.
    ignore_index : int
        Rows with this label are neither queries nor keys and get zero gradient.
    rho, delta : float
        Of ``"sup"``: the slope for negatives that are more than ``delta`` above a positive. At least 0.
    calibration_weight : float in [0, 1]
        The weight :math:`\lambda` of the calibration term. ROADMAP is ``"sup"`` with 0.5.
    positive_target, negative_target : float
        The similarities :math:`\alpha`, below which positives are pulled closer, and :math:`\beta`, above which
        negatives are pushed away, by the calibration term.
    """

    surrogate: Literal["sigmoid", "sup"] = "sigmoid"
    rho: float = 100.0
    delta: float = 0.05
    calibration_weight: float = 0.0
    positive_target: float = 0.9
    negative_target: float = 0.6

    def __post_init__(self) -> None:
        RetrievalConfig.__post_init__(self)
        check_fields(
            self,
            surrogate=partial(check_choice, choices=("sigmoid", "sup")),
            rho=check_nonnegative,
            delta=check_nonnegative,
            calibration_weight=check_fraction,
            positive_target=check_finite_number,
            negative_target=check_finite_number,
        )


def retrieval_ap(
    embeddings: Tensor,
    labels: Tensor,
    queue_state: QueueState,
    cfg: RetrievalAPConfig,
    *,
    temperature: Tensor | float | None = None,
    sample_weight: Tensor | None = None,
    update_queue: bool = True,
) -> tuple[Tensor, QueueState]:
    r"""Retrieval loss: one minus a differentiable average precision, averaged over the queries of a batch.

    Every row :math:`q` of the batch is a query. It ranks the other rows of the batch and the memory by their
    similarity :math:`s`. Rows with its label are the positives :math:`P`, the others the negatives :math:`N`:

    .. math::
        \ell_q = \frac{1}{|P|} \sum_{i \in P} \frac{R_i^-}{R_i^+ + R_i^-}, \qquad
        R_i^- = \sum_{j \in N} H^-(s_j - s_i), \qquad R_i^+ = 1 + \sum_{j \in P, j \neq i} H^+(s_j - s_i)

    With ``"sigmoid"`` both :math:`H` are :math:`\sigma(t/\tau)` (Smooth-AP). With ``"sup"`` (SupAP) :math:`H^+` is the
    step function, which is 1 from 0 on and has no gradient, and

    .. math::
        H^-(t) = \begin{cases} \sigma(t/\tau) & t < 0 \\ \sigma(t/\tau) + 1/2 & 0 \le t \le \delta \\
        \rho\,(t - \delta) + \sigma(\delta/\tau) + 1/2 & t > \delta \end{cases}

    The calibration term makes the similarities of different batches comparable. The loss of a query is then
    :math:`(1 - \lambda)\,\ell_q + \lambda\,c_q` with

    .. math:: c_q = \frac{1}{|P|} \sum_{i \in P} [\alpha - s_i]_+ + \frac{1}{|N|} \sum_{j \in N} [s_j - \beta]_+

    A query is valid if it has a positive and a weight above 0. The result does not depend on the order of the rows or
    on the number of rows per class.

    Parameters
    ----------
    embeddings : Tensor [N, D], any floating dtype
        Arithmetic runs in float32 (float64 for float64 embeddings), also under autocast; only the backward of a step
        that is compiled under autocast multiplies matrices in autocast's dtype. With cosine similarity they need not be
        normalised. Gradient flows to each row as a query and as a key.
    labels : Tensor [N] or [N, 1], integer
        Class ids of any value.
    queue_state : QueueState
        The memory, from ``init_queue(queue_size, embedding_size)``; size 0 means no memory. Its rows are keys without
        gradient.
    cfg : RetrievalAPConfig
    temperature : float or Tensor [], optional
        Overrides ``cfg.temperature``. As a tensor it costs no compilation when it changes. It carries no gradient.
    sample_weight : Tensor [N], optional
        Non-negative, finite. Weighs the queries; ranks stay counts.
    update_queue : bool
        Whether the live rows enter the new state.

    Returns
    -------
    loss : Tensor [] or [N]
        0 if no query is valid. Not finite if a valid live embedding is not. In [0, 1] without the calibration term.
    new_state : QueueState

    Raises
    ------
    ValueError, TypeError
        If a shape, dtype or device does not fit. Values of weights are checked by the module.

    Notes
    -----
    Cost for M keys: O(N M D) for the similarities, and O(N M) memory. ``"sigmoid"``: O(N M log M) time. ``"sup"``: on
    the CPU O(P M) time for P pairs of a query and a positive, on other devices O(N M^2).

    References
    ----------
    Brown, Xie, Kalogeiton, Zisserman. Smooth-AP: Smoothing the Path Towards Large-Scale Image Retrieval. ECCV 2020,
    eq. 6-7.

    Ramzi, Thome, Rambour, Audebert, Bitot. Robust and Decomposable Average Precision for Image Retrieval. NeurIPS 2021.

    Examples
    --------
    >>> from imbalanced_losses import RetrievalAPConfig, init_queue, retrieval_ap
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]])
    >>> labels, cfg = torch.tensor([0, 0, 1, 2]), RetrievalAPConfig(embedding_size=2)
    >>> loss, memory = retrieval_ap(embeddings, labels, init_queue(8, 2), cfg)
    >>> round(loss.item(), 4)  # both queries have their positive at a rank: 2 of 3, and 3 of 3
    0.5833
    """
    return evaluate(
        measure_retrieval_ap,
        RetrievalAPConfig,
        embeddings,
        labels,
        queue_state,
        cfg,
        temperature=temperature,
        sample_weight=sample_weight,
        update_queue=update_queue,
    )


def measure_retrieval_ap(problems: RetrievalProblems, cfg: RetrievalAPConfig) -> tuple[Tensor, Tensor]:
    """The loss of each query and its number of positives, both ``[N]``."""
    scores, positive, negative = problems.scores, problems.positive, problems.negative
    if cfg.surrogate == "sup":
        loss, count = bounded_missed_precision(scores, positive, negative, problems.temperature, cfg.rho, cfg.delta)
    else:
        weight = torch.ones_like(scores[0]).expand_as(scores)
        loss, count = missed_precision(scores, positive, negative, weight, problems.temperature)
    if cfg.calibration_weight > 0:
        loss = (1 - cfg.calibration_weight) * loss + cfg.calibration_weight * _calibration(problems, cfg)
    return loss, count


def _calibration(problems: RetrievalProblems, cfg: RetrievalAPConfig) -> Tensor:
    """How far similarities are from their targets, ``[N]``; 0 for a query without positives."""
    too_far = torch.where(problems.positive, (cfg.positive_target - problems.scores).relu(), 0)
    too_close = torch.where(problems.negative, (problems.scores - cfg.negative_target).relu(), 0)
    n_positives, n_negatives = problems.positive.sum(-1), problems.negative.sum(-1)
    term = mean_over_weight(too_far.sum(-1), n_positives) + mean_over_weight(too_close.sum(-1), n_negatives)
    return torch.where(n_positives > 0, term, 0)

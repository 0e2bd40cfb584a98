"""The retrieval losses as modules: configuration, memory, and which pure functions stand behind them."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, final

from torch import Tensor

from imbalanced_losses.dispatch import is_transformed
from imbalanced_losses.distributed import GradReduction, with_local_gradient
from imbalanced_losses.embeddings import Similarity, check_memory, parse_embeddings
from imbalanced_losses.lifecycle import refuse_second_pass
from imbalanced_losses.losses._retrieval import RetrievalConfig, retrieval_step
from imbalanced_losses.losses.retrieval_ap import RetrievalAPConfig, measure_retrieval_ap
from imbalanced_losses.losses.retrieval_recall_at_k import RecallAtKConfig, measure_recall_at_k
from imbalanced_losses.modules._gathering import EmbeddingTask, gather_rows
from imbalanced_losses.modules._queue import QueueLoss
from imbalanced_losses.queue import QueueState, init_queue
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.rows import Rows

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["RecallAtKLoss", "RetrievalAPLoss"]

Config = TypeVar("Config", bound=RetrievalConfig)


class RetrievalLoss(QueueLoss[Config], ABC):
    """Parsing, gathering and the step: all that the retrieval losses share as modules."""

    _fixed_fields: ClassVar[tuple[str, ...]] = ("embedding_size", "ignore_index")
    _invalid_epoch = (
        "expected a query with a positive in some step of the epoch, got none: {} was 0 throughout. Put several rows "
        "of a class into a batch, or use a larger queue_size"
    )

    # (problems, config) -> losses and numbers of positives of the queries
    _objective: ClassVar[Any]

    def _empty_queue(self, **kind: Any) -> QueueState:
        cfg = self._config
        return init_queue(self.queue_size, cfg.embedding_size, ignore_index=cfg.ignore_index, **kind)

    def _step(self, embeddings: Tensor, labels: Tensor, sample_weight: Tensor | None, update_queue: bool) -> Tensor:
        """Parse, gather, take the step of the pure functions, write the memory back."""
        cfg, queue = self._config, self.queue_state
        update_queue = self._pushes(update_queue)
        if update_queue:
            refuse_second_pass()

        def parse() -> Rows:
            rows = parse_embeddings(embeddings, labels, cfg, sample_weight, check_values=self.validate_targets)
            check_memory(queue, rows, cfg)
            return rows

        ranks = self._find_ranks()
        if ranks is None:
            rows = parse()
        else:
            task = EmbeddingTask(cfg.embedding_size, cfg.ignore_index)
            given = {"has_flags": False, "has_weights": sample_weight is not None}
            rows, _ = gather_rows(ranks, embeddings, parse, task, queue, update_queue, **given)
        step = retrieval_step(self._objective, rows, queue, cfg, temperature=self.temperature, update_queue=False)
        if update_queue:
            self._push(queue, rows)
        if not is_transformed():
            self._note_validity(step.has_valid)
        if ranks is None:
            return step.loss
        return with_local_gradient(step.loss, step.loss, ranks, self.grad_reduction)


@final
class RetrievalAPLoss(RetrievalLoss[RetrievalAPConfig], config=RetrievalAPConfig):
    r"""Average-precision loss of retrieval with a memory: :func:`~imbalanced_losses.retrieval_ap` as a module.

    Parameters
    ----------
    embedding_size : int
        Columns of the embeddings.
    queue_size : int
        Past embeddings that are keys of each step; 0 for none.
    similarity : {"cosine", "dot"}
        How a query is compared with a key.
    surrogate : {"sigmoid", "sup"}
        Smooth-AP, or SupAP, an upper bound.
    temperature : float
        Of the sigmoid that replaces the comparison of two similarities. Assign ``loss.temperature`` to change it.
    reduction : {"mean", "sum", "none"}
        Over the valid queries. With several processes, the queries are those of all ranks, in the order of the ranks.
    ignore_index : int
        Rows with this label take no part.
    update_queue_in_eval : bool
        Whether rows enter the memory also in ``eval()`` mode.
    gather_distributed : bool, optional
        Gather the rows of all ranks, so that a step of W processes is that of one on all rows: ``None`` where a process
        group of several ranks is initialised, ``False`` never, ``True`` always (``RuntimeError`` without a group).
    rho, delta : float
        Of ``"sup"``: the slope for negatives that are more than ``delta`` above a positive.
    calibration_weight : float in [0, 1]
        The weight of the calibration term. ROADMAP is ``surrogate="sup"`` with 0.5.
    positive_target, negative_target : float
        The similarities that the calibration term asks of positives and negatives.
    validate_targets : bool
        Check the values of weights in eager mode, at the cost of a device synchronisation.
    grad_reduction : {"mean", "sum"}
        What happens to the ranks' gradients: DDP and FSDP average them, other wrappers may sum.
    group : ProcessGroup, optional
        Whose rows are gathered. Default: the default group.

    Raises
    ------
    ValueError, TypeError
        At construction, if a setting is out of range; at the call, if an input has the wrong shape, dtype, device or
        values. The memory is then left as it was.

    Examples
    --------
    >>> import torch
    >>> loss_fn = RetrievalAPLoss(embedding_size=2, queue_size=8)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]], requires_grad=True)
    >>> loss = loss_fn(embeddings, torch.tensor([0, 0, 1, 2]))
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.5833
    """

    def __init__(
        self,
        embedding_size: int,
        queue_size: int = 1024,
        similarity: Similarity = "cosine",
        surrogate: Literal["sigmoid", "sup"] = "sigmoid",
        temperature: float = 0.01,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        update_queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        *,
        rho: float = 100.0,
        delta: float = 0.05,
        calibration_weight: float = 0.0,
        positive_target: float = 0.9,
        negative_target: float = 0.6,
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(locals())

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        sample_weight: Tensor | None = None,
        update_queue: bool = True,
    ) -> Tensor:
        """Give the loss.

        Parameters
        ----------
        embeddings, labels, sample_weight
            As in :func:`~imbalanced_losses.retrieval_ap`.
        update_queue : bool
            ``False`` leaves the memory as it is. Where one batch passes several times before the model moves on (SAM,
            the closure of L-BFGS), all passes but the last do so.

        Raises
        ------
        RuntimeError
            From the backward, if the call was checkpointed (``torch.utils.checkpoint``) and pushes rows: call the loss
            outside.
        """
        return self._step(embeddings, labels, sample_weight, update_queue)

    _objective = staticmethod(measure_retrieval_ap)


@final
class RecallAtKLoss(RetrievalLoss[RecallAtKConfig], config=RecallAtKConfig):
    r"""Recall@k loss of retrieval with a memory: :func:`~imbalanced_losses.retrieval_recall_at_k` as a module.

    Parameters
    ----------
    embedding_size, queue_size, similarity, reduction, ignore_index, update_queue_in_eval, gather_distributed
        As in :class:`RetrievalAPLoss`.
    validate_targets, grad_reduction, group
        As in :class:`RetrievalAPLoss`.
    k : sequence of int >= 1, or int
        The loss is the mean over these numbers of neighbours.
    temperature : float
        Of the comparison of two similarities. Assign ``loss.temperature`` to change it.
    rank_temperature : float
        Of the comparison of a rank with k.

    Examples
    --------
    >>> import torch
    >>> loss_fn = RecallAtKLoss(embedding_size=2, k=2, rank_temperature=0.1, queue_size=8)
    >>> embeddings = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6], [0.0, 1.0]], requires_grad=True)
    >>> loss = loss_fn(embeddings, torch.tensor([0, 0, 1, 2]))
    >>> round(loss.item(), 4)  # the positives have rank 2, which counts 1/2, and rank 3
    0.75
    """

    def __init__(
        self,
        embedding_size: int,
        k: Sequence[int] | int = (1, 2, 4, 8, 16),
        queue_size: int = 1024,
        similarity: Similarity = "cosine",
        temperature: float = 0.01,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        update_queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        *,
        rank_temperature: float = 1.0,
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(locals())

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        sample_weight: Tensor | None = None,
        update_queue: bool = True,
    ) -> Tensor:
        """Give the loss; the arguments are those of :class:`RetrievalAPLoss`."""
        return self._step(embeddings, labels, sample_weight, update_queue)

    _objective = staticmethod(measure_recall_at_k)

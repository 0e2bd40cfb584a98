"""The ranking losses as modules: configuration, and which pure functions stand behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, final

from torch import Tensor

from imbalanced_losses.distributed import GradReduction
from imbalanced_losses.kernels.quantile import Interpolation
from imbalanced_losses.losses.pauc_at_budget import PAUCAtBudgetConfig, exact_pauc_at_budget, measure_pauc_at_budget
from imbalanced_losses.losses.recall_at_quantile import (
    RecallAtQuantileConfig,
    exact_recall_at_quantile,
    measure_recall_at_quantile,
)
from imbalanced_losses.losses.smooth_ap import SmoothAPConfig, exact_smooth_ap, measure_smooth_ap
from imbalanced_losses.modules._ranking import RankingLoss
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.spread import TauScale

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["PAUCAtBudgetLoss", "RecallAtQuantileLoss", "SmoothAPLoss"]


@final
class SmoothAPLoss(RankingLoss[SmoothAPConfig], config=SmoothAPConfig):
    """Smooth-AP loss over the batch and a queue of past rows: :func:`~imbalanced_losses.smooth_ap` as a module.

    Parameters
    ----------
    num_classes : int
        Columns of the logits; 1 is a binary problem with labels {0, 1}.
    queue_size : int
        Past rows that join the pool of each step; 0 for none.
    temperature : float
        Of the sigmoid that replaces the comparison of two scores, in units of ``tau_scale``. Assign
        ``loss.temperature`` to change it.
    reduction : {"mean", "sum", "none"}
        Over the valid classes.
    ignore_index : int
        Rows with this target take no part.
    update_queue_in_eval : bool
        Whether rows enter the queue also in ``eval()`` mode.
    gather_distributed : bool, optional
        Gather the rows of all ranks, so that a step of W processes is that of one on all rows: ``None`` where a process
        group of several ranks is initialised, ``False`` never, ``True`` always (``RuntimeError`` without a group).
    max_pool_size : int, optional
        Estimate the loss of larger pools from a sample of that many rows (warns once). For code that was written for
        pools of limited size: this library ranks pools of any size.
    multilabel : bool
        Targets are ``[N, C]`` labels in {0, 1}.
    validate_targets : bool
        Check the values of targets and weights in eager mode, at the cost of a device synchronisation.
    grad_reduction : {"mean", "sum"}
        What happens to the ranks' gradients: DDP and FSDP average them, other wrappers may sum.
    group : ProcessGroup, optional
        Whose rows are gathered. Default: the default group.
    tau_scale : {"none", "std", "iqr"}
        What ``temperature`` is a multiple of: 1, or the spread of the class's scores in the pool (standard deviation or
        interquartile range), so that one setting suits logits of any scale.

    Raises
    ------
    ValueError, TypeError
        At construction, if a setting is out of range; at the call, if an input has the wrong shape, dtype, device or
        values. The queue is then left as it was.

    Examples
    --------
    >>> import torch
    >>> loss_fn = SmoothAPLoss(num_classes=1)
    >>> logits = torch.tensor([2.0, 1.0, -1.0, 0.0], requires_grad=True)
    >>> loss = loss_fn(logits, torch.tensor([1, 0, 0, 1]))
    >>> loss.backward()
    >>> round(loss.item(), 4)
    0.1667
    """

    def __init__(
        self,
        num_classes: int,
        queue_size: int = 1024,
        temperature: float = 0.01,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        update_queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        max_pool_size: int | None = None,
        multilabel: bool = False,
        *,
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
        tau_scale: TauScale = "none",
    ) -> None:
        super().__init__(locals())

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iid_mask: Tensor | None = None,
        return_per_class: bool = False,
        *,
        sample_weight: Tensor | None = None,
        update_queue: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Give the loss, or ``(loss, per_class [C] with nan at invalid classes, valid [C])``.

        Parameters
        ----------
        logits, targets, iid_mask, sample_weight
            As in :func:`~imbalanced_losses.smooth_ap`.
        return_per_class : bool
            Whether to give the tuple.
        update_queue : bool
            ``False`` leaves the queue as it is. Where one batch passes several times before the model moves on (SAM,
            the closure of L-BFGS), all passes but the last do so: they rank against one pool, and the batch is pushed
            once.

        Raises
        ------
        RuntimeError
            From the backward, if the call was checkpointed (``torch.utils.checkpoint``) and pushes rows: call the loss
            outside. A loss compiled in place (``loss_fn.compile()``) raises, too; ``torch.compile(loss_fn)`` cannot.
        """
        outputs = self._outputs(self._step(logits, targets, iid_mask, sample_weight, update_queue), return_per_class)
        return outputs if return_per_class else outputs[0]  # type: ignore[return-value]

    _objective = staticmethod(measure_smooth_ap)
    _exact = staticmethod(exact_smooth_ap)


@final
class RecallAtQuantileLoss(RankingLoss[RecallAtQuantileConfig], config=RecallAtQuantileConfig):
    """Recall-at-quantile loss over the batch and a queue: :func:`~imbalanced_losses.recall_at_quantile` as a module.

    Parameters
    ----------
    num_classes, queue_size, temperature, reduction, ignore_index, update_queue_in_eval, gather_distributed
        As in :class:`SmoothAPLoss`.
    max_pool_size, multilabel, validate_targets, grad_reduction, group, tau_scale
        As in :class:`SmoothAPLoss`.
    quantile : float
        Alert budget, strictly between 0 and 1: the share of rows above the threshold, by ``budget_basis``.
    quantile_interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        As in ``torch.quantile``.
    threshold_gradient : {"stop", "implicit"}
        Whether the threshold is a constant of the step or follows the scores.
    budget_basis : {"population", "fpr"}
        The budget is a share of all rows, or of the negatives: recall at a false-positive rate.

    Examples
    --------
    >>> import torch
    >>> loss_fn = RecallAtQuantileLoss(num_classes=1, quantile=0.25, threshold_gradient="implicit")
    >>> logits = torch.tensor([2.0, 1.0, -1.0, 0.0], requires_grad=True)
    >>> loss = loss_fn(logits, torch.tensor([1, 0, 0, 1]))
    >>> round(loss.item(), 4)  # one positive is the threshold (1/2), the other far below it
    0.75
    """

    def __init__(
        self,
        num_classes: int,
        quantile: float = 0.005,
        queue_size: int = 1024,
        temperature: float = 0.01,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        update_queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        quantile_interpolation: Interpolation = "higher",
        max_pool_size: int | None = None,
        multilabel: bool = False,
        *,
        threshold_gradient: Literal["stop", "implicit"] = "stop",
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
        budget_basis: Literal["population", "fpr"] = "population",
        tau_scale: TauScale = "none",
    ) -> None:
        super().__init__(locals())

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iid_mask: Tensor | None = None,
        return_per_class: bool = False,
        *,
        sample_weight: Tensor | None = None,
        update_queue: bool = True,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Give the loss, or ``(loss, per_class [C] with nan at invalid classes, valid [C])``."""
        outputs = self._outputs(self._step(logits, targets, iid_mask, sample_weight, update_queue), return_per_class)
        return outputs if return_per_class else outputs[0]  # type: ignore[return-value]

    _objective = staticmethod(measure_recall_at_quantile)
    _exact = staticmethod(exact_recall_at_quantile)


@final
class PAUCAtBudgetLoss(RankingLoss[PAUCAtBudgetConfig], config=PAUCAtBudgetConfig):
    """Partial-AUC loss over the batch and a queue: :func:`~imbalanced_losses.pauc_at_budget` as a module.

    Parameters
    ----------
    num_classes, queue_size, reduction, ignore_index, update_queue_in_eval, gather_distributed
        As in :class:`SmoothAPLoss`.
    max_pool_size, multilabel, validate_targets, grad_reduction, group
        As in :class:`SmoothAPLoss`.
    alpha, beta : float
        The band of false-positive rates (or shares of the population), ``0 <= alpha < beta <= 1``.
    surrogate : {"trapezoid", "pairwise", "dro"}
        Soft true-positive rates at the band's thresholds, soft comparisons with the band's negatives, or the worst-case
        mean of hinge losses over the negatives (KL-DRO), for which ``temperature`` takes the place of ``beta``.
    n_knots : int
        Thresholds of the trapezoid, at least 2.
    tau_scale : {"none", "std", "iqr", "band"}
        What ``temperature`` is a multiple of: 1; the reference's standard deviation or interquartile range; or the
        width of the band in scores.
    pos_numerator : {"pool", "live"}
        Whether queued positives count in the numerator.
    budget_basis : {"fpr", "population"}
        The reference: iid negatives, or all iid rows.
    temperature : float
        Above 0, in units of the scale.
    quantile_interpolation : {"linear", "lower", "higher", "nearest", "midpoint"}
        As in ``torch.quantile``.
    threshold_gradient : {"stop", "implicit"}
        Whether the trapezoid's thresholds are constants of the step or follow the scores.
    margin : float
        Of the hinge of ``surrogate="dro"``, in units of the scale.
    positive_temperature : float, optional
        Of ``surrogate="dro"``: the temperature of a worst-case mean over the positives. ``None``: their plain mean.
    min_tpr : float
        Two-way partial AUC: floor on the true-positive rate, in [0, 1).

    Examples
    --------
    >>> import torch
    >>> loss_fn = PAUCAtBudgetLoss(num_classes=1, beta=0.5, surrogate="pairwise")
    >>> logits = torch.tensor([4.0, -1.0, 3.0, 2.0, 1.0, 0.0], requires_grad=True)
    >>> loss, stats = loss_fn(logits, torch.tensor([1, 1, 0, 0, 0, 0]), return_diagnostics=True)
    >>> round(loss.item(), 2), stats["band_neg_count"]
    (0.5, tensor([2]))
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.0,
        beta: float = 0.005,
        surrogate: Literal["trapezoid", "pairwise", "dro"] = "trapezoid",
        n_knots: int = 2,
        tau_scale: Literal["none", "std", "iqr", "band"] = "iqr",
        pos_numerator: Literal["pool", "live"] = "pool",
        budget_basis: Literal["fpr", "population"] = "fpr",
        queue_size: int = 1024,
        temperature: float = 0.1,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        update_queue_in_eval: bool = False,
        gather_distributed: bool | None = None,
        quantile_interpolation: Interpolation = "higher",
        max_pool_size: int | None = None,
        multilabel: bool = False,
        *,
        threshold_gradient: Literal["stop", "implicit"] = "stop",
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
        margin: float = 1.0,
        positive_temperature: float | None = None,
        min_tpr: float = 0.0,
    ) -> None:
        super().__init__(locals())

    def forward(
        self,
        logits: Tensor,
        targets: Tensor,
        iid_mask: Tensor | None = None,
        return_per_class: bool = False,
        return_diagnostics: bool = False,
        *,
        sample_weight: Tensor | None = None,
        update_queue: bool = True,
    ) -> Tensor | tuple[Tensor | dict[str, Tensor], ...]:
        """Give the loss, or the tuple of it, ``per_class`` and ``valid``, and ``stats``, as the flags ask for."""
        result = self._step(logits, targets, iid_mask, sample_weight, update_queue, diagnose=return_diagnostics)
        outputs = self._outputs(result, return_per_class)
        if return_diagnostics:
            return (*outputs, result.diagnostics)
        return outputs if return_per_class else outputs[0]

    _objective = staticmethod(measure_pauc_at_budget)
    _exact = staticmethod(exact_pauc_at_budget)

"""Logit-adjusted cross-entropy as a module: priors in a buffer, or estimated from counts of the training labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final

import torch
from torch import Tensor

from imbalanced_losses.class_counts import ClassCounts, class_priors, count_classes, init_class_counts
from imbalanced_losses.distributed import GradReduction, Ranks
from imbalanced_losses.lifecycle import refuse_second_pass
from imbalanced_losses.losses._cross_entropy import ChangedLogits, parse_label_targets
from imbalanced_losses.losses.logit_adjusted import LogitAdjustedConfig, adjust
from imbalanced_losses.modules._base import refuse_gradient
from imbalanced_losses.modules._elementwise import ChangedLogitsLoss, class_numbers
from imbalanced_losses.modules._gathering import keep_own_elements, reduce_over_ranks, sum_over_ranks
from imbalanced_losses.reductions import Reduction
from imbalanced_losses.settings import check_choice, check_prior_sequence

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["LogitAdjustedLoss"]


@final
class LogitAdjustedLoss(ChangedLogitsLoss[LogitAdjustedConfig], config=LogitAdjustedConfig):
    """Logit-adjusted cross-entropy (the VS loss): :func:`~imbalanced_losses.logit_adjusted` as a module.

    Parameters
    ----------
    priors : sequence of C floats, Tensor [C], float, or "stream"
        The frequency of each class: counts or shares. For binary logits the share of positives, or the counts of the
        labels 0 and 1; with ``multilabel`` the share of positives of each class. Stored in the buffer ``priors``.
        ``"stream"`` estimates them from the targets of the earlier calls in training mode: each call uses the counts
        so far, then adds its own targets. The counts are buffers, too.
    tau : float
        At least 0. Strength of the additive term; 0 switches it off.
    gamma : float
        At least 0. Strength of the multiplicative term; 0 switches it off.
    reduction : {"mean", "sum", "none"}
        ``"mean"`` divides by the number (with sample weights: the total weight) of targets that are not ignored.
    ignore_index : int
        Targets with this value are ignored.
    label_smoothing : float
        In [0, 1], as in ``torch.nn.functional.cross_entropy``; for exclusive classes only.
    multilabel : bool
        Each logit is an independent binary decision, with a label in [0, 1].
    num_classes : int, optional
        Required by ``priors="stream"``, and not allowed otherwise; 1 for binary logits.
    gather_distributed, validate_targets, grad_reduction, group
        As in :class:`SigmoidFocalLoss`. When gathering, the counts are those of all ranks.

    Raises
    ------
    ValueError, TypeError
        As in :class:`SigmoidFocalLoss`.

    Examples
    --------
    >>> logits, targets = torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1])
    >>> loss_fn = LogitAdjustedLoss([900, 100])
    >>> round(loss_fn(logits, targets).item(), 4)
    2.1135
    >>> loss_fn = LogitAdjustedLoss("stream", num_classes=2)
    >>> loss = loss_fn(logits, targets)
    >>> loss_fn.class_counts.positives
    tensor([1, 1])
    """

    _buffer_fields: ClassVar[tuple[str, ...]] = ("priors",)

    priors: Tensor | Literal["stream"]
    class_positives: Tensor
    class_labels: Tensor

    def __init__(
        self,
        priors: Tensor | Sequence[float] | float | Literal["stream"],
        tau: float = 1.0,
        gamma: float = 0.0,
        reduction: Reduction = "mean",
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        multilabel: bool = False,
        gather_distributed: bool | None = None,
        *,
        num_classes: int | None = None,
        validate_targets: bool = True,
        grad_reduction: GradReduction = "mean",
        group: ProcessGroup | None = None,
    ) -> None:
        super().__init__({**locals(), "priors": _as_tuple(priors)})
        config = self._config
        if (num_classes is None) == (config.priors is None):
            remedy = ': give it with priors="stream", and only then'
            raise ValueError(f"expected num_classes to size the counts of a stream, got {num_classes}{remedy}")
        self._num_classes = num_classes
        if config.priors is not None:
            self.register_buffer("priors", class_numbers(priors, config.priors))
            return
        self.__dict__["priors"] = "stream"
        counts = init_class_counts(num_classes)  # type: ignore[arg-type]
        self.register_buffer("class_positives", counts.positives)
        self.register_buffer("class_labels", counts.labels)

    @property
    def num_classes(self) -> int | None:
        """The number of classes of a stream; ``None`` with given priors."""
        return self._num_classes

    @num_classes.setter
    def num_classes(self, value: int | None) -> None:
        if value != self._num_classes:
            raise AttributeError("expected no change of num_classes, got one: make a new LogitAdjustedLoss")

    @property
    def class_counts(self) -> ClassCounts:
        """The counts of a stream (not copies) as the state that the pure functions take."""
        if not self._is_streaming:
            raise RuntimeError('expected a loss with priors="stream", got one with given priors: it counts nothing')
        return ClassCounts(positives=self.class_positives, labels=self.class_labels)

    def reset_parameters(self) -> None:
        """Reset the priors to those of the configuration, or the counts of a stream to 0."""
        super().reset_parameters()
        self.reset_class_counts()

    def reset_class_counts(self) -> None:
        """Set the counts of a stream to 0, for another run or fold; a loss with given priors has none."""
        if self._is_streaming:
            with torch.no_grad():
                self.class_positives.zero_()
                self.class_labels.zero_()

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the buffer on ``loss.priors = counts``; refuse a change between given priors and a stream."""
        if name == "priors":
            is_stream = not isinstance(value, Tensor) and _as_tuple(value) is None
            if is_stream != self._is_streaming:
                raise AttributeError(
                    f"expected no change between given priors and a stream, got {value!r}: make a new LogitAdjustedLoss"
                )
            if is_stream:
                return
        super().__setattr__(name, value)

    @property
    def _is_streaming(self) -> bool:
        return self._num_classes is not None

    def _before_compiled_call(self, **kwargs: Any) -> None:
        if self._is_streaming and self.training:
            refuse_second_pass()

    def forward(self, inputs: Tensor, targets: Tensor, *, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss: 0-dim or, with ``reduction="none"``, one for each target."""
        ranks = self._find_ranks()
        updates = self._is_streaming and self.training
        if updates:
            refuse_second_pass()
        loss = self._reduced(inputs, targets, sample_weight, ranks, updates)
        if updates:
            self._count(targets, ranks)
        return loss

    def _reduced(
        self, inputs: Tensor, targets: Tensor, sample_weight: Tensor | None, ranks: Ranks | None, updates: bool
    ) -> Tensor:
        reduction = self._config.reduction
        compared = partial(self._compared, inputs, targets, sample_weight)
        if ranks is None or (reduction == "none" and not self._is_streaming):
            return compared().reduced(sample_weight, reduction)
        if reduction == "none":
            return keep_own_elements(
                ranks, inputs, lambda: compared().reduced(sample_weight, reduction), updates=updates
            )
        return reduce_over_ranks(
            ranks,
            self.grad_reduction,
            inputs,
            lambda: compared().elements(sample_weight),
            mean=reduction == "mean",
            single_label=isinstance(inputs, Tensor) and inputs.dim() > 1,
            updates=updates,
        )

    def _compared(self, inputs: Tensor, targets: Tensor, sample_weight: Tensor | None) -> ChangedLogits:
        parsed = parse_label_targets(inputs, targets, multilabel=self._config.multilabel)
        self._check_parsed(inputs, parsed, sample_weight)
        if parsed.binary and not self._config.multilabel and self._num_classes not in (None, 1):
            raise ValueError(f"expected num_classes=1 for one logit, got {self._num_classes}: make a new loss")
        priors: Any = class_priors(self.class_counts) if self._is_streaming else self.priors
        return adjust(inputs, parsed, self._config, priors)

    @torch.no_grad()
    def _count(self, targets: Tensor, ranks: Ranks | None) -> None:
        """Add the targets to the counts, with ``copy_``: ``vmap(functional_call)`` loses an assignment."""
        counts, cfg = self.class_counts, self._config
        batch = count_classes(counts, targets, multilabel=cfg.multilabel, ignore_index=cfg.ignore_index)
        added = torch.stack([batch.positives, batch.labels])
        if ranks is not None:
            added = sum_over_ranks(ranks, added.flatten()).view_as(added)
        self.class_positives.copy_(counts.positives + added[0])
        self.class_labels.copy_(counts.labels + added[1])


def _as_tuple(priors: Any) -> tuple[float, ...] | None:
    """Return given priors as a tuple, or None for a stream."""
    refuse_gradient("priors", priors)
    if not isinstance(priors, str):
        return check_prior_sequence("priors", priors)
    check_choice("priors", priors, ("stream",))
    return None

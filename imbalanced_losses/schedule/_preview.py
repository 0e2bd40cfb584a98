"""A preview of a schedule: its phases, weights and temperatures over a whole run, as tensors and as a table."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from imbalanced_losses.schedule._functions import (
    BEFORE_THE_SWITCH,
    PHASES,
    ScheduleConfig,
    ScheduleState,
    blend_count,
    main_weight,
    phase,
    temperature,
)
from imbalanced_losses.settings import check_integer

__all__ = ["Preview", "preview"]


class Preview(NamedTuple):
    """The values of a schedule at each step of a run; ``print`` shows a table of selected steps.

    Attributes
    ----------
    step : Tensor [S], int64
        Counted from 0.
    epoch : Tensor [S], int64
        Counted from 0.
    phase : Tensor [S], int64
        Index into :data:`PHASES`.
    main_weight : Tensor [S], float32
        Weight of the main loss.
    temperature : Tensor [S], float32
        Of the main loss.

    Examples
    --------
    >>> preview(ScheduleConfig(blend_steps=3), 5).main_weight
    tensor([0.2500, 0.5000, 0.7500, 1.0000, 1.0000])
    """

    step: Tensor
    epoch: Tensor
    phase: Tensor
    main_weight: Tensor
    temperature: Tensor

    def __str__(self) -> str:
        header = f"{'step':>8}{'epoch':>7}  {'phase':<8}{'main weight':>12}{'temperature':>13}"
        return "\n".join([header, *map(self._line, self._steps_to_show())])

    def _steps_to_show(self) -> list[int]:
        """Return the first step of each phase, the last step, and some in between."""
        last = len(self.step) - 1
        first = {phase: step for step, phase in reversed(list(enumerate(self.phase.tolist())))}
        return sorted({*first.values(), *(last * k // 10 for k in range(11))})

    def _line(self, row: int) -> str:
        step, epoch, phase, main_weight, temperature = (column[row].item() for column in self)
        return f"{step:>8}{epoch:>7}  {PHASES[int(phase)]:<8}{main_weight:>12.3f}{temperature:>13.3g}"


def preview(cfg: ScheduleConfig, steps: int, *, steps_per_epoch: int | None = None) -> Preview:
    """Compute the phases, weights and temperatures of a schedule, without a run.

    Parameters
    ----------
    cfg : ScheduleConfig
    steps : int >= 1
        Length of the run.
    steps_per_epoch : int >= 1, optional
        Required if phases are counted in epochs. If left out, all steps are in epoch 0.

    Returns
    -------
    Preview
        The values of a loop over :func:`start_epoch` and :func:`start_step`; temperatures up to rounding.

    Raises
    ------
    TypeError, ValueError
        If a length is not an integer or too small, or ``steps_per_epoch`` is missing for phases counted in epochs.

    Examples
    --------
    >>> print(preview(ScheduleConfig(warmup_epochs=1, blend_epochs=1, temp_decay_steps=4), 6, steps_per_epoch=2))
        step  epoch  phase    main weight  temperature
           0      0  warmup         0.000         0.05
           1      0  warmup         0.000         0.05
           2      1  blend          0.500         0.05
           3      1  blend          0.500       0.0281
           4      2  main           1.000       0.0158
           5      2  main           1.000      0.00889
    """
    steps = check_integer("steps", steps, minimum=1)
    if steps_per_epoch is not None:
        steps_per_epoch = check_integer("steps_per_epoch", steps_per_epoch, minimum=1)
    elif cfg.counts_epochs:
        raise ValueError("expected steps_per_epoch for a schedule that counts its phases in epochs, got None")
    step = torch.arange(steps)
    epoch = step // (steps if steps_per_epoch is None else steps_per_epoch)
    unswitched = torch.full_like(step, BEFORE_THE_SWITCH)
    in_warmup = blend_count(ScheduleState(epoch=epoch, step=step, switch_step=unswitched), cfg) == 0
    # the fields of this state have a step axis; the functions of a state are elementwise
    state = ScheduleState(epoch=epoch, step=step, switch_step=torch.where(in_warmup, unswitched, in_warmup.sum()))
    return Preview(step, epoch, phase(state, cfg), main_weight(state, cfg), temperature(state, cfg))

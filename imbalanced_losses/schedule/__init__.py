"""The training schedule: warm-up, blend, main phase and temperature decay as functions of an immutable state.

A schedule is a function of two counters that the training loop advances, and of the step at which the main phase began.
All of it is tensor arithmetic: one compilation serves every step, and an ensemble of schedules is a ``vmap``.
"""

from imbalanced_losses.schedule._functions import (
    PHASES,
    ScheduleConfig,
    ScheduleState,
    blend,
    init_schedule,
    main_weight,
    phase,
    start_epoch,
    start_step,
    temperature,
)
from imbalanced_losses.schedule._preview import Preview, preview

__all__ = [
    "PHASES",
    "Preview",
    "ScheduleConfig",
    "ScheduleState",
    "blend",
    "init_schedule",
    "main_weight",
    "phase",
    "preview",
    "start_epoch",
    "start_step",
    "temperature",
]

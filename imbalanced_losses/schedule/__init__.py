"""The training schedule: warm-up, blend, main phase and temperature decay as functions of an immutable state.

A schedule depends on two counters that the training loop advances, and on the first step after warm-up. It is tensor
arithmetic, so that one compilation serves every step, and ``vmap`` runs an ensemble of schedules.
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

"""Pictures of a schedule, of scores and of their calibration, with matplotlib (the extra ``plots``).

Each function draws on the ``Axes`` that it is given, or on those of a new figure, and returns them. None shows or saves
a figure, sets a title or touches matplotlib's settings. matplotlib is imported by the first call.
"""

from imbalanced_losses.plots._figures import COLORS as COLORS  # also for the demos
from imbalanced_losses.plots._figures import plot_precision_recall, plot_schedule, plot_scores
from imbalanced_losses.plots._reliability import plot_reliability

__all__ = ["plot_precision_recall", "plot_reliability", "plot_schedule", "plot_scores"]

"""Calibration: what turns scores into probabilities, fitted on held-out rows, and a change of the class shares.

Fitting reads values: it runs in eager mode, on any device. Applying is a pure function of the logits and the buffers.
"""

from imbalanced_losses.calibration._modules import PlattScaling, TemperatureScaling
from imbalanced_losses.calibration._prior_shift import prior_shift

__all__ = ["PlattScaling", "TemperatureScaling", "prior_shift"]

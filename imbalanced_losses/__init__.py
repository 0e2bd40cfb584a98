"""Training losses for class-imbalanced classification and ranking metrics.

A functional core, ``smooth_ap(logits, targets, queue_state, cfg) -> (loss, new_state)``, over immutable pytree states,
and a thin ``nn.Module`` shell over it, ``SmoothAPLoss(num_classes=1)``.
"""

from importlib.metadata import PackageNotFoundError, version

from imbalanced_losses import calibration, distributed, metrics, retrieval_metrics, schedule, thresholds
from imbalanced_losses.class_counts import ClassCounts, class_priors, init_class_counts, update_class_counts
from imbalanced_losses.class_weights import class_weights, pos_weight, prior_bias_
from imbalanced_losses.losses._ranking import PerClass
from imbalanced_losses.losses.asymmetric import AsymmetricConfig, asymmetric
from imbalanced_losses.losses.focal import SigmoidFocalConfig, SoftmaxFocalConfig, sigmoid_focal, softmax_focal
from imbalanced_losses.losses.fpr_at_recall import FPRAtRecallConfig, fpr_at_recall, fpr_at_recall_per_class
from imbalanced_losses.losses.ldam import LDAMConfig, deferred_weights, ldam
from imbalanced_losses.losses.logit_adjusted import LogitAdjustedConfig, logit_adjusted
from imbalanced_losses.losses.pauc_at_budget import PAUCAtBudgetConfig, pauc_at_budget, pauc_at_budget_per_class
from imbalanced_losses.losses.precision_at_recall import (
    PrecisionAtRecallConfig,
    precision_at_recall,
    precision_at_recall_per_class,
)
from imbalanced_losses.losses.recall_at_quantile import (
    RecallAtQuantileConfig,
    recall_at_quantile,
    recall_at_quantile_per_class,
)
from imbalanced_losses.losses.retrieval_ap import RetrievalAPConfig, retrieval_ap
from imbalanced_losses.losses.retrieval_recall_at_k import RecallAtKConfig, retrieval_recall_at_k
from imbalanced_losses.losses.smooth_ap import SmoothAPConfig, smooth_ap, smooth_ap_per_class
from imbalanced_losses.losses.soft_fbeta import SoftFBetaConfig, soft_fbeta, soft_fbeta_per_class
from imbalanced_losses.modules.asymmetric import AsymmetricLoss
from imbalanced_losses.modules.at_recall import FPRAtRecallLoss, PrecisionAtRecallLoss
from imbalanced_losses.modules.focal import SigmoidFocalLoss, SoftmaxFocalLoss
from imbalanced_losses.modules.ldam import LDAMLoss
from imbalanced_losses.modules.logit_adjusted import LogitAdjustedLoss
from imbalanced_losses.modules.ranking import PAUCAtBudgetLoss, RecallAtQuantileLoss, SmoothAPLoss
from imbalanced_losses.modules.retrieval import RecallAtKLoss, RetrievalAPLoss
from imbalanced_losses.modules.soft_fbeta import SoftFBetaLoss
from imbalanced_losses.modules.warmup import LossWarmupWrapper
from imbalanced_losses.pytree import stack_states, unstack_states
from imbalanced_losses.queue import QueueState, init_queue, reset_queue
from imbalanced_losses.schedule import ScheduleConfig, ScheduleState

try:
    __version__ = version("imbalanced-losses")
except PackageNotFoundError:  # imported from a folder that was never installed
    __version__ = "0+unknown"

__all__ = [
    "AsymmetricConfig",
    "AsymmetricLoss",
    "ClassCounts",
    "FPRAtRecallConfig",
    "FPRAtRecallLoss",
    "LDAMConfig",
    "LDAMLoss",
    "LogitAdjustedConfig",
    "LogitAdjustedLoss",
    "LossWarmupWrapper",
    "PAUCAtBudgetConfig",
    "PAUCAtBudgetLoss",
    "PerClass",
    "PrecisionAtRecallConfig",
    "PrecisionAtRecallLoss",
    "QueueState",
    "RecallAtKConfig",
    "RecallAtKLoss",
    "RecallAtQuantileConfig",
    "RecallAtQuantileLoss",
    "RetrievalAPConfig",
    "RetrievalAPLoss",
    "ScheduleConfig",
    "ScheduleState",
    "SigmoidFocalConfig",
    "SigmoidFocalLoss",
    "SmoothAPConfig",
    "SmoothAPLoss",
    "SoftFBetaConfig",
    "SoftFBetaLoss",
    "SoftmaxFocalConfig",
    "SoftmaxFocalLoss",
    "__version__",
    "asymmetric",
    "calibration",
    "class_priors",
    "class_weights",
    "deferred_weights",
    "distributed",
    "fpr_at_recall",
    "fpr_at_recall_per_class",
    "init_class_counts",
    "init_queue",
    "ldam",
    "logit_adjusted",
    "metrics",
    "pauc_at_budget",
    "pauc_at_budget_per_class",
    "pos_weight",
    "precision_at_recall",
    "precision_at_recall_per_class",
    "prior_bias_",
    "recall_at_quantile",
    "recall_at_quantile_per_class",
    "reset_queue",
    "retrieval_ap",
    "retrieval_metrics",
    "retrieval_recall_at_k",
    "schedule",
    "sigmoid_focal",
    "smooth_ap",
    "smooth_ap_per_class",
    "soft_fbeta",
    "soft_fbeta_per_class",
    "softmax_focal",
    "stack_states",
    "thresholds",
    "unstack_states",
    "update_class_counts",
]

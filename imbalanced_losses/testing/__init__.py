"""Test your own loss with hypothesis (the extra ``testing``).

:func:`check_ranking_loss` and :func:`check_elementwise_loss` check any callable with the signature of this library's
losses against their contract. The strategies draw batches, queue states and configurations for your own tests.
"""

try:
    import hypothesis as _hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError("imbalanced_losses.testing needs hypothesis: pip install 'imbalanced-losses[testing]'") from error

from imbalanced_losses.testing.batches import ElementwiseBatch, RankingBatch
from imbalanced_losses.testing.configurations import configs
from imbalanced_losses.testing.contracts import (
    ELEMENTWISE_PROPERTIES,
    RANKING_PROPERTIES,
    ContractError,
    check_elementwise_loss,
    check_ranking_loss,
)
from imbalanced_losses.testing.strategies import elementwise_batches, queue_states, ranking_batches

__all__ = [
    "ELEMENTWISE_PROPERTIES",
    "RANKING_PROPERTIES",
    "ContractError",
    "ElementwiseBatch",
    "RankingBatch",
    "check_elementwise_loss",
    "check_ranking_loss",
    "configs",
    "elementwise_batches",
    "queue_states",
    "ranking_batches",
]

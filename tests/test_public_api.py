"""The public surface: names, signatures, docstrings; the installed package is complete and its modules stand alone."""

from __future__ import annotations

import importlib.metadata
import inspect
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import imbalanced_losses
from tests.registry import ELEMENTWISE, RANKING

OTHER_NAMES = [
    "ClassCounts",
    "LossWarmupWrapper",
    "PerClass",
    "QueueState",
    "RecallAtKConfig",
    "RecallAtKLoss",
    "RetrievalAPConfig",
    "RetrievalAPLoss",
    "ScheduleConfig",
    "ScheduleState",
    "__version__",
    "calibration",
    "class_priors",
    "class_weights",
    "deferred_weights",
    "distributed",
    "init_class_counts",
    "init_queue",
    "metrics",
    "pos_weight",
    "prior_bias_",
    "reset_queue",
    "retrieval_ap",
    "retrieval_metrics",
    "retrieval_recall_at_k",
    "schedule",
    "stack_states",
    "thresholds",
    "unstack_states",
    "update_class_counts",
]
"""Public names besides the losses in the registry: their functions, configurations and modules."""
RANKING_NAMES = [
    part.__name__ for loss in RANKING.values() for part in (loss.function, loss.per_class, loss.config, loss.shell)
]
ELEMENTWISE_NAMES = [
    part.__name__ for loss in ELEMENTWISE.values() for part in (loss.function, loss.config, loss.shell)
]
PUBLIC_NAMES = sorted([*OTHER_NAMES, *RANKING_NAMES, *ELEMENTWISE_NAMES])
SUBMODULE_NAMES = {
    "calibration": ["PlattScaling", "TemperatureScaling", "prior_shift"],
    "distributed": ["GradReduction", "all_gather_no_grad", "all_gather_with_grad"],
    "integrations.lightning": ["LossWarmupCallback"],
    "integrations.transformers": ["LossWarmupCallback", "compute_loss_func"],
    "metrics": [
        "average_precision",
        "coverage_at_budget",
        "fpr_at_recall",
        "partial_auc",
        "precision_at_recall",
        "recall_at_quantile",
    ],
    "plots": ["plot_precision_recall", "plot_reliability", "plot_schedule", "plot_scores"],
    "retrieval_metrics": ["map_at_r", "mean_average_precision", "recall_at_k"],
    "schedule": [
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
    ],
    "testing": [
        "ContractError",
        "ELEMENTWISE_PROPERTIES",
        "ElementwiseBatch",
        "RANKING_PROPERTIES",
        "RankingBatch",
        "check_elementwise_loss",
        "check_ranking_loss",
        "configs",
        "elementwise_batches",
        "queue_states",
        "ranking_batches",
    ],
    "thresholds": [
        "OperatingPoint",
        "for_alert_budget",
        "for_expected_cost",
        "for_precision_floor",
        "for_recall_floor",
    ],
}

FLOAT_DTYPES = "(torch.float64, torch.float32, torch.bfloat16, torch.float16)"
OF_RANKING = (
    "(logits, targets, queue_state, cfg, *, temperature=None, iid_mask=None, sample_weight=None, "
    "update_queue=True, generator=None)"
)
HELD_OUT = "multilabel=False, ignore_index=-100, sample_weight=None, n_bootstrap=0, confidence=0.95, generator=None)"
SIGNATURES = {
    "class_priors": "(state)",
    "deferred_weights": "(progress, counts, start, beta=0.9999)",
    "class_weights": "(counts, scheme='balanced', beta=0.999)",
    "pos_weight": "(positives, negatives, scheme='balanced', beta=0.999)",
    "prior_bias_": "(layer, counts, *, multilabel=False)",
    "calibration.PlattScaling": "(num_classes=1, *, ignore_index=-100)",
    "calibration.PlattScaling.fit": "(self, logits, targets, *, sample_weight=None)",
    "calibration.TemperatureScaling": "(*, ignore_index=-100)",
    "calibration.TemperatureScaling.fit": "(self, logits, targets, *, sample_weight=None)",
    "calibration.prior_shift": "(logits, train_prior, deploy_prior, *, multilabel=False)",
    "init_class_counts": "(num_classes, *, device=None)",
    "update_class_counts": "(state, targets, *, multilabel=False, ignore_index=-100)",
    "LossWarmupWrapper": "(warmup_loss, main_loss, warmup_epochs=0, temp_start=0.05, temp_end=0.005, "
    "temp_decay_steps=10000, blend_epochs=0, reset_queue_each_epoch=False, gather_distributed=None, warmup_steps=None, "
    "blend_steps=None, final_main_weight=1.0, *, auto_step=False)",
    "init_queue": "(queue_size, num_classes, *, multilabel=False, ignore_index=-100, dtype=torch.float32, device=None)",
    "reset_queue": "(state)",
    "stack_states": "(states)",
    "unstack_states": "(stacked)",
    "integrations.lightning.LossWarmupCallback": "()",
    "integrations.transformers.LossWarmupCallback": "(loss_fn=None)",
    "integrations.transformers.compute_loss_func": "(loss_fn, *, shift_labels=None)",
    "plots.plot_schedule": "(preview, *, ax=None)",
    "plots.plot_scores": "(scores, targets, *, threshold=None, band=None, ignore_index=-100, ax=None)",
    "plots.plot_precision_recall": "(scores, targets, *, label=None, ignore_index=-100, ax=None)",
    "plots.plot_reliability": "(probabilities, targets, *, n_bins=10, label=None, ignore_index=-100, "
    "sample_weight=None, ax=None)",
    "schedule.init_schedule": "(cfg, *, device=None)",
    "schedule.start_epoch": "(state, cfg, epoch)",
    "schedule.start_step": "(state, cfg, step)",
    "schedule.phase": "(state, cfg)",
    "schedule.main_weight": "(state, cfg)",
    "schedule.preview": "(cfg, steps, *, steps_per_epoch=None)",
    "schedule.Preview": "(step, epoch, phase, main_weight, temperature)",
    "schedule.blend": "(warmup_loss, main_loss, weight)",
    "schedule.temperature": "(state, cfg)",
    "distributed.all_gather_with_grad": "(tensor, group=None)",
    "distributed.all_gather_no_grad": "(tensor, group=None)",
    "metrics.average_precision": "(scores, targets, *, multilabel=False, ignore_index=-100, sample_weight=None)",
    "metrics.recall_at_quantile": "(scores, targets, quantile=0.005, interpolation='higher', *, multilabel=False, "
    "ignore_index=-100, sample_weight=None, budget_basis='population')",
    "metrics.partial_auc": "(scores, targets, alpha=0.0, beta=0.005, *, multilabel=False, ignore_index=-100, "
    "sample_weight=None, min_tpr=0.0)",
    "metrics.coverage_at_budget": "(scores, targets, budget=0.005, budget_basis='population', *, multilabel=False, "
    "ignore_index=-100, sample_weight=None)",
    "thresholds.for_alert_budget": f"(scores, targets, budget, budget_basis='population', *, {HELD_OUT}",
    "thresholds.for_recall_floor": f"(scores, targets, min_recall, *, {HELD_OUT}",
    "thresholds.for_precision_floor": f"(scores, targets, min_precision, *, {HELD_OUT}",
    "thresholds.for_expected_cost": f"(scores, targets, *, cost_fn, cost_fp, cost_tp=0.0, {HELD_OUT}",
}
SIGNATURES |= {
    "metrics.precision_at_recall": "(scores, targets, recall=0.8, *, multilabel=False, ignore_index=-100, "
    "sample_weight=None)",
    "metrics.fpr_at_recall": "(scores, targets, recall=0.8, *, multilabel=False, ignore_index=-100, "
    "sample_weight=None)",
}
RETRIEVAL = "(embeddings, labels, queue_state, cfg, *, temperature=None, sample_weight=None, update_queue=True)"
SIGNATURES |= {
    "RecallAtKLoss": "(embedding_size, k=(1, 2, 4, 8, 16), queue_size=1024, similarity='cosine', temperature=0.01, "
    "reduction='mean', ignore_index=-100, update_queue_in_eval=False, gather_distributed=None, *, "
    "rank_temperature=1.0, validate_targets=True, grad_reduction='mean', group=None)",
    "RetrievalAPLoss": "(embedding_size, queue_size=1024, similarity='cosine', surrogate='sigmoid', temperature=0.01, "
    "reduction='mean', ignore_index=-100, update_queue_in_eval=False, gather_distributed=None, *, rho=100.0, "
    "delta=0.05, calibration_weight=0.0, positive_target=0.9, negative_target=0.6, validate_targets=True, "
    "grad_reduction='mean', group=None)",
    "RecallAtKLoss.forward": "(self, embeddings, labels, *, sample_weight=None, update_queue=True)",
    "RetrievalAPLoss.forward": "(self, embeddings, labels, *, sample_weight=None, update_queue=True)",
    "retrieval_ap": RETRIEVAL,
    "retrieval_recall_at_k": RETRIEVAL,
    "retrieval_metrics.map_at_r": "(embeddings, labels, *, similarity='cosine', ignore_index=-100)",
    "retrieval_metrics.mean_average_precision": "(embeddings, labels, *, similarity='cosine', ignore_index=-100)",
    "retrieval_metrics.recall_at_k": "(embeddings, labels, k=1, found='any', *, similarity='cosine', "
    "ignore_index=-100)",
}
SIGNATURES |= {
    "testing.check_ranking_loss": "(loss, *, num_classes=1, multilabel=False, ignore_index=-100, skip=(), "
    "backend='aot_eager', max_examples=25)",
    "testing.check_elementwise_loss": "(loss, *, num_classes=1, multilabel=False, positions=(), ignore_index=-100, "
    "skip=(), backend='aot_eager', max_examples=25)",
    "testing.configs": "(config, **fixed)",
    "testing.queue_states": "(num_classes=1, *, multilabel=False, ignore_index=-100, min_size=0, max_size=8, "
    "dtype=torch.float32, extremes=True, ignored=True, sample_weights=True, iid_masks=True)",
    "testing.ranking_batches": "(num_classes=1, *, multilabel=False, ignore_index=-100, min_rows=0, max_rows=10, "
    f"min_queue=0, max_queue=8, dtypes={FLOAT_DTYPES}, extremes=True, ignored=True, sample_weights=True, "
    "iid_masks=True)",
    "testing.elementwise_batches": "(num_classes=1, *, multilabel=False, positions=(), ignore_index=-100, min_rows=0, "
    f"max_rows=6, dtypes={FLOAT_DTYPES}, extremes=True, soft_labels=True, sample_weights=True)",
}

for loss in RANKING.values():
    extra = "return_diagnostics=False, " if loss.returns_diagnostics else ""
    of_per_class = OF_RANKING.replace(")", ", diagnose=True)") if loss.returns_diagnostics else OF_RANKING
    SIGNATURES |= {
        loss.shell.__name__: loss.signature,
        f"{loss.shell.__name__}.forward": f"(self, logits, targets, iid_mask=None, return_per_class=False, {extra}*, "
        "sample_weight=None, update_queue=True)",
        loss.function.__name__: OF_RANKING,
        loss.per_class.__name__: OF_RANKING.replace(")", ", diagnose=True)")
        if loss.returns_diagnostics
        else OF_RANKING,
    }
for loss in ELEMENTWISE.values():
    SIGNATURES |= {
        loss.shell.__name__: loss.signature,
        f"{loss.shell.__name__}.forward": "(self, inputs, targets, *, sample_weight=None)",
        loss.function.__name__: loss.function_signature,
    }

NOT_CALLABLE = {
    "__version__",
    "calibration",
    "distributed",
    "distributed.GradReduction",
    "metrics",
    "retrieval_metrics",
    "schedule",
    "schedule.PHASES",
    "testing.ELEMENTWISE_PROPERTIES",
    "testing.RANKING_PROPERTIES",
    "thresholds",
}
CALLABLES = [
    name
    for name in [*PUBLIC_NAMES, *(f"{module}.{name}" for module, names in SUBMODULE_NAMES.items() for name in names)]
    if name not in NOT_CALLABLE
]
DATA = ("Config", "State", "PerClass", "ClassCounts", "Batch", "ContractError", "OperatingPoint")
PLAIN_DATA = [name for name in CALLABLES if name.endswith(DATA)]


def lookup(dotted: str) -> Any:
    for module in SUBMODULE_NAMES:  # some are extras, which the package does not import
        importlib.import_module(f"imbalanced_losses.{module}")
    value: Any = imbalanced_losses
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def signature_of(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def test_the_suite_tests_what_is_installed() -> None:
    """`make test` installs the package: a run on the checkout would not notice a file missing from the wheel."""
    installed = importlib.metadata.distribution("imbalanced-losses").locate_file("imbalanced_losses")
    assert Path(imbalanced_losses.__file__).parent == Path(str(installed))


def test_the_package_is_typed() -> None:
    assert (Path(imbalanced_losses.__file__).parent / "py.typed").is_file()


def test_version() -> None:
    assert imbalanced_losses.__version__ == importlib.metadata.version("imbalanced-losses")


def test_public_names() -> None:
    assert sorted(imbalanced_losses.__all__) == PUBLIC_NAMES
    assert all(hasattr(imbalanced_losses, name) for name in PUBLIC_NAMES)


@pytest.mark.parametrize("module", SUBMODULE_NAMES)
def test_public_names_of_submodules(module: str) -> None:
    assert sorted(lookup(module).__all__) == SUBMODULE_NAMES[module]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signature(name: str) -> None:
    assert signature_of(lookup(name)) == SIGNATURES[name]


def test_every_public_function_and_module_has_its_signature_pinned() -> None:
    assert set(CALLABLES) - set(PLAIN_DATA) <= set(SIGNATURES)


@pytest.mark.parametrize("name", CALLABLES)
def test_docstrings(name: str) -> None:
    """The thing itself and every public method and property that its class defines has one of its own."""
    value = lookup(name)
    own = vars(value).items() if inspect.isclass(value) else ()
    members = [v for k, v in own if not k.startswith("_") and (inspect.isfunction(v) or isinstance(v, property))]
    assert [v for v in (value, *members) if not inspect.getdoc(v)] == []
    # what dataclasses write when there is none
    assert not value.__doc__.startswith(f"{value.__name__}(")


@pytest.mark.parametrize("name", [n for n in CALLABLES if n not in PLAIN_DATA and not n.endswith("_per_class")])
def test_docstrings_have_an_example(name: str) -> None:
    assert ">>>" in lookup(name).__doc__


@pytest.mark.exhaustive
def test_every_module_can_be_imported_alone() -> None:
    """Each in its own process and without the package's ``__init__``, so that none relies on what that has imported."""
    script = """
import os, sys, types
import optree, torch  # slow, so once, before the forks

for name in sys.argv[2:]:
    if os.fork() == 0:
        package = types.ModuleType("imbalanced_losses")
        package.__path__ = [sys.argv[1]]
        sys.modules["imbalanced_losses"] = package
        __import__(name)
        os._exit(0)
    if os.wait()[1] != 0:
        sys.exit(name)
"""
    modules = [
        module.name
        for module in pkgutil.walk_packages(imbalanced_losses.__path__, "imbalanced_losses.")
        if not module.name.startswith("imbalanced_losses.testing")  # written for the public names, as users' tests are
    ]
    command = [sys.executable, "-I", "-c", script, imbalanced_losses.__path__[0], *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

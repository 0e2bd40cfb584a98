"""What ``make test`` leaves to ``make test-exhaustive``, beside the tests that are marked ``exhaustive`` themselves.

A test over many cases that takes seconds for each, because it compiles or starts processes, keeps a few of them in
``make test``. The table says which. Everything that is fast runs in full.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.registry import ELEMENTWISE, RANKING

_FIRST = ("recall_implicit", "trapezoid_population_implicit", "pairwise_live_implicit")

FURTHER = frozenset(
    [
        *(
            name
            for loss in RANKING.values()
            for name, variant in loss.variants.items()
            if not (variant.main or name in _FIRST)
        ),
        *(
            name
            for key, loss in ELEMENTWISE.items()
            for name, variant in loss.variants.items()
            if not (name == key or variant.processes or variant.compiled)
        ),
    ]
)
"""Names of variants whose tests are marked ``exhaustive``."""

LATER = frozenset({"dro", "precision_at_recall", "fpr_at_recall", "soft_fbeta"})
"""First variants whose tests in slow folders (distributed, modules, transforms) are marked ``exhaustive``, too."""

ABOUT_LOSSES = ("distributed/test_exact.py", "distributed/test_dro_fbeta.py")
"""Here ``dro_classes`` is a case of its own; elsewhere it is ``dro`` with another kind of targets."""

# starting four processes takes longer than their tests
_THREE_RANKS_AT_MOST = r"^(?!.*1\+2\+3\+4)"

KEPT: dict[str, dict[str, str]] = {
    "compiled/test_compiled.py": {
        "test_compiled_equals_eager": r"^(ranking|elementwise)-2$",
    },
    "compiled/test_ruled_out_classes.py": {
        "test_the_default_backend_is_eager": r"^0.3-2$",
    },
    "contracts/test_elements_modules.py": {
        "test_compiled_without_a_break": r"^[a-z]+(_adjusted|_focal)?(-stream)?$",
    },
    "contracts/test_elements_transforms.py": {
        "test_compiled_is_eager": r"^[a-z]+(_adjusted|_focal)?-",
        "test_compiled_transforms_are_eager": r"^[a-z]+(_adjusted|_focal)?$",
        "test_the_default_backend_compiles": r"^sigmoid_focal$",
    },
    "distributed/test_at_recall.py": {
        "test_five_steps_equal_those_of_one_process": r"-even-2$",
    },
    "distributed/test_compile.py": {
        "test_no_break_without_gathering": r"^smooth_ap$",
        "test_one_graph_break_at_the_collectives": r"smooth_ap|sigmoid_focal",
    },
    "distributed/test_dro_fbeta.py": {
        "test_five_steps_equal_those_of_one_process": r"^(dro_two_way|soft_fbeta_classes)-uneven$|^pairwise.*-even$",
    },
    "distributed/test_exact.py": {
        "test_five_steps_equal_those_of_one_process": r"-even-2$|^(smooth_ap|sigmoid_focal)-uneven-3$",
    },
    "distributed/test_gathers.py": {
        "test_all_rows_in_the_order_of_the_ranks": _THREE_RANKS_AT_MOST,
        "test_gradient_reaches_the_own_rows_as_if_in_place": _THREE_RANKS_AT_MOST,
    },
    "distributed/test_resume.py": {
        "test_a_rank_that_dies": r"^2-",
        "test_queues_are_those_of_one_process_to_the_bit": r"-[23]$",
        "test_resumes_with_another_number_of_ranks": r"^smooth_ap-.*-(2-3|3-1|1-2)$",
    },
    "distributed/test_retrieval.py": {
        "test_training_equals_that_of_one_process": r"uneven|-none-",
    },
    "distributed/test_setups.py": {
        "test_five_steps_equal_those_of_one_process": r"^2-(with|compiled-(smooth_ap|sigmoid))",
        "test_warm_up_blend_and_main_loss": r"^2$",
    },
    "distributed/test_traffic.py": {
        "test_two_collectives_whatever_each_rank_was_given": r"smooth_ap",
    },
    "examples/test_ddp_demo.py": {
        "test_processes_train_what_one_trains": r"^2-",
    },
    "examples/test_toy_demo.py": {
        "test_every_loss_trains_through_the_phases": r"^pauc$",
    },
    "integrations/test_lightning_precision.py": {
        "test_an_overflowed_step_is_skipped_and_leaves_no_trace": r"lightning-main-|smooth_ap$",
        "test_bfloat16_autocast_trains": r"^smooth_ap-|-steps$",
    },
    "integrations/test_lightning_resume.py": {
        "test_resumes_as_if_never_stopped": r"settings(0|5|9)-",
    },
    "integrations/test_transformers.py": {
        "test_a_callback_without_the_loss_is_refused": r"^epochs$",
        "test_a_resumed_run_equals_one_that_never_stopped": r"^epochs-|^steps-9-",
        "test_a_run_that_was_stopped_goes_on": r"^epochs-10$",
        "test_a_second_run_starts_with_an_empty_queue": r"^False-no-warm-up$",
        "test_evaluation_within_an_epoch_leaves_training_as_it_was": r"^epochs$",
    },
    "integrations/test_transformers_ddp.py": {
        "test_two_processes_train_as_one": r"^ranking-1-True$",
    },
    "integrations/test_transformers_loss.py": {
        "test_shares_of_a_step_add_up_to_one": r"^(gpt2|plain).*-3$",
    },
    "losses/test_focal_transforms.py": {
        "test_compiled_handles_every_number": r"focal-",
    },
    "losses/test_retrieval_ap.py": {
        "test_compiled_is_eager": r"^2$",
        "test_traced_is_eager": r"^(ap|roadmap|recall)$",
    },
    "losses/test_rounded_labels.py": {
        "test_compiled": r"^few-",
    },
    "losses/test_ruled_out_classes.py": {
        "test_compiled_is_eager": r"^few-(0.0|2.0)$",
    },
    "losses/test_tau_scale.py": {
        "test_it_is_the_loss_at_the_temperature_times_the_spread": r"^3-True-",
        "test_scaling_and_shifting_all_scores_changes_nothing": r"^3-False-",
    },
    "modules/test_diagnostics.py": {
        "test_a_compiled_pass_can_be_looked_at": r"^(recall|trapezoid)$",
        "test_between_steps_it_keeps_the_rows_of_a_batch_not_of_the_pool": r"^False-|trapezoid$",
        "test_nothing_of_the_graph_is_kept": r"^(plain|overflow|meta)-|trapezoid$",
    },
    "modules/test_life.py": {
        "test_a_weight_that_is_not_finite_affects_one_step": r"^False-|recall$",
        "test_invalid_labels_are_ignored": r"^False-|recall$",
    },
    "modules/test_logit_adjusted.py": {
        "test_a_compiled_stream_uses_the_counts_of_its_forward_in_the_backward": r"shape0|aot",
    },
    "modules/test_new_runs.py": {
        "test_an_epoch_without_a_valid_class_warns_once": r"^False-|smooth_ap$",
        "test_one_valid_step_is_enough": r"^False-|smooth_ap$",
    },
    "modules/test_ranking_shell_inputs.py": {
        "test_subsampling_does_not_warn_under_compile": r"^SmoothAPLoss$",
    },
    "modules/test_reported.py": {
        "test_a_loss_compiled_in_place_is_refused_in_a_checkpoint": r"smooth_ap",
    },
    "modules/test_second_pass.py": {
        "test_a_first_pass_can_leave_the_queue_as_it_is": r"^False-|smooth_ap|wrapper",
    },
    # second derivatives are those of one expression: `make test` takes an evaluator of pairs and one of ranks
    "parity/test_discordant_pairs.py": {
        "test_second_derivatives": r"^(few pairs-1|soft ranks-3)$",
    },
    "parity/test_missed_recall.py": {
        "test_second_derivatives": r"^(eager|expression)-",
    },
    "parity/test_rank_accuracy.py": {
        "test_a_positive_that_is_missed_by_far_keeps_its_gradient": r"False$|smooth_ap",
        "test_loss_and_gradient": r"^(near_linear.*-(2|130|5000)|(all|pairs).*-(2|130|1500)|auto.*-130)-(0.01|10.0)$",
    },
    "test_figures.py": {
        "test_numbers_are_those_of_the_library": r"^(where_losses_push|rows_with_gradient)$",
    },
    "test_metrics.py": {
        "test_compiled_is_eager": r"^average_precision$",
    },
    "test_thresholds.py": {
        "test_intervals_cover_what_the_threshold_reaches_on_new_rows": r"^cost$",
        "test_the_threshold_lies_midway_between_two_scores": r"^(budget|cost)$",
    },
    "testing/test_broken_losses.py": {
        "test_broken_elementwise_losses": r"-(result|pure|finite)$",
        "test_broken_ranking_losses": r"-(result|state)$",
        "test_the_elementwise_property_alone_finds_it": r"-(weights|compile)$",
        "test_the_ranking_property_alone_finds_it": r"-(weights|vmap)$",
    },
    "testing/test_own_losses.py": {
        "test_elementwise": r"^softmax_focal-function",
        "test_ranking_modules": r"^recall$",
    },
    "transforms/test_backward_alone.py": {
        "test_compiled_autograd": r"(smooth_ap|recall_implicit|trapezoid|live_implicit|softmax_focal) of 20|focal of f",
    },
    "transforms/test_compile.py": {
        "test_batches_of_other_sizes": r"^smooth_ap",
        "test_compiled_reset": r"^smooth_ap",
        "test_compiled_shell_equals_eager_shell": r"^(smooth_ap|pairwise_live_implicit)-",
        "test_forward_alone": r"^(smooth_ap|trapezoid)-",
        "test_grad": r"^trapezoid-",
        "test_grad_of_grad": r"-multiclass$",
        "test_no_rows": r"smooth_ap",
        "test_one_compilation_of_an_ensemble_step": r"^(smooth_ap|recall_implicit)-",
        "test_one_compilation_serves_a_schedule_and_a_ring_that_wraps": r"^(smooth_ap|recall_implicit)-binary$",
        "test_subsampling_compiles": r"^smooth_ap",
        "test_temperature_assigned_inside_the_compiled_step": r"^smooth_ap",
        "test_vmap": r"^trapezoid-",
        "test_vmap_over_temperatures": r"^smooth_ap-",
    },
    "transforms/test_operators.py": {
        "test_a_copy_of_a_compiled_module_is_its_own": r"^SmoothAPLoss$",
        "test_export": r"^False-|smooth_ap$",
        "test_generated_code_shows_a_logit_that_is_not_finite": r"^recall$",
    },
}
"""By file and test: ``make test`` runs the cases in whose parameters the expression is found."""


COVERED_ONE_IN = 6
"""Coverage measures one case in six of each test. It takes 50 % longer, and further cases reach no new lines."""

COVERED_BY_FILE = ("integrations/", "testing/", "transforms/")
"""In these folders it measures one test in six of each file: it also follows calls inside other libraries there."""


def mark_and_sort(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """Mark the tests that ``make test`` leaves out and those that coverage leaves out; these come last in a file."""
    cases: Counter[str] = Counter()
    by_file: dict[str, tuple[list[pytest.Item], list[pytest.Item]]] = {}
    for item in items:
        path, _, parameters = item.nodeid.removeprefix("tests/").partition("[")
        file, _, test = path.partition("::")
        covered, others = by_file.setdefault(file, ([], []))
        is_slow = path.startswith(("distributed/", "modules/", "transforms/"))
        words = re.split(r"[-. \]]", parameters)
        if file not in ABOUT_LOSSES:
            words = [word.removesuffix("_classes").removesuffix("_multilabel") for word in words]
        further = not (FURTHER | LATER if is_slow else FURTHER).isdisjoint(words)
        if further or not re.search(KEPT.get(file, {}).get(test, ""), parameters.removesuffix("]")):
            item.add_marker(pytest.mark.exhaustive)
            others.append(item)
            continue
        counted = file if file.startswith(COVERED_BY_FILE) else path
        uncovered = cases[counted] % COVERED_ONE_IN or re.search(r"compil|backend", item.nodeid)
        cases[counted] += 1
        if uncovered:
            item.add_marker(pytest.mark.uncovered)
        (others if uncovered else covered).append(item)
    return [item for covered, others in by_file.values() for item in (*covered, *others)]

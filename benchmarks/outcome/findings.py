"""The study in words, every one of them derived from the numbers."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from outcome.comparison import verdict
from outcome.contenders import (
    BASELINE,
    RANKING_LOSSES,
    RECIPE,
    RECIPES,
    SCHEDULES,
    SWEPT,
    WIDE,
    WIDE_ADJUSTED,
    WIDE_MIX,
    Contender,
    recipe_for,
)
from outcome.results import Results, in_turn, with_sign
from outcome.tasks import TASKS

__all__ = ["in_detail", "in_short", "meets_criterion"]

WEIGHTED, ADJUSTED = "weighted cross-entropy", "logit-adjusted"
LEGEND = """\
"One against another" is the mean difference in the target measure over the imbalanced tasks that both were trained on,
with its 95 % interval, and in how many of them the first wins / ties / loses."""
LOSSES = tuple(name for name, *_ in RANKING_LOSSES)
N_TASKS = sum(task.imbalanced for task in TASKS)

Part = Callable[[Results], str]


def in_short(results: Results) -> str:
    """Markdown: whether it helps, where, and what to start from."""
    return _joined(results, _criterion, _start_from, _cheap, _where, _defaults)


def in_detail(results: Results) -> str:
    """Markdown: a paragraph or list for each choice."""
    parts = (
        _which_loss,
        _temperatures,
        _band,
        _schedules,
        _threshold_gradient,
        _queues,
        _others,
        _chosen_by_validation,
        _prices,
    )
    return "\n\n".join((LEGEND, _joined(results, *parts)))


def _joined(results: Results, *parts: Part) -> str:
    return "\n\n".join(text for text in (part(results) for part in parts) if text)


def meets_criterion(results: Results, contender: str = RECIPE) -> bool:
    """Whether it beats the baseline on at least half of all imbalanced tasks, and is below it on none."""
    counts = results.counts(contender)
    return sum(counts.values()) == N_TASKS and 2 * counts["win"] >= N_TASKS and not counts["loss"]


def _criterion(results: Results) -> str:
    n_tasks = len(results.tasks_of(RECIPE))
    if not n_tasks:
        return ""
    by_verdict = results.by_verdict(RECIPE)
    counts = results.counts(RECIPE)
    answer = "It does." if meets_criterion(results) else "**It does not.**"
    if n_tasks < N_TASKS:
        answer = "That is open, as tasks are missing."
    text = (
        f"**The recipe** is {_listed(f'*{name}* {where}' for name, where in RECIPES.items())}. It should beat tuned "
        f"cross-entropy in the target measure on at least half of the {n_tasks} imbalanced tasks, with the interval "
        "above zero, and have none with the interval below. "
        f"{answer} It wins {counts['win']}, ties {counts['tie']} and loses {counts['loss']}; the mean difference is "
        f"{with_sign(results.over_tasks(RECIPE))}."
    )
    lines = [
        f"- {verb}: {_listed(f'{task} ({with_sign(results.difference(task, RECIPE))})' for task in by_verdict[name])}."
        for name, verb in (("win", "Wins"), ("tie", "Ties"), ("loss", "Loses"))
        if by_verdict[name]
    ]
    return _under(text, lines)


def _start_from(results: Results) -> str:
    """The recipe in full, and how it does on either side of its rule."""
    recipe = next((one for one in results.contenders if one.name == WIDE), None)
    if recipe is None:
        return ""
    temperatures, bands = (_values(recipe, name) for name in ("temperature", "band"))
    lines = [
        f'- loss: `PAUCAtBudgetLoss(surrogate="pairwise")`, `beta` {bands} times the budget of false alerts, at '
        "most 1;",
        f"- temperature: {temperatures}, far above the default: choose it, with `beta`, on validation;",
        f"- learning rate of Adam: {_values(recipe, 'lr')}; queue: 1,024 rows, the default;",
        "- schedule, from the first step: the ranking loss alone; half of it and half cross-entropy where there is a "
        "*half* in the name; half of it and half logit-adjusted cross-entropy where there is an *adjusted half*;",
    ]
    for name, where in RECIPES.items():
        tasks = [task.name for task in results.tasks if recipe_for(task.kind, task.budget) == name and task.imbalanced]
        if not tasks or not all(results.has(task, name) for task in tasks):
            continue
        rivals = {WIDE: "alone", WIDE_MIX: "half", WIDE_ADJUSTED: "adjusted half", ADJUSTED: ADJUSTED}
        means = ", ".join(
            f"{label} {statistics.fmean(results.difference(task, one).mean for task in tasks):+.3f}"
            for one, label in rivals.items()
            if all(results.has(task, one) for task in tasks)
        )
        costs = [results.milliseconds(task, name) / results.milliseconds(task, BASELINE) for task in tasks]
        lines.append(
            f"- {where}: {means} (mean differences to tuned cross-entropy); a step of the recipe takes "
            f"{min(costs):.1f} to {max(costs):.1f} times that of cross-entropy;"
        )
    return _under("**What to start from**, as [code](choosing.md#recipe):", _closed(lines))


def _values(contender: Contender, name: str) -> str:
    return " or ".join(f"{value:g}" for value in sorted({setting[name] for setting in contender.grid}))


def _chosen_by_validation(results: Results) -> str:
    """What trying all of ours and keeping the best on validation gives: no choice is made on test."""
    best = {task: chosen for task in results.tasks_of(BASELINE) if (chosen := _best_on_validation(results, task))}
    if not best:
        return ""
    verdicts = Counter(results.verdict(task, chosen) for task, chosen in best.items())
    picked = _listed(
        f"{task}: {chosen} ({with_sign(results.difference(task, chosen))})" for task, chosen in best.items()
    )
    return (
        f"**Who tries all of our ranking losses** and keeps the one that is best on validation beats tuned "
        f"cross-entropy on {verdicts['win']} of {len(best)} imbalanced tasks, ties on {verdicts['tie']} and loses on "
        f"{verdicts['loss']} (with many times its tuning budget): {picked}."
    )


def _best_on_validation(results: Results, task: str) -> str:
    scores = {
        one.name: max((score for score in results.validation(task, one.name) if not math.isnan(score)), default=0.0)
        for one in _ranking(results, task)
    }
    return max(scores, key=scores.__getitem__, default="")


def _ranking(results: Results, task: str) -> list[Contender]:
    """Our ranking contenders that were trained on a task, but for those that take only a few."""
    return [one for one in results.contenders if one.is_ranking and not one.tasks and results.has(task, one.name)]


def _where(results: Results) -> str:
    """Task by task, how many of ours win and lose."""
    lines = []
    for task in results.tasks:
        verdicts = Counter(results.verdict(task.name, one.name) for one in _ranking(results, task.name))
        if verdicts:
            lines.append((verdicts["win"] - verdicts["loss"], task.name, verdicts))
    if not lines:
        return ""
    lines.sort(reverse=True, key=lambda line: line[0])
    shown = (f"{task} {in_turn(verdicts)}" for _, task, verdicts in lines)
    text = "**Where our ranking losses win and lose**, the recipe aside."
    for verb, verdict_of in (("win", "win"), ("tie", "tie"), ("lose", "loss")):
        most = [task for _, task, verdicts in lines if 2 * verdicts[verdict_of] > verdicts.total()]
        text += f" Most {verb} on {_listed(most)}." if most else ""
    nowhere = [task for _, task, verdicts in lines if not verdicts["win"]]
    text += f" None wins on {_listed(nowhere)}." if nowhere else ""
    return f"{text} So many of them win / tie / lose: {_listed(shown)}."


def _which_loss(results: Results) -> str:
    everywhere = results.tasks_of(BASELINE)
    ranked = [one.name for one in results.ranked() if one.is_ranking and results.tasks_of(one.name) == everywhere]
    if not ranked:
        return ""
    best, worst = (
        _listed(f"{name} ({with_sign(results.over_tasks(name))}, {in_turn(results.counts(name))})" for name in some)
        for some in (ranked[:3], ranked[-3:])
    )
    return (
        f"**Which loss to start from.** Over all imbalanced tasks the best means have {best}; the worst {worst} "
        "(difference to tuned cross-entropy in the target measure; wins / ties / losses)."
    )


def _defaults(results: Results) -> str:
    """Defaults of the library beside what the study tried in their place."""
    pairs = (
        ("`temperature=0.01` of Smooth-AP", "Smooth-AP", "Smooth-AP, default temperature"),
        ('`threshold_gradient="stop"` of recall', "recall, implicit", "recall, stop"),
        ('`threshold_gradient="stop"` of pAUC', "pAUC trapezoid, implicit", "pAUC trapezoid, stop"),
        ('`surrogate="trapezoid"` of pAUC', "pAUC pairwise", "pAUC trapezoid, implicit"),
        ("`queue_size=1024` of Smooth-AP", "Smooth-AP, queue 8,192", "Smooth-AP"),
        ("`queue_size=1024` of pAUC", "pAUC pairwise, queue 8,192", "pAUC pairwise"),
        ("the wrapper's decay from 0.05 to 0.005", "Smooth-AP + warm-up", "Smooth-AP + warm-up, default decay"),
    )
    lines = []
    for default, better, worse in pairs:
        if results.tasks_of(better, worse):
            beaten = {"win": "beaten", "tie": "not beaten beyond chance", "loss": "better"}
            answer = beaten[verdict(results.over_tasks(better, other=worse))]
            lines.append(f"- {default} is {answer}: {_against(results, better, worse)}.")
    text = (
        "**Defaults.** They stay as they are, so that what works today works tomorrow; the recipe sets its own. "
        "Differences in the target measure, wins / ties / losses:"
    )
    return _under(text, lines)


def _cheap(results: Results) -> str:
    """The cheap alternatives, which a reader should try first if they do as well."""
    lines = []
    for name in (WEIGHTED, ADJUSTED):
        if results.tasks_of(name):
            lines.append(f"- {_against(results, name, BASELINE)};")
        if results.tasks_of(RECIPE, name):
            by_verdict = results.by_verdict(RECIPE, other=name)
            above, below = (_listed(by_verdict[one]) or "no task" for one in ("win", "loss"))
            lines.append(f"- {_against(results, RECIPE, name)}: above it on {above}; below it on {below}.")
    text = (
        "For one label logit adjustment is no more than another start of the model's bias: part of what is gained over "
        "cross-entropy is the time that it takes to learn how rare positives are, and runs are short here."
    )
    return _under("**Try first what is cheap:**", [*lines, "", text] if lines else [])


def _temperatures(results: Results) -> str:
    """How often validation chose each temperature of a loss; its mean scores where nothing else is varied."""
    lines = [line for name in LOSSES if (line := _chosen_temperatures(results, name))]
    for one in results.contenders:
        if one.name in RECIPES:
            settings = [results.chosen(task, one) for task in results.tasks_of(one.name)]
            picked = Counter((setting["temperature"], setting["band"]) for setting in settings)
            shown = ", ".join(f"{t:g} with {b:g} times the budget on {n}" for (t, b), n in sorted(picked.items()))
            lines.append(f"- {one.name}: {shown}.")
    for name in SWEPT:
        swept = f"{name}, temperatures"
        tasks = [task for task in results.tasks_of(swept) if not any(map(math.isnan, results.validation(task, swept)))]
        if tasks:
            means = [
                statistics.fmean(of_task)
                for of_task in zip(*(results.validation(t, swept) for t in tasks), strict=True)
            ]
            shown = ", ".join(f"{mean:.3f} at {value:g}" for mean, value in zip(means, SWEPT[name], strict=True))
            lines.append(f"- {name}, mean validation score by temperature (tasks: {len(tasks)}): {shown}.")
    return _under("**Temperature.** What validation chose, and on how many imbalanced tasks:", lines)


def _chosen_temperatures(results: Results, loss: str) -> str:
    trained = {one.name: one for one in results.contenders}
    parts = []
    for suffix in SCHEDULES:
        if one := trained.get(loss + suffix):
            picked = Counter(results.chosen(task, one)["temperature"] for task in results.tasks_of(one.name))
            shown = ", ".join(f"{temperature:g} on {count}" for temperature, count in sorted(picked.items()))
            parts.append(f"{suffix.strip(' +') or 'alone'} {shown}")
    return f"- {loss}: {_listed(parts)}." if parts else ""


def _band(results: Results) -> str:
    if not results.tasks_of(WIDE, "pAUC pairwise"):
        return ""
    return f"**Band.** 3 or 10 times the budget, or the budget itself: {_against(results, WIDE, 'pAUC pairwise')}."


def _schedules(results: Results) -> str:
    """Warm-up and blend, and the mix that stays, against the same loss from scratch."""
    lines = []
    for name, suffix in itertools.product(LOSSES, (" + warm-up", " + mix")):
        if results.tasks_of(name + suffix, name):
            lines.append(f"- {_against(results, name + suffix, name)}.")
    return _under("**Schedule.** Against the same loss from the first step:", lines)


def _threshold_gradient(results: Results) -> str:
    lines = [
        _against(results, f"{loss}, implicit{suffix}", f"{loss}, stop{suffix}")
        for loss, suffix in itertools.product(("recall", "pAUC trapezoid"), ("", " + warm-up"))
        if results.tasks_of(f"{loss}, implicit{suffix}", f"{loss}, stop{suffix}")
    ]
    return f"**Threshold gradient.** {_listed(lines)}." if lines else ""


def _queues(results: Results) -> str:
    lines = [
        _against(results, one.name, one.name.split(", queue")[0])
        for one in results.contenders
        if ", queue" in one.name and results.tasks_of(one.name, one.name.split(", queue")[0])
    ]
    return f"**Queue.** Against 1,024 rows: {_listed(lines)}." if lines else ""


def _others(results: Results) -> str:
    """The packages of others: 0.6.0 beside the same loss of ours, LibAUC beside the baseline and the recipe."""
    pairs = {"0.6.0 Smooth-AP": "Smooth-AP", "0.6.0 recall": "recall, stop", "0.6.0 pAUC": "pAUC trapezoid, stop"}
    lines = [f"- {_against(results, ours, peer)};" for peer, ours in pairs.items() if results.tasks_of(ours, peer)]
    for one in results.contenders:
        if one.series == "libauc" and results.tasks_of(one.name):
            lines.append(f"- {_against(results, one.name, BASELINE)}; {_against(results, RECIPE, one.name)};")
    return _under("**Other packages:**", _closed(lines))


def _prices(results: Results) -> str:
    """Calibration and time."""
    groups = {
        "ranking losses alone": [one for one in results.contenders if one.is_ranking and not one.is_mixed],
        "in the mix": [one for one in results.contenders if one.is_ranking and one.is_mixed],
        "cross-entropy": [one for one in results.contenders if one.name == BASELINE],
    }
    errors, times = [], []
    for name, members in groups.items():
        cells = [(task.name, one.name) for task in results.tasks for one in members if results.has(task.name, one.name)]
        if cells:
            errors.append(f"{name} {statistics.fmean(results.mean(*cell, 'ece') for cell in cells):.3f}")
            middle = statistics.median(results.milliseconds(*cell) for cell in cells)
            times.append(f"{name} {middle:.2f} ms")
    return (
        f"**The price.** Mean calibration error: {', '.join(errors)}: scores of a ranking loss are no probabilities "
        f"until they are calibrated. Median time of a step of this small model: {', '.join(times)}."
    )


def _against(results: Results, one: str, other: str) -> str:
    """``one against other: mean difference, counts``."""
    difference, counts = results.over_tasks(one, other=other), results.counts(one, other=other)
    return f"{one} against {other} {with_sign(difference)} ({in_turn(counts)})"


def _under(heading: str, lines: Sequence[str]) -> str:
    """A list with its heading; nothing if it is empty."""
    return "\n".join([heading, "", *lines]) if lines else ""


def _closed(lines: Sequence[str]) -> list[str]:
    """With a full stop after the last line in place of its semicolon."""
    return [*lines[:-1], *(line.removesuffix(";") + "." for line in lines[-1:])]


def _listed(items: Iterable[str]) -> str:
    return "; ".join(items)

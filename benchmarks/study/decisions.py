"""What the study says: what was chosen on one half, and what it did on the other."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterator
from typing import Any

from pages import table

from study.contenders import BASELINE, CONTENDERS, ENSEMBLES, NETWORKS
from study.measures import MEASURES, TARGET
from study.problems import BINS, Kind, Problem, bin_of
from study.results import HALVES, OF_CONTENDER, Place, Results, with_sign

__all__ = ["decisions", "ensembles", "holds", "price", "settings_of", "verdict"]

LEVEL = 0.05
WORST = -0.01
PRICED = ("Smooth-AP 0.5", "Smooth-AP 0.5 + half")
REFERENCE = ("ensemble", BASELINE)


def holds(results: Results, model: str, contender: str, problems: list[Problem], measure: str = TARGET) -> bool:
    """Whether a contender may be recommended, by problems that have not chosen it.

    Its mean is above zero with the interval, also against its control, and no table is lost: neither below zero beyond
    chance nor, as chance is wide on three splits, by more than a point.
    """
    control = OF_CONTENDER[contender].control
    others = [None, *([(model, control)] if control else [])]
    found = [results.overall(model, contender, measure, problems, other) for other in others]
    wins = all(math.isfinite(one.half) and one.low > 0 for one in found)
    return (
        wins
        and results.is_whole(model, contender, problems)
        and loses_nowhere(results, model, contender, measure, problems)
    )


def loses_nowhere(results: Results, model: str, contender: str, measure: str, problems: list[Problem]) -> bool:
    """Whether no table is below zero beyond chance, or by more than a point."""
    beyond_chance = results.counts(model, contender, measure, problems)[2]
    return not beyond_chance and min(results.means(model, contender, measure, problems), default=0.0) >= WORST


def verdict(results: Results) -> str:
    """Markdown: for each model, the ranking loss that the first half chooses, and whether it holds on the second."""
    chosen = {model: results.best(model, TARGET, results.half(HALVES[0]), ours=True) for model in NETWORKS}
    return "\n".join(_line(results, model, best) for model, best in chosen.items() if best is not None)


def price(results: Results) -> str:
    """Training time relative to cross-entropy: the median over tables of one label."""
    problems = [one for half in HALVES for one in results.half(half)]
    found = []
    for model, name in itertools.product(NETWORKS, PRICED):
        compared = results.problems_of(model, name, TARGET, problems)
        if compared:
            found.append(f"{model}, *{name}* {_times(results, (model, name), (model, BASELINE), compared)}")
    return f"- Training time relative to cross-entropy: {'; '.join(found)}." if found else ""


def _times(results: Results, place: Place, other: Place, problems: list[Problem]) -> str:
    """Median over problems of the training time, in multiples of that at another place."""
    (model, name), (other_model, other_name) = place, other
    ratios = (
        results.seconds(model, one.name, name) / results.seconds(other_model, one.name, other_name) for one in problems
    )
    return f"{statistics.median(ratios):.1f}"


def _line(results: Results, model: str, best: str) -> str:
    first, second = (results.half(half) for half in HALVES)
    p = results.adjusted(model, TARGET, first)[best]
    text = (
        f"- {model}: *{best}*, {with_sign(results.overall(model, best, TARGET, first))} points of average precision on "
        f"the half that it was chosen on (p after Holm {p:.2g})"
    )
    if not results.problems_of(model, best, TARGET, second):
        return f"{text}. The other half has not been looked at."
    unseen = with_sign(results.overall(model, best, TARGET, second))
    wins, ties, losses = results.counts(model, best, TARGET, second)
    worst = 100 * min(results.means(model, best, TARGET, second))
    says = "Confirmed." if holds(results, model, best, second) else "**Not confirmed.**"
    counts = f"better on {wins} tables, within chance on {ties} and worse on {losses} (worst {worst:+.1f})"
    text = f"{text}, {unseen} on the other, where it is {counts}"
    if control := OF_CONTENDER[best].control:
        text = (
            f"{text}; {with_sign(results.overall(model, best, TARGET, second, (model, control)))} against *{control}*"
        )
    return f"{text}. {says}"


def decisions(results: Results) -> str:
    """Markdown: the best loss by measure, positives and model, chosen on one half and judged on the other."""
    header = ("measure", "positives", "model", "loss", "settings chosen", *HALVES, "use it?")
    rows = []
    for measure, title in MEASURES.items():
        for name in BINS:
            for model in (one for one in NETWORKS if one in results.models):
                rows += [(title, name, model, *cells) for cells in _decision(results, measure, name, model)]
    answers = [row[-1] for row in rows]
    judged = [answer for answer in answers if answer.startswith(("yes", "no"))]
    held = judged.count("yes")
    by_chance = (
        f"{held} of {len(judged)} rows that can be judged hold. If no loss were better than cross-entropy, an interval "
        f"of 95 % would still lie above zero in one row of 40, so in {len(judged) / 40:.1f} rows of these. The rows "
        "are not independent, and those of tables with few positives rest on two held-out tables, which can hardly "
        "show a gain."
    )
    return f"{table(header, rows)}\n\n{by_chance}"


def _decision(results: Results, measure: str, name: str, model: str) -> Iterator[tuple[str, ...]]:
    kind: Kind = "multiclass" if name == BINS[2] else "binary"
    halves = [[one for one in results.half(half, kind) if bin_of(one) == name] for half in HALVES]
    best = results.best(model, measure, halves[0])
    if best is None:
        return
    found = [results.overall(model, best, measure, problems) for problems in halves]
    if math.isnan(found[1].mean):
        answer = "open: no table to check on"
    elif not results.is_whole(model, best, halves[1]):
        answer = "open: tables are missing"
    elif math.isinf(found[1].half):
        answer = "open: one table to check on"
    elif holds(results, model, best, halves[1], measure):
        answer = "yes"
    elif found[1].high < 0 or not loses_nowhere(results, model, best, measure, halves[1]):
        answer = f"no: keep {BASELINE}"
    else:
        answer = f"not shown: keep {BASELINE}"
    yield best, settings_of(results, model, best, halves[0]), *(with_sign(one) for one in found), answer


def settings_of(results: Results, model: str, contender: str, problems: list[Problem]) -> str:
    """The options, and the median of each tuned value over problems."""
    one = next(one for one in CONTENDERS if one.name == contender)
    chosen: list[dict[str, Any]] = [
        results.cells[model][problem.name][contender]["chosen"]
        for problem in problems
        if results.has(model, problem.name, contender)
    ]
    medians = {key: statistics.median(setting[key] for setting in chosen) for key in chosen[0]} if chosen else {}
    parts = [f"{key}={value}" for key, value in one.options.items()]
    return ", ".join([*parts, *(f"{key} {value:.3g}" for key, value in medians.items())])


def ensembles(results: Results) -> str:
    """Markdown table: eight members by one vmap beside the single MLP, in gain and in time."""
    if "ensemble" not in results.models:
        return ""
    rows = []
    for name in ENSEMBLES:
        cells = []
        for half in HALVES:
            problems = results.problems_of("ensemble", name, TARGET, results.half(half))
            time = _times(results, ("ensemble", name), ("MLP", name), problems) if problems else "-"
            gain, beyond = (results.overall("ensemble", name, TARGET, problems, other) for other in (None, REFERENCE))
            cells += [with_sign(gain), with_sign(beyond) if name != BASELINE else "-", time]
        rows.append((name, *cells))
    titles = ("gain in AP", "minus eight of cross-entropy", "training time / one MLP's")
    times = (f"{half}: {what}" for half in HALVES for what in titles)
    return table(("loss", *times), rows)

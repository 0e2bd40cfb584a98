"""What the study says: what was chosen on one half, and what it did on the other."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from typing import Any

from pages import table

from study.contenders import BASELINE, CONTENDERS, ENSEMBLES
from study.measures import MEASURES, TARGET
from study.problems import BINS, Problem, bin_of
from study.results import HALVES, Results, with_sign

__all__ = ["decisions", "ensembles", "holds", "settings_of", "verdict"]

NETWORKS = ("linear", "MLP", "head")
LEVEL = 0.05


def holds(results: Results, model: str, contender: str, measure: str = TARGET) -> bool:
    """Whether a contender may be recommended.

    On the half that chose nothing its mean is above zero with the interval, and it is below zero beyond chance on no
    table.
    """
    problems = results.half(HALVES[1])
    found = results.overall(model, contender, measure, problems)
    return math.isfinite(found.half) and found.low > 0 and results.counts(model, contender, measure, problems)[2] == 0


def verdict(results: Results) -> str:
    """Markdown: for each model, the ranking loss that the first half chooses, and whether it holds on the second."""
    chosen = {model: results.best(model, TARGET, results.half(HALVES[0]), ours=True) for model in NETWORKS}
    return "\n".join(_line(results, model, best) for model, best in chosen.items() if best is not None)


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
    says = "It holds." if holds(results, model, best) else "**It does not hold.**"
    return f"{text}, {unseen} on the other, where it wins {wins}, ties {ties} and loses {losses}. {says}"


def decisions(results: Results) -> str:
    """Markdown table: the best loss by measure, positives and model, chosen on one half and judged on the other."""
    header = ("measure", "positives", "model", "loss", "settings chosen", *HALVES, "take it?")
    rows = []
    for measure, title in MEASURES.items():
        for name in BINS:
            for model in (one for one in NETWORKS if one in results.models):
                rows += [(title, name, model, *cells) for cells in _decision(results, measure, name, model)]
    return table(header, rows)


def _decision(results: Results, measure: str, name: str, model: str) -> Iterator[tuple[str, ...]]:
    halves = [[one for one in results.half(half) if bin_of(one) == name] for half in HALVES]
    best = results.best(model, measure, halves[0])
    if best is None:
        return
    found = [results.overall(model, best, measure, problems) for problems in halves]
    losses = results.counts(model, best, measure, halves[1])[2]
    if math.isnan(found[1].mean):
        answer = "no table to check on"
    elif math.isinf(found[1].half):
        answer = "open: one table to check on"
    else:
        answer = "yes" if found[1].low > 0 and not losses else f"no: keep {BASELINE}"
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
            ratios = [
                results.seconds("ensemble", one.name, name) / results.seconds("MLP", one.name, name) for one in problems
            ]
            time = f"{statistics.median(ratios):.1f}" if ratios else "-"
            cells += [with_sign(results.overall("ensemble", name, TARGET, problems)), time]
        rows.append((name, *cells))
    times = (f"{half}: {what}" for half in HALVES for what in ("gain in AP", "times the seconds"))
    return table(("loss", *times), rows)

"""What all tasks say together, for the page: score tables, profiles, sample efficiency, probability of improvement."""

from collections.abc import Sequence
from typing import Any

from benchmarks.analysis.aggregate import Aggregate, Ahead, Improvement
from benchmarks.analysis.curves import Curves
from benchmarks.analysis.statistics import Interval
from benchmarks.report.charts import chart, interval_point, reference

_ALL = "all tasks"


def overall_charts(found: Aggregate, summary: Curves) -> list[dict[str, Any]]:
    """Return the score against reward queries, and the performance profile."""
    efficiency, profiles = [], []
    for name in found.variants:
        curves = [summary[task][name] for task in found.tasks]
        runs = [curve.runs[place] for curve in curves for place in curve.places(found.seeds)]
        queries, scores = found.efficiency[name]
        points = []
        for at, score in zip(queries, scores, strict=True):
            latest = [sum(q <= at for q in curve.queries) - 1 for curve in curves for _ in found.seeds]
            how = "interquartile mean of the normalised scores; stratified 95 % bootstrap interval"
            points.append({**interval_point(score, reference(runs, latest, "rewards", how)), "x": [at]})
        efficiency.append({"name": name, "points": points})
        last = [len(curve.queries) - 1 for curve in curves for _ in found.seeds]
        how = "share of runs whose normalised score is above; stratified 95 % bootstrap interval"
        source = reference(runs, last, "rewards", how)
        profiles.append(
            {
                "name": name,
                "points": [
                    {**interval_point(share, source), "x": [at]}
                    for at, share in zip(found.thresholds, found.profiles[name], strict=True)
                ],
            }
        )
    return [
        chart("efficiency", _ALL, "normalised score", efficiency, section="overall", x_label="reward queries"),
        chart(
            "profile", _ALL, "share of runs above the score", profiles, True, section="overall", x_label="final score"
        ),
    ]


def score_rows(found: Aggregate, summary: Curves) -> list[dict[str, Any]]:
    """Return each variant's scores over all tasks, each number with where it comes from."""
    rows = []
    for name in found.variants:
        cells = []
        for what, value in (
            ("interquartile mean", found.scores[name]),
            ("mean", found.means[name]),
            ("mean distance below 1", found.gaps[name]),
        ):
            source = _finals(summary, found.tasks, [name], f"{what} of the normalised scores of all runs", found.seeds)
            cells.append((f"{value.estimate:.2f}", f"{value.low:.2f} to {value.high:.2f}", source))
        rows.append({"variant": name, "cells": cells})
    return rows


def improvement_rows(pairs: Sequence[Improvement], summary: Curves) -> list[dict[str, Any]]:
    """Return a row for each pair: the probability of improvement on each task and on all together."""
    tasks = list(dict.fromkeys(task for pair in pairs for task in pair.by_task))
    rows = []
    for pair in pairs:
        names = [pair.better, pair.worse]
        cells = [
            _probability(pair.by_task[task], summary, [task], names, pair.ahead[task]) if task in pair.by_task else None
            for task in tasks
        ]
        if pair.together is not None:
            cells.append(_probability(pair.together, summary, list(pair.by_task), names))
        elif any(other.together for other in pairs):
            cells.append(None)
        rows.append({"better": pair.better, "worse": pair.worse, "cells": cells})
    return rows


def improvement_columns(pairs: Sequence[Improvement]) -> list[str]:
    """Return the columns that the rows' cells stand in."""
    tasks = list(dict.fromkeys(task for pair in pairs for task in pair.by_task))
    return [*tasks, *([_ALL] if any(pair.together for pair in pairs) else [])]


def _probability(
    value: Interval, summary: Curves, tasks: Sequence[str], names: Sequence[str], ahead: Ahead | None = None
) -> tuple[str, str, dict[str, Any]]:
    how = f"share of pairs of runs in which {names[0]} ends above {names[1]}, a tie one half, averaged over tasks"
    source = _finals(summary, tasks, names, how)
    seed_by_seed = "" if ahead is None else f"; {ahead.better} of {ahead.seeds} seeds"
    return f"{value.estimate:.2f}", f"{value.low:.2f} to {value.high:.2f}{seed_by_seed}", source


def _finals(
    summary: Curves, tasks: Sequence[str], names: Sequence[str], how: str, seeds: Sequence[int] | None = None
) -> dict[str, Any]:
    curves = [summary[task][name] for task in tasks for name in names]
    places = [curve.places(curve.seeds if seeds is None else seeds) for curve in curves]
    runs = [curve.runs[place] for curve, found in zip(curves, places, strict=True) for place in found]
    last = [len(curve.queries) - 1 for curve, found in zip(curves, places, strict=True) for _ in found]
    return reference(runs, last, "rewards", how)

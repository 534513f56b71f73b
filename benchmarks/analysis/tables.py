"""Markdown tables of a comparison: rewards and costs, which variant beats which, peak against end."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.analysis.aggregate import MARKS, Aggregate, Ahead, Improvement, shared
from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.statistics import Interval
from diffusion_gym.naming import escaped


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; cells are texts, and nothing in them is markup."""
    lines = [[escaped(cell) for cell in row] for row in (header, *rows)]
    rendered = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([rendered[0], "|" + "---|" * len(header), *rendered[1:]])


def table(summary: Curves) -> str:
    """Return rewards before and after with the interval, costs, and the other metrics."""
    names = metric_names(summary)
    header = ["task", "algorithm", "before", "after", "95 % interval", "queries", "forwards", "seconds", *names]
    return markdown(
        header,
        [
            [
                task,
                variant,
                f"{curve.reward[0].estimate:.3f}",
                f"{curve.reward[-1].estimate:.3f}",
                f"{curve.reward[-1].low:.3f} to {curve.reward[-1].high:.3f}",
                f"{curve.queries[-1]:,.0f}",
                f"{curve.forwards[-1]:,.0f}",
                f"{curve.seconds:.0f}",
                *(start_to_end(curve.metrics[name]) if name in curve.metrics else "" for name in names),
            ]
            for task, variant, curve in flat(summary)
        ],
    )


def held_out_table(summary: Curves) -> str | None:
    """Return rewards on trained and on held-out prompts side by side, or None where no prompts were held out."""
    found = [(task, variant, curve) for task, variant, curve in flat(summary) if curve.held_out]
    if not found:
        return None
    header = ["task", "algorithm", "trained prompts", "95 % interval", "held-out prompts", "95 % interval", "share"]
    return markdown(
        header,
        [
            [
                task,
                variant,
                _change(curve.reward),
                _range(curve.reward[-1]),
                _change(curve.held_out),
                _range(curve.held_out[-1]),
                _share_of_gain(curve),
            ]
            for task, variant, curve in found
        ],
    )


def improvement_table(found: Sequence[Improvement]) -> str | None:
    """Return the probability of improvement of each pair, by task and together, or None where there is no pair."""
    if not found:
        return None
    tasks = list(dict.fromkeys(task for one in found for task in one.by_task))
    several = any(one.together for one in found)
    return markdown(
        ["a run of", "ends above a run of", *tasks, *(["all tasks"] if several else [])],
        [
            [
                one.better,
                one.worse,
                *(_probability(one.by_task.get(task), one.ahead.get(task)) for task in tasks),
                *([_probability(one.together, None)] if several else []),
            ]
            for one in found
        ],
    )


def score_table(found: Aggregate) -> str:
    """Return statistics of the normalised scores over all tasks, and shares of runs above some scores."""
    rows = []
    for name in found.variants:
        shares = [found.profiles[name][found.thresholds.index(mark)] for mark in MARKS]
        statistics = [
            cell
            for value in (found.scores[name], found.means[name], found.gaps[name])
            for cell in (f"{value.estimate:.2f}", _range(value, 2))
        ]
        rows.append([name, *statistics, *(f"{share.estimate:.2f}" for share in shares)])
    header = ["algorithm", "interquartile mean", "95 % interval", "mean", "95 % interval"]
    header += ["optimality gap", "95 % interval", *(f"runs above {mark}" for mark in MARKS)]
    return markdown(header, rows)


def score_note(found: Aggregate) -> str:
    """Say what the scores are of: tasks with their scales, seeds, and what is left out."""
    scales = "; ".join(f"{task}: {scale}" for task, scale in found.scales.items())
    seeds = ", ".join(map(str, found.seeds))
    left_out = f" Not counted, for not every algorithm has finished that task or seed: {', '.join(found.left_out)}."
    return f"{scales}. Seeds {seeds}.{left_out if found.left_out else ''}"


def peak_table(summary: Curves, names: Sequence[str]) -> str | None:
    """Return each metric's start, best moment and end, or None where none of them was measured."""
    rows = [
        [
            task,
            variant,
            name,
            f"{peak.start:.2f}",
            f"{peak.best:.2f}",
            f"{peak.queries:,.0f}",
            f"{peak.final.estimate:.2f}{bracketed(peak.final)}",
            f"{peak.fallen} of {len(curve.runs)}",
        ]
        for task, variant, curve in flat(summary)
        for name, peak in curve.peaks.items()
        if name in names
    ]
    header = ["task", "algorithm", "metric", "start", "best", "at queries", "end", "runs that end below their start"]
    return markdown(header, rows) if rows else None


def equal_reward_table(summary: Curves, names: Sequence[str], marks: int = 4) -> str | None:
    """Return what each variant has spent and become when it first reaches the same rewards.

    The rewards are evenly spaced from the start to the least of the variants' best. Between two evaluations values are
    read off a straight line.

    Args:
        summary: curves whose variants begin at the same model.
        names: metrics to tell; those that were not measured are left out.
        marks: rewards to compare at.

    Returns:
        Markdown, or None where no task has two variants that rise.
    """
    named = [name for name in names if name in metric_names(summary)]
    rows = []
    for task, by_variant in summary.items():
        start = min(curve.reward[0].estimate for curve in by_variant.values())
        reached = min(max(value.estimate for value in curve.reward) for curve in by_variant.values())
        if len(by_variant) < 2 or reached <= start:
            continue
        for wanted in (start + (reached - start) * (k + 1) / marks for k in range(marks)):
            for variant, curve in by_variant.items():
                place = _first_at([value.estimate for value in curve.reward], wanted)
                cells = [
                    f"{_between([value.estimate for value in curve.metrics[name]], place):.2f}"
                    if name in curve.metrics
                    else ""
                    for name in named
                ]
                rows.append([task, f"{wanted:.3f}", variant, f"{_between(curve.queries, place):,.0f}", *cells])
    return markdown(["task", "reward", "algorithm", "queries", *named], rows) if rows else None


def interval_note(summary: Curves) -> str:
    """Say how many seeds there are, and what the intervals are over."""
    found = list(flat(summary))
    seeds = max(len(curve.runs) for _, _, curve in found)
    metrics = metric_names(summary)
    one = (
        "the intervals are over evaluation images (bootstrap of the mean). They say nothing about other training runs."
        + (" A metric is one number of all images, without an interval." if metrics else "")
    )
    if seeds == 1:
        return f"One seed: {one}"
    middle = "interquartile mean" if seeds > 3 else "mean"
    parts = [f"{seeds} seeds: {middle} of the seeds' means, 95 % bootstrap intervals over seeds"]
    parts[0] += "; a metric's stands in brackets behind its end." if metrics else "."
    fewer = [f"{name} on {task} {len(curve.runs)}" for task, name, curve in found if len(curve.runs) < seeds]
    if fewer:
        parts.append(f"Fewer seeds: {', '.join(fewer)}.")
    if any(len(curve.runs) == 1 for _, _, curve in found):
        parts.append(f"Where there is one seed, {one}")
    return " ".join(parts)


def shared_note(summary: Curves) -> str | None:
    """Say why nothing is pooled over tasks, where it is not."""
    tasks = shared(summary)
    if not tasks:
        return None
    return (
        f"Nothing is pooled over tasks, for some runs stand in several of them ({', '.join(tasks)}): counted twice, "
        "they would make intervals too narrow."
    )


def failure_note(results: Mapping[str, Any]) -> str | None:
    """Name the runs that failed, and so are in no number; None where none did."""
    failures = results.get("failures")
    if not failures:
        return None
    told = "; ".join(escaped(f"{name} ({error})") for name, error in failures.items())
    return f"Failed, and in no number: {told}."


def flat(summary: Curves) -> list[tuple[str, str, Curve]]:
    """Return task, variant and curve, a line each."""
    return [(task, name, curve) for task, by_variant in summary.items() for name, curve in by_variant.items()]


def metric_names(summary: Curves) -> list[str]:
    """Return every metric that some run has, in order."""
    return list(dict.fromkeys(name for _, _, curve in flat(summary) for name in curve.metrics))


def bracketed(interval: Interval) -> str:
    """Return an interval as it stands behind its number; nothing where there is none."""
    return f" ({_range(interval, 2)})" if interval.known else ""


def start_to_end(values: Sequence[Interval]) -> str:
    """Return a curve's start, and its end with the interval."""
    return f"{values[0].estimate:.2f} to {values[-1].estimate:.2f}{bracketed(values[-1])}"


def _change(curve: Sequence[Interval]) -> str:
    return f"{curve[0].estimate:.3f} to {curve[-1].estimate:.3f}"


def _range(interval: Interval, digits: int = 3) -> str:
    return f"{interval.low:.{digits}f} to {interval.high:.{digits}f}"


def _share_of_gain(curve: Curve) -> str:
    """Return how much of the gain on trained prompts is had on held-out ones, where there surely is a gain."""
    start, end = curve.reward[0].estimate, curve.reward[-1]
    if end.estimate <= start:
        return "no gain"
    if end.low <= start:  # a part of a gain that may be none is any number
        return "no sure gain"
    other = curve.held_out[-1].estimate - curve.held_out[0].estimate
    return f"{other / (end.estimate - start):.0%}"


def _first_at(values: Sequence[float], wanted: float) -> float:
    """Return where values first reach ``wanted``, as an index with a fraction; they must reach it."""
    after = next(index for index, value in enumerate(values) if value >= wanted)
    if after == 0:
        return 0.0
    before = values[after - 1]
    return after - 1 + (wanted - before) / (values[after] - before)


def _between(values: Sequence[float], place: float) -> float:
    return float(np.interp(place, np.arange(len(values)), values))


def _probability(interval: Interval | None, ahead: Ahead | None) -> str:
    if interval is None:
        return ""
    text = f"{interval.estimate:.2f} ({_range(interval, 2)})"
    return text if ahead is None else f"{text}, {ahead.better} of {ahead.seeds}"

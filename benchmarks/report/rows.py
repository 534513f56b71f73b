"""The page's tables of results: texts, each with the place in the JSON that it comes from."""

from collections.abc import Sequence
from typing import Any

from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.statistics import Interval
from benchmarks.analysis.tables import bracketed, flat
from benchmarks.report.charts import cost_reference, label_of, metric_reference, reference, reward_reference
from benchmarks.report.facts import duration


def result_rows(summary: Curves) -> list[dict[str, Any]]:
    """Return a row for each task and variant: reward before and after, its interval, costs and metrics."""
    return [_result_row(task, variant, curve) for task, variant, curve in flat(summary)]


def _result_row(task: str, variant: str, curve: Curve) -> dict[str, Any]:
    end, final = len(curve.reward) - 1, curve.reward[-1]
    source = reward_reference(curve, end)
    costs = {
        "reward_queries": f"{curve.queries[-1]:,.0f}",
        "forward_equivalents": f"{curve.forwards[-1]:,.0f}",
        "seconds": duration(curve.seconds),
    }
    return {
        "task": task,
        "variant": variant,
        "before": (f"{curve.reward[0].estimate:.3f}", reward_reference(curve, 0)),
        "after": (f"{final.estimate:.3f}", source),
        "interval": (f"{final.low:.3f} to {final.high:.3f}", source),
        "over": f"{len(curve.runs)} seeds" if final.over == "seeds" else final.over,
        "costs": [(text, cost_reference(curve, end, name)) for name, text in costs.items()],
        "metrics": {name: _metric(curve, name) for name in curve.metrics},
    }


def _metric(curve: Curve, name: str) -> dict[str, Any]:
    """Return a metric's start and end, and the end's interval."""
    values = curve.metrics[name]
    ends = [(f"{values[at].estimate:.2f}", metric_reference(curve, at, name)) for at in (0, len(values) - 1)]
    return {"ends": ends, "interval": bracketed(values[-1])}


def held_out_rows(summary: Curves) -> list[dict[str, Any]]:
    """Return a row for each task and variant with held-out prompts: rewards before and after, on both sides."""
    rows = []
    for task, variant, curve in flat(summary):
        if curve.held_out:
            sides = [*_ends(curve, curve.reward, "rewards"), *_ends(curve, curve.held_out, "held_out.rewards")]
            rows.append({"task": task, "variant": variant, "sides": sides})
    return rows


def _ends(curve: Curve, values: Sequence[Interval], field: str) -> list[tuple[str, dict[str, Any]]]:
    end = len(values) - 1
    first, last = values[0], values[-1]
    after = f"{last.estimate:.3f} ({last.low:.3f} to {last.high:.3f})"
    return [
        (f"{first.estimate:.3f}", reward_reference(curve, 0, field)),
        (after, reward_reference(curve, end, field)),
    ]


def peak_rows(summary: Curves) -> list[dict[str, Any]]:
    """Return a row for each metric of each variant: start, best moment, and end with its interval."""
    rows = []
    for task, variant, curve in flat(summary):
        for name, peak in curve.peaks.items():
            mean = "interquartile mean over the runs"
            best = reference(curve.runs, peak.places, f"metrics.{name}", f"{mean} of each run's own best")
            there = reference(curve.runs, peak.places, "costs.reward_queries", f"{mean}, each at its own best")
            rows.append(
                {
                    "task": task,
                    "variant": variant,
                    "metric": label_of(name),
                    "start": (f"{peak.start:.2f}", metric_reference(curve, 0, name)),
                    "best": (f"{peak.best:.2f}", best),
                    "queries": (f"{peak.queries:,.0f}", there),
                    "final": (f"{peak.final.estimate:.2f}", metric_reference(curve, len(curve.reward) - 1, name)),
                    "interval": bracketed(peak.final),
                }
            )
    return rows

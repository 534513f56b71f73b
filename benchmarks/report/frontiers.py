"""Charts of reward against what it costs in quality: KL from the start, held-out metrics, diversity, unseen prompts."""

from collections.abc import Sequence
from typing import Any

from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.statistics import Interval
from benchmarks.analysis.tables import metric_names
from benchmarks.report.charts import chart, interval_point, label_of, reward_label, reward_reference
from diffusion_gym.naming import file_name

#: A metric that begins with one of these is a KL from the start, which comes first.
_KL = ("kl", "exact-kl-from-start")
#: What a frontier against them would show, the metric's own curve shows better.
_LEFT_OUT = ("exact-target-kl", "exact-mean-error", "exact-mode-weight-error", "exact-excess-kl")


def frontier_charts(summary: Curves) -> list[dict[str, Any]]:
    """Return a chart for each task and each measure: the way of every variant from the start to its end."""
    charts = []
    for task, by_variant in summary.items():
        for metric in frontier_metrics({task: by_variant}):
            lines = [
                {"name": name, "points": _points(curve, curve.metrics[metric])}
                for name, curve in by_variant.items()
                if metric in curve.metrics
            ]
            charts.append(_frontier(task, file_name(metric), label_of(metric), lines))
        unseen = {name: curve for name, curve in by_variant.items() if curve.held_out}
        if unseen:
            lines = [{"name": name, "points": _points(curve, curve.held_out)} for name, curve in unseen.items()]
            charts.append(_frontier(task, "held-out-prompts", "reward on held-out prompts", lines))
    return charts


def frontier_metrics(summary: Curves) -> list[str]:
    """Return the metrics that rewards are set against, KL from the start first."""
    names = [name for name in metric_names(summary) if not name.startswith(_LEFT_OUT)]
    return sorted(names, key=lambda name: not name.startswith(_KL))


def _points(curve: Curve, across: Sequence[Interval]) -> list[dict[str, Any]]:
    points = []
    for index, (value, at) in enumerate(zip(curve.reward, across, strict=True)):
        point = interval_point(value, reward_reference(curve, index))
        width = {"x_low": at.low, "x_high": at.high} if at.known else {}
        points.append({**point, **width, "x": [at.estimate], "note": f"after {curve.queries[index]:,.0f} queries"})
    return points


def _frontier(task: str, name: str, label: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
    return chart(
        f"frontier-{name}-{file_name(task)}", task, reward_label(task), lines, section="frontiers", x_label=label
    )

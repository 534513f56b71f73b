"""The charts as files, PNG and SVG, for papers and for pages that run no script: one figure with a panel per task."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis.aggregate import Improvement, aggregate, improvements
from benchmarks.analysis.curves import Curves
from benchmarks.analysis.statistics import Interval
from benchmarks.charts import Style, figure, styles, write_figure
from benchmarks.report.charts import Shown, evaluation_charts, frontier_charts, overall_charts
from benchmarks.runs.pictures import dispensable
from diffusion_gym.naming import file_name, one_line

#: Each figure is written as a picture and as a drawing.
SUFFIXES = (".png", ".svg")
_NAME = 32  # characters that a name beside others has room for


def figures(summary: Curves) -> dict[str, dict[str, Any]]:
    """Return name -> specification of every figure.

    They are reward-queries, reward-forwards, held-out-queries, each metric, frontier-METRIC, and, where several
    variants have several seeds, efficiency, profile and improvement.
    """
    together, pairs = aggregate(summary), improvements(summary)
    chosen = styles(list(dict.fromkeys(name for by_variant in summary.values() for name in by_variant)))
    shown = [*evaluation_charts(summary), *frontier_charts(summary)]
    shown += overall_charts(together, summary) if together else []
    drawn = {name: figure(panels) for name, panels in _panels(shown, chosen)}
    return {**drawn, "improvement": figure([_improvement(pairs, chosen)])} if pairs else drawn


def _panels(shown: Sequence[Shown], chosen: Mapping[str, Style]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yield each figure's name and panels; the reward is drawn against two costs."""
    for name in dict.fromkeys(one.figure for one in shown):
        charts = [one.chart for one in shown if one.figure == name]
        if name in ("reward", "held-out"):
            for axis in ("queries", "forwards") if name == "reward" else ("queries",):
                yield f"{name}-{axis}", [chart.specification(chosen, axis) for chart in charts]
        else:
            yield file_name(name), [chart.specification(chosen) for chart in charts]


def task_figures(summary: Curves) -> dict[str, dict[str, Any]]:
    """Return name -> specification of figures with one task each: reward-TASK and METRIC-TASK, over reward queries."""
    chosen = styles(list(dict.fromkeys(name for by_variant in summary.values() for name in by_variant)))
    return {shown.chart.name: figure([shown.chart.specification(chosen)]) for shown in evaluation_charts(summary)}


def write_figures(summary: Curves, folder: Path) -> None:
    """Write every figure into the folder; one that fails is left out with a warning."""
    for name, specification in figures(summary).items():
        with dispensable(folder / name):
            write_figure(specification, *(folder / f"{name}{suffix}" for suffix in SUFFIXES))


def _improvement(pairs: Sequence[Improvement], chosen: Mapping[str, Style]) -> dict[str, Any]:
    """Return a panel with the probability of improvement of each pair, and its interval."""
    rows = [
        {"name": name, "pair": label, "y": value.estimate, "low": value.low, "high": value.high}
        for pair in pairs
        for name, label, value in probabilities(pair)
    ]
    names = list(dict.fromkeys(str(row["name"]) for row in rows))
    scale = {"domain": names, "range": [chosen[name].light for name in names]}
    title = "a run of the first ends above one of the second"
    x = {"type": "quantitative", "scale": {"domain": [0, 1]}, "title": title}
    each = {
        "y": {"field": "pair", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 0}},
        "color": {"field": "name", "type": "nominal", "scale": scale, "legend": None},
    }
    bar = {"type": "rule", "strokeWidth": 7, "opacity": 0.35}
    dot = {"type": "point", "filled": True, "size": 60, "opacity": 1}
    return {
        "title": "probability of improvement",
        "data": {"values": rows},
        "height": {"step": 24},
        "layer": [
            {"mark": {"type": "rule", "strokeDash": [2, 3], "color": "gray"}, "encoding": {"x": {"datum": 0.5, **x}}},
            {"mark": bar, "encoding": {**each, "x": {"field": "low", **x}, "x2": {"field": "high"}}},
            {"mark": dot, "encoding": {**each, "x": {"field": "y", **x}}},
        ],
    }


def probabilities(pair: Improvement) -> list[tuple[str, str, Interval]]:
    """Return the better variant, a label and the probability: over all tasks, or each task's if none is pooled."""
    label = f"{one_line(pair.better, _NAME)} > {one_line(pair.worse, _NAME)}"
    if pair.together is not None:
        return [(pair.better, label, pair.together)]
    several = len(pair.by_task) > 1
    return [
        (pair.better, f"{label}, {one_line(task, _NAME)}" if several else label, value)
        for task, value in pair.by_task.items()
    ]

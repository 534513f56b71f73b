"""The charts of a comparison and of a run's log; each point carries the place in the JSON that it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.analysis.aggregate import Aggregate
from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.gold import RECOGNISED
from benchmarks.analysis.origin import Origin, of_metric, of_reward
from benchmarks.analysis.statistics import Interval
from benchmarks.analysis.tables import metric_names, overall_metric_names
from benchmarks.analysis.units import Unit, unit_of
from benchmarks.analysis.verdict import PROMPT_KEPT
from benchmarks.charts import Chart, Rows, Way
from benchmarks.report.hacked import Mark
from benchmarks.runs.gold_judge import JUDGE, kind_of
from benchmarks.runs.metrics import OF_PIXELS, more_is_better
from diffusion_gym.naming import file_name

#: Costs that a curve can be drawn against: field of a point -> label.
AXES = {
    "queries": "reward queries",
    "forwards": "UNet forward-equivalents",
    "seconds": "training seconds",
    "images": "sampled images",
}
_LOGGED = ("reward_queries", "forward_equivalents", "seconds", "images")  # the same in a run's log
_METRICS = {
    "recognised": "recognised (share of images)",
    "judge": "right by the gold judge (share of images)",
    "diversity": "diversity (levels of 255)",
    "clip_score": "CLIP score (100 times the cosine)",
    "kl_to_start": "KL from the start (nats per image)",
    "exact-kl-from-start": "KL from the start (nats)",
    "exact-excess-kl": "KL to the tilted distribution of equal reward (nats)",
    "exact-target-kl": "KL to the target (nats)",
    "exact-mean-error": "distance of the mean from the target's (points)",
    "exact-mode-weight-error": "total variation of mode weights from the target's",
}
_HIDDEN = ("eval/", "cost/", "time/", "reward_by_prompt/")  # shown elsewhere, or one line per prompt
#: A metric that begins with one of these is a KL from the start, which comes first among the frontiers.
_KL = ("kl", "exact-kl-from-start")
#: Their own curves show more than frontiers against them would.
_NO_FRONTIER = ("exact-target-kl", "exact-mean-error", "exact-mode-weight-error", "exact-excess-kl")


@dataclass(frozen=True)
class Shown:
    """A chart with its place: a section of the page, and the figure that it is a panel of ("" for none)."""

    chart: Chart
    section: str
    figure: str = ""


def label_of(metric: str) -> str:
    """Return what a metric is called on an axis."""
    kind = kind_of(metric)
    if kind is not None:
        return f"right by the gold judge, {kind} (share)"
    return _METRICS.get(metric.partition("?")[0], metric)


def _unit(by_variant: Mapping[str, Curve]) -> Unit:
    return unit_of(next(iter(by_variant.values())))


def evaluation_charts(summary: Curves, alarms: Sequence[Mark] = ()) -> list[Shown]:
    """Return, for the reward, the reward on held-out prompts, and then each metric, one chart per task.

    ``alarms``: what is marked on the curves of the reward.
    """
    charts = []
    for task, by_variant in summary.items():
        points = {name: _rewards(curve) for name, curve in by_variant.items()}
        for mark in alarms:
            if mark.task == task:
                points[mark.variant][mark.at]["mark"] = mark.text
        rows = _over_costs(by_variant, points)
        chart = Chart(f"reward-{file_name(task)}", task, _unit(by_variant).label, AXES, rows)
        charts.append(Shown(chart, "curves", "reward"))
    for task, by_variant in summary.items():
        held_out = {name: _rewards(curve, held_out=True) for name, curve in by_variant.items() if curve.held_out}
        if held_out:
            label = f"{_unit(by_variant).label}, held-out prompts"
            chart = Chart(f"held-out-{file_name(task)}", task, label, AXES, _over_costs(by_variant, held_out))
            charts.append(Shown(chart, "curves", "held-out"))
    names = overall_metric_names(summary)
    charts += [shown for name in names for shown in _metric_charts(summary, name, name)]
    charts += _metric_charts(summary, JUDGE, f"held-out-{JUDGE}", held_out=True)
    kinds = [name for name in metric_names(summary) if name not in names]
    apart = [shown for name in kinds for shown in _metric_charts(summary, name, f"{JUDGE}-kinds")]
    return charts + [replace(shown, section="kinds") for shown in apart]


def _metric_charts(summary: Curves, metric: str, figure: str, held_out: bool = False) -> list[Shown]:
    """Return a metric's charts, one per task that has it, as panels of a figure."""
    charts = []
    for task, by_variant in summary.items():
        points = {
            name: _metric(curve, metric, held_out)
            for name, curve in by_variant.items()
            if metric in (curve.held_out_metrics if held_out else curve.metrics)
        }
        if points:
            name, rows = f"{file_name(metric)}-{file_name(task)}", _over_costs(by_variant, points)
            label = f"{label_of(metric).partition(' (')[0]}, held-out prompts" if held_out else label_of(metric)
            chart = Chart(f"held-out-{name}" if held_out else name, task, label, AXES, rows, zero=True)
            charts.append(Shown(chart, "curves", figure))
    return charts


def frontier_charts(summary: Curves) -> list[Shown]:
    """Return, for each task and measure, reward against the measure: the path of every variant from start to end."""
    charts = []
    names = [name for name in overall_metric_names(summary) if not name.startswith(_NO_FRONTIER)]
    for task, by_variant in summary.items():
        for metric in sorted(names, key=lambda name: not name.startswith(_KL)):
            across = {name: curve.metrics[metric] for name, curve in by_variant.items() if metric in curve.metrics}
            better = 0 if metric in OF_PIXELS else 1 if more_is_better(metric) else -1
            charts += _frontier(task, by_variant, metric, label_of(metric), across, better)
        unit = _unit(by_variant)
        across = {name: [unit.of(x) for x in curve.held_out] for name, curve in by_variant.items() if curve.held_out}
        charts += _frontier(task, by_variant, "held-out-prompts", f"{unit.label}, held-out prompts", across, unit.sign)
    return charts


def _frontier(
    task: str,
    by_variant: Mapping[str, Curve],
    name: str,
    label: str,
    across: Mapping[str, Sequence[Interval]],
    better: int,
) -> list[Shown]:
    """Return a frontier if it has points; ``better`` is 1 or -1 where more or less of the measure is, and else 0."""
    rows = []
    for variant, values in across.items():
        curve = by_variant[variant]
        for point, at, queries in zip(_rewards(curve), values, curve.queries, strict=True):
            width = {"x_low": at.low, "x_high": at.high} if at.over == "seeds" and at.known else {}
            note = f"after {queries:,.0f} queries"
            rows.append({"name": variant, **point, "x": at.estimate, **width, "note": note})
    if not rows:
        return []
    stem, unit = file_name(name), _unit(by_variant)
    # Ways lead from left to right: where a measure falls in training, the axis does too.
    falls = sum(values[-1].estimate - values[0].estimate for values in across.values()) < 0
    way = Way(falls, -better if falls else better, unit.sign, PROMPT_KEPT if name == RECOGNISED else None)
    chart = Chart(f"frontier-{stem}-{file_name(task)}", task, unit.label, {"x": label}, rows, way=way)
    return [Shown(chart, "frontiers", f"frontier-{stem}")]


def overall_charts(found: Aggregate, summary: Curves) -> list[Shown]:
    """Return the normalised score against reward queries, and the performance profile."""
    efficiency, profile = [], []
    for name in found.variants:
        curves = [summary[task][name] for task in found.tasks]
        runs = tuple(curve.runs[place] for curve in curves for place in curve.places(found.seeds))
        for at, score in zip(*found.efficiency[name], strict=True):
            latest = tuple(sum(q <= at for q in curve.queries) - 1 for curve in curves for _ in found.seeds)
            how = "interquartile mean of the normalised scores; stratified 95 % bootstrap interval"
            efficiency.append({"name": name, **_point(score, Origin(runs, latest, "rewards", how)), "x": at})
        last = tuple(len(curve.queries) - 1 for curve in curves for _ in found.seeds)
        how = "share of runs whose normalised score is above; stratified 95 % bootstrap interval"
        for at, share in zip(found.thresholds, found.profiles[name], strict=True):
            profile.append({"name": name, **_point(share, Origin(runs, last, "rewards", how)), "x": at})
    tasks = ", ".join(found.tasks)
    scores, shares = {"x": "reward queries"}, {"x": "final score"}
    return [
        Shown(Chart("efficiency", tasks, "normalised score", scores, efficiency), "overall", "efficiency"),
        Shown(Chart("profile", tasks, "share of runs above the score", shares, profile, True), "overall", "profile"),
    ]


def log_charts(algorithm: str, lines: Sequence[Mapping[str, Any]]) -> list[Shown]:
    """Return one chart for each number that a run logs in training; the rollout's reward first."""
    names = dict.fromkeys(name for line in lines for name in line if "/" in name and not name.startswith(_HIDDEN))
    charts = []
    for name in sorted(names, key=lambda name: (not name.startswith("rollout/ep_rew"), name)):
        rows = [
            {
                "name": algorithm,
                **{field: line[f"cost/{cost}"] for field, cost in zip(AXES, _LOGGED, strict=True)},
                "y": line[name],
                "origin": Origin((), (), name, "as logged", log=index).to_json(),
            }
            for index, line in enumerate(lines)
            if name in line and "eval/reward_mean" not in line
        ]
        if len({row["y"] for row in rows}) > 1:  # constants, such as the learning rate, make no curve
            charts.append(Shown(Chart(file_name(name.replace("/", "-")), "training", name, AXES, rows), "log"))
    return charts


def _over_costs(by_variant: Mapping[str, Curve], lines: Mapping[str, Rows]) -> Rows:
    """Return the points of all lines, each with its line's name and what was spent until then."""
    rows = []
    for name, points in lines.items():
        curve = by_variant[name]
        spent = zip(curve.queries, curve.forwards, curve.times, curve.images, strict=True)
        for point, costs in zip(points, spent, strict=True):
            rows.append({"name": name, **point, **dict(zip(AXES, costs, strict=True))})
    return rows


def _rewards(curve: Curve, held_out: bool = False) -> Rows:
    field, values = ("held_out.rewards", curve.held_out) if held_out else ("rewards", curve.reward)
    unit = unit_of(curve)
    return [_point(unit.of(value), of_reward(curve, index, field)) for index, value in enumerate(values)]


def _metric(curve: Curve, metric: str, held_out: bool = False) -> Rows:
    values = (curve.held_out_metrics if held_out else curve.metrics)[metric]
    return [_point(value, of_metric(curve, index, metric, held_out)) for index, value in enumerate(values)]


def _point(value: Interval, origin: Origin) -> dict[str, Any]:
    """Return a point with its interval; that of one seed says nothing about other runs, and is left out."""
    interval = {"low": value.low, "high": value.high} if value.over == "seeds" and value.known else {}
    return {"y": value.estimate, **interval, "origin": origin.to_json()}

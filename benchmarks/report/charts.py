"""What the page's charts show: plain data, each point with the place in the JSON that it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.results import Curve

#: Costs that a chart can be drawn against: name -> label.
AXES = {"queries": "reward queries", "forwards": "UNet forward-equivalents", "seconds": "training seconds"}
_UNITS = {"compressibility": "reward (-kB)", "incompressibility": "reward (kB)"}
_METRICS = {"recognised": "recognised (share of images)", "diversity": "diversity (levels of 255)"}
_HIDDEN = ("eval/", "cost/", "time/", "reward_by_prompt/")  # shown elsewhere, or one line a prompt


@dataclass(frozen=True)
class Style:
    """A line's colours, for light and dark, and its dashes."""

    light: str
    dark: str
    dash: str = ""


#: Told apart by people who see no red or no green, and by dashes; at least 3:1 against the page, light and dark.
_STYLES = {
    "ddpo-is": Style("#0067a5", "#5aaeea"),
    "ddpo-sf": Style("#3489c0", "#9bd3f7", "6 4"),
    "rwr": Style("#c2410c", "#ff8a4c"),
    "sparse-rwr": Style("#a86f00", "#f5c04a", "6 4"),
}
_MORE = (
    Style("#7a3e9d", "#c99be8"),
    Style("#1b7f4b", "#62c992", "2 3"),
    Style("#b03060", "#f28cb1", "8 3 2 3"),
    Style("#5b6472", "#b4bcc8"),
)


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return each algorithm's style; those without one of their own take the next of a fixed list."""
    others = [name for name in names if name not in _STYLES]
    return {name: _STYLES.get(name) or _MORE[others.index(name) % len(_MORE)] for name in names}


def reference(runs: Sequence[int], evaluation: int, field: str, how: str) -> dict[str, Any]:
    """Say where a number comes from: runs, evaluation and field in ``results.json``, and what was done with them."""
    listed = ",".join(str(run) for run in runs)
    return {
        "runs": list(runs),
        "evaluation": evaluation,
        "field": field,
        "how": how,
        "path": f"results.json: runs[{listed}].evaluations[{evaluation}].{field}",
    }


def reward_reference(curve: Curve, evaluation: int) -> dict[str, Any]:
    """Say where an evaluation's reward and its interval come from."""
    if curve.reward[evaluation].over == "images":
        how = "mean over the images; 95 % bootstrap interval over images"
    else:
        how = "interquartile mean of the runs' means; 95 % bootstrap interval over runs"
    return reference(curve.runs, evaluation, "rewards", how)


def evaluation_charts(summary: Mapping[str, Mapping[str, Curve]]) -> list[dict[str, Any]]:
    """Return, for the reward and then each metric, one chart a task."""
    metrics = dict.fromkeys(
        name for by_algorithm in summary.values() for curve in by_algorithm.values() for name in curve.metrics
    )
    charts = [_reward_chart(task, by_algorithm) for task, by_algorithm in summary.items()]
    for metric in metrics:
        for task, by_algorithm in summary.items():
            lines = [
                _series(name, curve, [_metric_point(curve, metric, i) for i in range(len(curve.queries))])
                for name, curve in by_algorithm.items()
                if metric in curve.metrics
            ]
            charts.append(_chart(f"{metric}-{task}", task, _METRICS.get(metric, metric), lines, zero=True))
    return charts


def _reward_chart(task: str, by_algorithm: Mapping[str, Curve]) -> dict[str, Any]:
    lines = []
    for name, curve in by_algorithm.items():
        points = [
            {"y": value.estimate, "low": value.low, "high": value.high, "source": reward_reference(curve, index)}
            for index, value in enumerate(curve.reward)
        ]
        lines.append(_series(name, curve, points))
    return _chart(f"reward-{task}", task, "evaluation " + _UNITS.get(task, "reward"), lines)


def _metric_point(curve: Curve, metric: str, index: int) -> dict[str, Any]:
    how = "mean over the runs" if len(curve.runs) > 1 else "as it stands"
    return {"y": curve.metrics[metric][index], "source": reference(curve.runs, index, f"metrics.{metric}", how)}


def _series(name: str, curve: Curve, points: list[dict[str, Any]]) -> dict[str, Any]:
    for index, point in enumerate(points):
        point["x"] = [curve.queries[index], curve.forwards[index], curve.times[index]]
    return {"name": name, "points": points}


def _chart(name: str, task: str, label: str, series: list[dict[str, Any]], zero: bool = False) -> dict[str, Any]:
    return {"name": name, "task": task, "label": label, "series": series, "zero": zero}


def log_charts(algorithm: str, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one chart for each number that a run logs in training; the rollout's reward first."""
    names = dict.fromkeys(name for line in lines for name in line if "/" in name and not name.startswith(_HIDDEN))
    charts = []
    for name in sorted(names, key=lambda name: (not name.startswith("rollout/ep_rew"), name)):
        points = [
            {
                "x": [line[f"cost/{cost}"] for cost in ("reward_queries", "forward_equivalents", "seconds")],
                "y": line[name],
                "source": {"log": index, "field": name, "how": "as it stands", "path": f"metrics.jsonl: {name!r}"},
            }
            for index, line in enumerate(lines)
            if name in line and "eval/reward_mean" not in line
        ]
        if len({point["y"] for point in points}) > 1:  # constants, such as the learning rate, make no curve
            charts.append(_chart(name.replace("/", "-"), "training", name, [{"name": algorithm, "points": points}]))
    return charts

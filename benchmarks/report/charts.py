"""What the page's charts show: plain data, each point with the place in the JSON that it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.statistics import Interval
from benchmarks.analysis.tables import metric_names
from diffusion_gym.naming import file_name

#: Costs that a chart can be drawn against: name -> label.
AXES = {
    "queries": "reward queries",
    "forwards": "UNet forward-equivalents",
    "seconds": "training seconds",
    "images": "sampled images",
}
_UNITS = {"compressibility": "reward (-kB)", "incompressibility": "reward (kB)"}
_METRICS = {
    "recognised": "recognised (share of images)",
    "diversity": "diversity (levels of 255)",
    "clip_score": "CLIP score (100 times the cosine)",
    "kl_to_start": "KL from the start (nats an image)",
    "exact-kl-from-start": "KL from the start (nats)",
    "exact-excess-kl": "KL to the tilted distribution of equal reward (nats)",
    "exact-target-kl": "KL to the target (nats)",
    "exact-mean-error": "distance of the mean from the target's (points)",
    "exact-mode-weight-error": "total variation of mode weights from the target's",
}
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
    Style("#00798c", "#5fd0e0", "6 4"),
    Style("#8a5a00", "#d9a441", "2 3"),
    Style("#4b51b8", "#a3a8f5", "8 3 2 3"),
)


def styles(names: Sequence[str]) -> dict[str, Style]:
    """Return each algorithm's style; those without one of their own take the next of a fixed list."""
    others = [name for name in names if name not in _STYLES]
    return {name: _STYLES.get(name) or _MORE[others.index(name) % len(_MORE)] for name in names}


def label_of(metric: str) -> str:
    """Return what a metric is called on an axis."""
    return _METRICS.get(metric.partition("?")[0], metric)


def reward_label(task: str) -> str:
    """Return what a task's evaluation reward is called on an axis."""
    return "evaluation " + _UNITS.get(task, "reward")


def reference(runs: Sequence[int], evaluations: int | Sequence[int], field: str, how: str) -> dict[str, Any]:
    """Say where a number comes from: runs, evaluations and field in ``results.json``, and what was done with them.

    Args:
        runs: indices into the results' runs.
        evaluations: the index of one evaluation of them all, or each run's own.
        field: path inside an evaluation, joined by dots.
        how: what was made of the values.
    """
    each = [evaluations] * len(runs) if isinstance(evaluations, int) else list(evaluations)
    at = str(each[0]) if len(set(each)) == 1 else ",".join(map(str, each))
    return {
        "runs": list(runs),
        "evaluations": each,
        "field": field,
        "how": how,
        "path": f"results.json: runs[{','.join(map(str, runs))}].evaluations[{at}].{field}",
    }


def reward_reference(curve: Curve, evaluation: int, field: str = "rewards") -> dict[str, Any]:
    """Say where an evaluation's reward and its interval come from."""
    if curve.reward[evaluation].over == "images":
        how = "mean over the images; 95 % bootstrap interval over images"
    else:
        how = "interquartile mean of the runs' means; 95 % bootstrap interval over runs"
    return reference(curve.runs, evaluation, field, how)


def metric_reference(curve: Curve, evaluation: int, name: str) -> dict[str, Any]:
    """Say where a metric and its interval come from."""
    how = "interquartile mean over the runs; 95 % bootstrap interval over runs"
    return reference(curve.runs, evaluation, f"metrics.{name}", how if len(curve.runs) > 1 else "as it stands")


def cost_reference(curve: Curve, evaluation: int, name: str) -> dict[str, Any]:
    """Say where a cost comes from."""
    how = "mean over the runs" if len(curve.runs) > 1 else "as it stands"
    return reference(curve.runs, evaluation, f"costs.{name}", how)


def evaluation_charts(summary: Curves) -> list[dict[str, Any]]:
    """Return, for the reward, the reward on held-out prompts, and then each metric, one chart a task."""
    charts = [_reward_chart(task, by_variant) for task, by_variant in summary.items()]
    for task, by_variant in summary.items():
        held_out = {name: curve for name, curve in by_variant.items() if curve.held_out}
        if held_out:
            charts.append(_reward_chart(task, held_out, held_out=True))
    for metric in metric_names(summary):
        for task, by_variant in summary.items():
            lines = [
                _series(name, curve, _metric_points(curve, metric))
                for name, curve in by_variant.items()
                if metric in curve.metrics
            ]
            if lines:
                charts.append(chart(f"{file_name(metric)}-{file_name(task)}", task, label_of(metric), lines, zero=True))
    return charts


def _reward_chart(task: str, by_variant: Mapping[str, Curve], held_out: bool = False) -> dict[str, Any]:
    lines = []
    for name, curve in by_variant.items():
        field, values = ("held_out.rewards", curve.held_out) if held_out else ("rewards", curve.reward)
        points = [interval_point(value, reward_reference(curve, index, field)) for index, value in enumerate(values)]
        lines.append(_series(name, curve, points))
    if held_out:
        return chart(f"held-out-{file_name(task)}", task, f"{reward_label(task)}, held-out prompts", lines)
    return chart(f"reward-{file_name(task)}", task, reward_label(task), lines)


def interval_point(value: Interval, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point's height, its interval where it has one, and where they come from."""
    interval = {"low": value.low, "high": value.high} if value.known else {}
    return {"y": value.estimate, **interval, "source": source}


def _metric_points(curve: Curve, metric: str) -> list[dict[str, Any]]:
    values = enumerate(curve.metrics[metric])
    return [interval_point(value, metric_reference(curve, index, metric)) for index, value in values]


def _series(name: str, curve: Curve, points: list[dict[str, Any]]) -> dict[str, Any]:
    for index, point in enumerate(points):
        point["x"] = [curve.queries[index], curve.forwards[index], curve.times[index], curve.images[index]]
    return {"name": name, "points": points}


def chart(
    name: str,
    task: str,
    label: str,
    series: list[dict[str, Any]],
    zero: bool = False,
    section: str = "curves",
    x_label: str | None = None,
) -> dict[str, Any]:
    """Return a chart.

    Args:
        name: of its files.
        task: what was tuned: the title's first half.
        label: what is drawn: its second half.
        series: lines, each with a name and points; a point's x has one number for each of AXES, or one alone.
        zero: whether the vertical axis begins at 0.
        section: the page's section that it belongs to.
        x_label: of a horizontal axis of its own; None is the axis that the reader has chosen.
    """
    return {
        "name": name,
        "task": task,
        "label": label,
        "series": series,
        "zero": zero,
        "section": section,
        "x_label": x_label,
    }


def log_charts(algorithm: str, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one chart for each number that a run logs in training; the rollout's reward first."""
    names = dict.fromkeys(name for line in lines for name in line if "/" in name and not name.startswith(_HIDDEN))
    charts = []
    for name in sorted(names, key=lambda name: (not name.startswith("rollout/ep_rew"), name)):
        points = [
            {
                "x": [line[f"cost/{cost}"] for cost in ("reward_queries", "forward_equivalents", "seconds", "images")],
                "y": line[name],
                "source": {"log": index, "field": name, "how": "as it stands", "path": f"metrics.jsonl: {name!r}"},
            }
            for index, line in enumerate(lines)
            if name in line and "eval/reward_mean" not in line
        ]
        if len({point["y"] for point in points}) > 1:  # constants, such as the learning rate, make no curve
            charts.append(
                chart(file_name(name.replace("/", "-")), "training", name, [{"name": algorithm, "points": points}])
            )
    return charts

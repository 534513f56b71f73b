"""The same charts as files, PNG and SVG: for papers and pages that run no script."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.analysis.aggregate import Improvement, aggregate, improvements
from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.statistics import Interval
from benchmarks.analysis.tables import metric_names
from benchmarks.report.charts import Style, label_of
from benchmarks.report.frontiers import frontier_metrics
from benchmarks.runs.pictures import dispensable, plain_text
from diffusion_gym.naming import file_name, one_line

_WIDTH, _HEIGHT = 5.2, 3.6  # inches, of a panel
_LABEL, _NAME = 56, 32  # characters that a panel has room for, and a name beside others
Styles = Mapping[str, Style]
#: Draws one variant's curve into a panel.
_Draw = Callable[[Any, Curve, Style, str], None]


def write_figures(summary: Curves, styles: Styles, folder: Path) -> None:
    """Write every chart as PNG and SVG into the folder, one panel a task.

    They are reward-queries, reward-forwards, held-out-queries, each metric, frontier-METRIC, and, where several
    variants have several seeds, efficiency, profile and improvement.
    """
    reward = "evaluation reward"
    _panels(summary, styles, folder / "reward-queries", "reward queries", reward, _banded(lambda c: c.queries))
    _panels(
        summary, styles, folder / "reward-forwards", "UNet forward-equivalents", reward, _banded(lambda c: c.forwards)
    )
    unseen = {
        task: found
        for task, by_variant in summary.items()
        if (found := {name: curve for name, curve in by_variant.items() if curve.held_out})
    }
    if unseen:
        draw = _banded(lambda c: c.queries, lambda c: c.held_out)
        _panels(unseen, styles, folder / "held-out-queries", "reward queries", f"{reward}, held-out prompts", draw)
    for metric in metric_names(summary):
        having, path = _having(summary, metric), folder / file_name(metric)
        _panels(having, styles, path, "reward queries", label_of(metric), _from_zero(metric))
    for metric in frontier_metrics(summary):
        path = folder / f"frontier-{file_name(metric)}"
        _panels(_having(summary, metric), styles, path, label_of(metric), reward, _way(metric))
    _overall(summary, styles, folder)


def _banded(
    x: Callable[[Curve], list[float]], y: Callable[[Curve], list[Interval]] = lambda curve: curve.reward
) -> _Draw:
    def draw(axis: Any, curve: Curve, style: Style, label: str) -> None:
        _band(axis, x(curve), y(curve), style, label)

    return draw


def _way(metric: str) -> _Draw:
    """A frontier: its end has a cross of its two intervals; a band around a line that turns back hides more."""

    def draw(axis: Any, curve: Curve, style: Style, label: str) -> None:
        x, y = curve.metrics[metric], curve.reward
        _line(axis, [value.estimate for value in x], [value.estimate for value in y], style, label)
        right, top = x[-1], y[-1]
        axis.plot([right.estimate], [top.estimate], color=style.light, marker="o")
        axis.plot([right.low, right.high], [top.estimate] * 2, color=style.light, linewidth=1)
        axis.plot([right.estimate] * 2, [top.low, top.high], color=style.light, linewidth=1)

    return draw


def _from_zero(metric: str) -> _Draw:
    def draw(axis: Any, curve: Curve, style: Style, label: str) -> None:
        _band(axis, curve.queries, curve.metrics[metric], style, label)
        axis.set_ylim(bottom=0)

    return draw


def _having(summary: Curves, metric: str) -> Curves:
    found = {
        task: {name: curve for name, curve in by_variant.items() if metric in curve.metrics}
        for task, by_variant in summary.items()
    }
    return {task: by_variant for task, by_variant in found.items() if by_variant}


def _band(axis: Any, x: Sequence[float], values: Sequence[Interval], style: Style, label: str) -> None:
    _line(axis, x, [value.estimate for value in values], style, label)
    if not any(value.known for value in values):
        return
    lows, highs = [value.low for value in values], [value.high for value in values]
    axis.fill_between(x, lows, highs, alpha=0.2, color=style.light, linewidth=0)


def _line(axis: Any, x: Sequence[float], y: Sequence[float], style: Style, label: str) -> None:
    line = "--" if style.dash else "-"
    axis.plot(x, y, label=label, color=style.light, linestyle=line, marker="." if len(x) == 1 else None)


def _panels(summary: Curves, styles: Styles, path: Path, x_label: str, y_label: str, draw: _Draw) -> None:
    with dispensable(path), _figure(path, len(summary)) as axes:
        for axis, (task, by_variant) in zip(axes, summary.items(), strict=True):
            for variant, curve in by_variant.items():
                draw(axis, curve, styles[variant], one_line(variant, _NAME))
            _finish(axis, task, x_label, y_label)
            axis.legend(frameon=False, fontsize=8)


def _overall(summary: Curves, styles: Styles, folder: Path) -> None:
    together, pairs = aggregate(summary), improvements(summary)
    if together is not None:
        path = folder / "efficiency"
        with dispensable(path), _figure(path, 1) as (axis,):
            for name, (queries, scores) in together.efficiency.items():
                _band(axis, queries, scores, styles[name], one_line(name, _NAME))
            _finish(axis, ", ".join(together.tasks), "reward queries", "normalised score")
            axis.legend(frameon=False)
        path = folder / "profile"
        with dispensable(path), _figure(path, 1) as (axis,):
            for name, shares in together.profiles.items():
                _band(axis, together.thresholds, shares, styles[name], one_line(name, _NAME))
            _finish(axis, ", ".join(together.tasks), "final score", "share of runs above")
            axis.legend(frameon=False)
    if pairs:
        rows = [row for pair in reversed(pairs) for row in probabilities(pair)]
        longest = max(len(label) for _, label, _ in rows)
        size = max(_WIDTH, 3 + 0.09 * longest), max(_HEIGHT, 0.25 * len(rows))
        path = folder / "improvement"
        with dispensable(path), _figure(path, 1, size) as (axis,):
            for row, (name, _, value) in enumerate(rows):
                colour = styles[name].light
                axis.plot([value.low, value.high], [row, row], color=colour, linewidth=6, alpha=0.35)
                axis.plot([value.estimate], [row], marker="o", color=colour)
            axis.set_yticks(range(len(rows)), [label for _, label, _ in rows])
            axis.axvline(0.5, color="0.5", linewidth=1, linestyle=":")
            axis.set_xlim(-0.03, 1.03)
            _finish(axis, "probability of improvement", "a run of the first ends above one of the second", "")


def probabilities(pair: Improvement) -> list[tuple[str, str, Interval]]:
    """Return the better variant, a label and the probability: over all tasks, or each task's where none is pooled."""
    label = f"{one_line(pair.better, _NAME)} > {one_line(pair.worse, _NAME)}"
    if pair.together is not None:
        return [(pair.better, label, pair.together)]
    several = len(pair.by_task) > 1
    return [
        (pair.better, f"{label}, {one_line(task, _NAME)}" if several else label, value)
        for task, value in reversed(pair.by_task.items())
    ]


def _finish(axis: Any, title: str, x_label: str, y_label: str) -> None:
    axis.set_title(one_line(title, _LABEL))
    axis.set_xlabel(one_line(x_label, _LABEL))
    axis.set_ylabel(one_line(y_label, _LABEL))
    axis.grid(alpha=0.25)


@contextlib.contextmanager
def _figure(path: Path, panels: int, size: tuple[float, float] = (_WIDTH, _HEIGHT)) -> Iterator[Any]:
    """Give a row of panels, written as PNG and SVG when the ``with`` block is left."""
    with plain_text(**{"svg.hashsalt": "diffusion-gym", "font.size": 10}):
        from matplotlib.figure import Figure

        figure = Figure(figsize=(size[0] * panels, size[1]), layout="constrained")
        yield figure.subplots(1, panels, squeeze=False)[0]
        figure.savefig(path.with_name(f"{path.name}.png"), dpi=150)
        figure.savefig(path.with_name(f"{path.name}.svg"), metadata={"Date": None})

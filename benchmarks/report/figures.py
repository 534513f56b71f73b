"""The same curves as files, PNG and SVG: for papers and pages that run no script."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.charts import Style
from benchmarks.results import Curve

Summary = Mapping[str, Mapping[str, Curve]]


def write_figures(summary: Summary, styles: Mapping[str, Style], folder: Path) -> None:
    """Write reward-queries, reward-forwards and each metric as PNG and SVG, one panel a task."""

    def reward(x: Callable[[Curve], list[float]]) -> Callable[..., None]:
        def draw(axis: Any, curve: Curve, style: Style, label: str) -> None:
            _line(axis, x(curve), [value.estimate for value in curve.reward], style, label)
            low, high = [value.low for value in curve.reward], [value.high for value in curve.reward]
            axis.fill_between(x(curve), low, high, alpha=0.2, color=style.light, linewidth=0)

        return draw

    _panels(
        summary, styles, folder / "reward-queries", "reward queries", "evaluation reward", reward(lambda c: c.queries)
    )
    _panels(
        summary,
        styles,
        folder / "reward-forwards",
        "UNet forward-equivalents",
        "evaluation reward",
        reward(lambda c: c.forwards),
    )
    for metric in next(iter(next(iter(summary.values())).values())).metrics:

        def draw(axis: Any, curve: Curve, style: Style, label: str, metric: str = metric) -> None:
            _line(axis, curve.queries, curve.metrics[metric], style, label)
            axis.set_ylim(bottom=0)

        _panels(summary, styles, folder / metric, "reward queries", metric, draw)


def _line(axis: Any, x: list[float], y: list[float], style: Style, label: str) -> None:
    line = "--" if style.dash else "-"
    axis.plot(x, y, label=label, color=style.light, linestyle=line, marker="." if len(x) == 1 else None)


def _panels(
    summary: Summary, styles: Mapping[str, Style], path: Path, x_label: str, y_label: str, draw: Callable[..., None]
) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "diffusion-gym", "font.size": 10}):
        figure = Figure(figsize=(5.2 * len(summary), 3.6), layout="constrained")
        axes = figure.subplots(1, len(summary), squeeze=False)[0]
        for axis, (task, by_algorithm) in zip(axes, summary.items(), strict=True):
            for algorithm, curve in by_algorithm.items():
                draw(axis, curve, styles[algorithm], algorithm)
            axis.set_title(task)
            axis.set_xlabel(x_label)
            axis.set_ylabel(y_label)
            axis.grid(alpha=0.25)
        axes[0].legend(frameon=False)
        figure.savefig(path.with_suffix(".png"), dpi=150)
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})

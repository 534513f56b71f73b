"""The report of a comparison: one self-contained HTML page with curves, table and pictures, and PNG files beside it."""

import base64
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from benchmarks.pictures import grid, read_grid
from benchmarks.results import Curve, curves, interval_note, read_results
from benchmarks.runs import GRID_COLUMNS

_COLOURS = {"ddpo-is": "#0072b2", "ddpo-sf": "#56b4e9", "rwr": "#d55e00", "sparse-rwr": "#e69f00"}
_SHOWN = 20  # pictures of each evaluation: two rows, one column a prompt


def write_report(folder: Path) -> Path:
    """Render ``folder / results.json`` and the runs' pictures beside it; returns the page's path.

    Raises:
        ValueError: there are no results in the folder.
    """
    results = read_results(folder / "results.json")
    if not results["runs"]:
        raise ValueError(f"{str(folder / 'results.json')!r} holds no finished run.")
    summary = curves(results)
    figures = [
        _figure(summary, folder, "reward-queries", "reward queries", lambda curve: curve.queries),
        _figure(summary, folder, "reward-forwards", "UNet forward-equivalents", lambda curve: curve.forwards),
        *(_metric_figure(summary, folder, name) for name in next(iter(next(iter(summary.values())).values())).metrics),
    ]
    page = (
        _environment()
        .get_template("report.html")
        .render(
            summary=summary,
            note=interval_note(summary),
            figures=figures,
            pictures={task: _pictures(results, folder, task) for task in summary},
            provenance=results["provenance"],
            colours=_COLOURS,
        )
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _environment() -> jinja2.Environment:
    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def _figure(
    summary: Mapping[str, Mapping[str, Curve]], folder: Path, name: str, label: str, x: Callable[[Curve], list[float]]
) -> dict[str, str]:
    """Draw the evaluation reward with its bands, one panel a task."""

    def draw(axis: Any, task: str, algorithm: str, curve: Curve, colour: str | None) -> None:
        axis.plot(x(curve), [value.estimate for value in curve.reward], label=algorithm, color=colour)
        low, high = [value.low for value in curve.reward], [value.high for value in curve.reward]
        axis.fill_between(x(curve), low, high, alpha=0.2, color=colour, linewidth=0)

    return _panels(summary, folder, name, label, "evaluation reward", draw)


def _metric_figure(summary: Mapping[str, Mapping[str, Curve]], folder: Path, metric: str) -> dict[str, str]:
    def draw(axis: Any, task: str, algorithm: str, curve: Curve, colour: str | None) -> None:
        axis.plot(curve.queries, curve.metrics[metric], label=algorithm, color=colour)
        axis.set_ylim(bottom=0)

    return _panels(summary, folder, metric, "reward queries", metric, draw)


def _panels(
    summary: Mapping[str, Mapping[str, Curve]],
    folder: Path,
    name: str,
    x_label: str,
    y_label: str,
    draw: Callable[..., None],
) -> dict[str, str]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "diffusion-gym", "font.size": 10}):
        figure = Figure(figsize=(5.2 * len(summary), 3.6), layout="constrained")
        axes = figure.subplots(1, len(summary), squeeze=False)[0]
        for axis, (task, by_algorithm) in zip(axes, summary.items(), strict=True):
            for algorithm, curve in by_algorithm.items():
                draw(axis, task, algorithm, curve, _COLOURS.get(algorithm))
            axis.set_title(task)
            axis.set_xlabel(x_label)
            axis.set_ylabel(y_label)
            axis.grid(alpha=0.25)
        axes[0].legend(frameon=False)
        figure.savefig(folder / f"{name}.png", dpi=150)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return {"name": name, "title": f"{y_label} against {x_label}", "svg": svg[svg.index("<svg") :]}


def _pictures(results: Mapping[str, Any], folder: Path, task: str) -> list[dict[str, Any]]:
    """Grids before, halfway and after, from the same noise, of each algorithm's first seed; also written as a PNG."""
    rows: list[dict[str, Any]] = []
    strips: list[torch.Tensor] = []
    for run in results["runs"]:
        spec = run["spec"]
        algorithm, seed = spec["algorithm"], spec["config"]["seed"]
        if spec["task"]["reward"] != task or any(row["algorithm"] == algorithm for row in rows):
            continue
        evaluations = run["evaluations"]
        half = evaluations[-1]["costs"]["reward_queries"] / 2
        middle = min(evaluations, key=lambda line: abs(line["costs"]["reward_queries"] - half))
        size = run["image_shape"][1:]
        cells = []
        for title, line in (("before", evaluations[0]), ("during", middle), ("after", evaluations[-1])):
            path = folder / task / algorithm / f"seed-{seed}" / "images" / f"{line['iteration']:06d}.png"
            if not path.is_file():
                continue
            images = read_grid(path, min(_SHOWN, len(line["rewards"])), GRID_COLUMNS, size)
            strips.append(images)
            queries = f"{line['costs']['reward_queries']:,} queries"
            cells.append({"title": f"{title} ({queries})", "data": _data_url(grid(images, GRID_COLUMNS, 1))})
        rows.append({"algorithm": algorithm, "cells": cells})
    if strips:
        grid(torch.cat(strips), GRID_COLUMNS * 2).save(folder / f"pictures-{task}.png")
    return rows


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

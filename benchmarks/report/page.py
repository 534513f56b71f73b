"""The page: what to show, put into the template with its style, its script and the raw results."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from algorithms.checkpoints.published import published
from benchmarks.analysis.aggregate import aggregate, improvements
from benchmarks.analysis.curves import Curves, curves
from benchmarks.analysis.results import task_of, variant_of
from benchmarks.analysis.tables import interval_note, metric_names, score_note, shared_note
from benchmarks.report.charts import AXES, evaluation_charts, label_of, log_charts, styles
from benchmarks.report.facts import duration, facts, run_facts, settings, title
from benchmarks.report.figures import write_figures
from benchmarks.report.frontiers import frontier_charts
from benchmarks.report.gallery import galleries, write_pictures
from benchmarks.report.overall import improvement_columns, improvement_rows, overall_charts, score_rows
from benchmarks.report.rows import held_out_rows, peak_rows, result_rows
from benchmarks.report.source import Source

PAGE = "report.html"
_HERE = Path(__file__).parent
#: Drawn with Observable Plot, which draws with D3; both stand in the page, so that it opens offline.
_LIBRARIES = ("d3.min.js", "plot.umd.min.js")


def write_report(source: Source) -> Path:
    """Render the page and the figures' files into the source's folder; returns the page's path.

    Raises:
        ValueError: there is nothing to show, runs that cannot be put together, or files of somebody else's in the way.
    """
    runs = source.results["runs"]
    if not runs:
        raise ValueError(f"{str(source.folder)!r} holds no run that has begun.")
    summary = curves(source.results)
    variants = list(dict.fromkeys(variant_of(run) for run in runs))
    chosen = styles(variants)
    pictures = galleries(source.results, source.folder)
    shown = {**_results(summary), "galleries": pictures}
    if source.log:
        shown["charts"] += log_charts(variants[0], source.log)
    data = {
        "axes": list(AXES.values()),
        "styles": {name: dataclasses.asdict(style) for name, style in chosen.items()},
        "charts": shown["charts"],
        "galleries": pictures,
        "name": source.folder.resolve().name,
    }
    page = _environment().get_template("page.html").render(
        **shown,
        title=title(source),
        tasks=list(dict.fromkeys(task_of(run) for run in runs)),
        axes=AXES,
        styles=chosen,
        runs=[run_facts(run) for run in runs],
        facts=facts(source),
        provenance=source.results["provenance"],
        settings=settings(runs),
        style=_read("templates/style.css"),
        libraries=[_read(f"vendor/{name}") for name in _LIBRARIES],
        licence=_read("vendor/LICENSE"),
        script=_read("templates/report.js"),
        data=_embedded(data),
        results=_embedded(source.results),
        log=_embedded(source.log),
        is_run=bool(source.log),
    )  # fmt: skip
    with published(source.folder) as fresh:
        if summary:
            write_figures(summary, chosen, fresh)
        write_pictures(source.results, source.folder, fresh)
        (fresh / PAGE).write_text(page, encoding="utf-8")
    return source.folder / PAGE


def _results(summary: Curves) -> dict[str, Any]:
    """Return the tables' rows and the charts of the evaluations."""
    together, pairs = aggregate(summary), improvements(summary)
    frontiers = frontier_charts(summary)
    charts = [*evaluation_charts(summary), *frontiers]
    return {
        "priced": bool(frontiers),
        "rows": result_rows(summary),
        "held_out": held_out_rows(summary),
        "peaks": peak_rows(summary),
        "metrics": {name: label_of(name) for name in metric_names(summary)},
        "note": interval_note(summary) if summary else None,
        "pairs": improvement_rows(pairs, summary),
        "pair_columns": improvement_columns(pairs),
        "scores": score_rows(together, summary) if together else [],
        "score_note": score_note(together) if together else None,
        "shared_note": shared_note(summary),
        "charts": charts + (overall_charts(together, summary) if together else []),
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = duration
    environment.filters["json"] = json.dumps
    return environment


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON for a script element: no NaN, which JSON does not have, and nothing that could close the element."""
    return json.dumps(_finite(data), separators=(",", ":")).replace("<", "\\u003c")


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data

"""The page: what to show, put into the template with its style, its script and the raw results."""

import base64
import dataclasses
import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from algorithms.checkpoints.published import published
from benchmarks.analysis.aggregate import aggregate, improvements
from benchmarks.analysis.curves import Curves, curves
from benchmarks.analysis.leaderboard import Leaderboard, board_table, notes, overall_table
from benchmarks.analysis.notes import interval_note, judge_note, score_note, shared_note
from benchmarks.analysis.tables import (
    deployed_table,
    has_seeds,
    held_out_table,
    improvement_table,
    judge_table,
    metric_names,
    score_table,
)
from benchmarks.analysis.verdict import Verdict, verdicts
from benchmarks.charts import CONFIG, Style, library, styles
from benchmarks.report.charts import (
    AXES,
    Shown,
    evaluation_charts,
    frontier_charts,
    label_of,
    log_charts,
    overall_charts,
)
from benchmarks.report.facts import facts, title
from benchmarks.report.figures import write_figures
from benchmarks.report.followed import blocks
from benchmarks.report.gallery import galleries, write_pictures
from benchmarks.report.hacked import Mark, marks
from benchmarks.report.settings import settings
from benchmarks.report.source import Source
from benchmarks.report.tables import fallen_table, measured_table, short_table
from benchmarks.report.verdict import cards, one_seed_note
from benchmarks.terminal import duration
from diffusion_gym.jsonlines import finite

PAGE = "report.html"
_TEMPLATES = Path(__file__).parent / "templates"


def write_report(source: Source, leaders: Leaderboard | None = None) -> Path:
    """Render the page and the figures' files into the source's folder; returns the page's path.

    ``leaders``: a leaderboard of the source's runs, to stand first.

    Raises:
        ValueError: there is nothing to show, runs cannot be put together, or files of the user's are in the way.
    """
    runs = source.results.runs
    if not runs:
        raise ValueError(f"{str(source.folder)!r} holds no run that has begun.")
    summary = curves(runs)
    variants = list(dict.fromkeys(run.variant for run in runs))
    alarms = marks(summary, runs)
    charts = _charts(summary, alarms) + log_charts(variants[0], source.log)
    page = _page(source, summary, charts, styles(variants), leaders, alarms)
    with published(source.folder) as fresh:
        write_figures(summary, fresh)
        write_pictures(source.results, source.folder, fresh)
        (fresh / PAGE).write_text(page, encoding="utf-8")
    return source.folder / PAGE


def _charts(summary: Curves, alarms: Sequence[Mark]) -> list[Shown]:
    together = aggregate(summary)
    overall = overall_charts(together, summary) if together else []
    return [*evaluation_charts(summary, alarms), *frontier_charts(summary), *overall]


def _page(
    source: Source,
    summary: Curves,
    charts: Sequence[Shown],
    chosen: Mapping[str, Style],
    leaders: Leaderboard | None,
    alarms: Sequence[Mark],
) -> str:
    runs, found = source.results.runs, verdicts(summary)
    winners = {verdict.task: verdict for verdict in found}
    pictures = [
        {**one, "best": winners[one["task"]].best.get(winners[one["task"]].winner)}
        for one in galleries(source.results, source.folder)
    ]
    prompts = [_winner_first(block, winners) for block in blocks(source.results, source.folder)]
    drawn = [_drawn(shown, chosen) for shown in charts]
    data = {
        "config": CONFIG,
        "styles": {name: dataclasses.asdict(style) for name, style in chosen.items()},
        "charts": drawn,
        "galleries": pictures,
        "name": source.folder.resolve().name,
    }
    return _environment().get_template("page.html").render(
        **_tables(summary, found),
        **_leaderboard(leaders),
        title=title(runs),
        cards=cards(found, summary, source.results, source.folder),
        one_seed=one_seed_note(summary),
        tasks=list(dict.fromkeys(run.task for run in runs)),
        metrics={name: label_of(name) for name in metric_names(summary)},
        axes=AXES,
        styles=chosen,
        variants=len(chosen),
        charts=drawn,
        sections={shown.section for shown in charts},
        galleries=pictures,
        followed=prompts,
        alarms=alarms,
        runs=runs,
        facts=facts(source),
        failed="; ".join(f"{name}: {error}" for name, error in source.results.failures.items()),
        provenance=source.results.provenance,
        settings=settings(runs),
        style=_read("style.css"),
        library=_packed(library()),
        licence=_read("licence.txt"),
        script=_read("report.js"),
        data=_embedded(data),
        raw=_packed(_embedded(source.results.to_json())),
        log=_packed(_embedded(source.log)),
        is_run=bool(source.log),
    )  # fmt: skip


def _winner_first(block: Mapping[str, Any], winners: Mapping[str, Verdict]) -> dict[str, Any]:
    """Return a task's prompts with the winner's pictures first."""
    winner = winners[block["task"]].winner
    return {**block, "rows": sorted(block["rows"], key=lambda row: row["algorithm"] != winner)}


def _drawn(shown: Shown, chosen: Mapping[str, Style]) -> dict[str, Any]:
    """Return a chart for the page's script."""
    chart = shown.chart
    about = {"name": chart.name, "title": chart.title, "label": chart.label, "axes": chart.axes}
    return {**about, "section": shown.section, "spec": chart.specification(chosen)}


def _tables(summary: Curves, found: Sequence[Verdict]) -> dict[str, Any]:
    """Return the page's tables and the sentences beside them."""
    together, pairs = aggregate(summary), improvements(summary)
    measured, constants = measured_table(summary)
    return {
        "results": short_table(summary, found) if summary else None,
        "measured": measured,
        "constants": constants,
        "has_seeds": has_seeds(summary),
        "note": interval_note(summary) if summary else None,
        "judged": judge_table(summary),
        "judge_note": judge_note(summary),
        "held_out": held_out_table(summary),
        "deployed": deployed_table(summary),
        "peaks": fallen_table(summary),
        "pairs": improvement_table(pairs, summary),
        "scores": score_table(together, summary) if together else None,
        "score_note": score_note(together) if together else None,
        "shared_note": shared_note(summary),
    }


def _leaderboard(leaders: Leaderboard | None) -> dict[str, Any]:
    """Return the leaderboard's tables and their note."""
    if leaders is None:
        return {}
    overall = overall_table(leaders) if len(leaders.boards) > 1 and leaders.overall else None
    return {"overall": overall, "board": board_table(leaders), "board_note": notes(leaders)}


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = duration
    environment.filters["json"] = json.dumps
    return environment


def _read(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """Return JSON for a script element, with nothing in it that could close the element."""
    return json.dumps(finite(data), separators=(",", ":")).replace("<", "\\u003c")


def _packed(text: str) -> str:
    """Return a text compressed, for an element that the page's script unpacks."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()

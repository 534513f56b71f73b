"""The page: what to show, put into the template with its style, its script and the raw results."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from algorithms.checkpoint import write_atomically
from benchmarks.report.charts import AXES, evaluation_charts, log_charts, reference, reward_reference, styles
from benchmarks.report.figures import write_figures
from benchmarks.report.gallery import galleries, write_pictures
from benchmarks.report.source import Source
from benchmarks.results import Curve, curves, interval_note

_HERE = Path(__file__).parent
#: Drawn with Observable Plot, which draws with D3; both stand in the page, so that it opens offline.
_LIBRARIES = ("d3.min.js", "plot.umd.min.js")


def write_report(source: Source) -> Path:
    """Render the page and the figures' files into the source's folder; returns the page's path.

    Raises:
        ValueError: there is nothing to show, or runs that cannot be put together.
    """
    runs = source.results["runs"]
    if not runs:
        raise ValueError(f"{str(source.folder)!r} holds no run that has begun.")
    summary = curves(source.results)
    names = list(dict.fromkeys(run["spec"]["algorithm"] for run in runs))
    chosen = styles(names)
    charts = evaluation_charts(summary)
    if source.log:
        charts += log_charts(names[0], source.log)
    pictures = galleries(source.results, source.folder)
    if summary:
        write_figures(summary, chosen, source.folder)
    write_pictures(source.results, source.folder)
    data = {
        "axes": list(AXES.values()),
        "styles": {name: dataclasses.asdict(style) for name, style in chosen.items()},
        "charts": charts,
        "galleries": pictures,
        "name": source.folder.resolve().name,
    }
    page = _environment().get_template("page.html").render(
        title=_title(source),
        rows=_table(summary),
        metrics=_metrics(summary),
        note=interval_note(summary) if summary else None,
        tasks=list(summary),
        charts=charts,
        axes=AXES,
        styles=chosen,
        galleries=pictures,
        runs=[_run_facts(run) for run in runs],
        facts=_facts(source),
        provenance=source.results["provenance"],
        settings={name: _setting(runs, name) for name in names},
        style=_read("templates/style.css"),
        libraries=[_read(f"vendor/{name}") for name in _LIBRARIES],
        licence=_read("vendor/LICENSE"),
        script=_read("templates/report.js"),
        data=_embedded(data),
        results=_embedded(source.results),
        log=_embedded(source.log),
        is_run=bool(source.log),
    )  # fmt: skip
    path = source.folder / "report.html"
    write_atomically(path, page.encode())
    return path


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["duration"] = _duration
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


def _title(source: Source) -> str:
    specs = [run["spec"] for run in source.results["runs"]]
    algorithms = dict.fromkeys(spec["algorithm"] for spec in specs)
    tasks = dict.fromkeys(spec["task"]["reward"] for spec in specs)
    joined = " and ".join(tasks)
    return f"{' against '.join(algorithms)}: {joined}" if len(algorithms) < 3 else f"Comparison: {joined}"


def _table(summary: Mapping[str, Mapping[str, Curve]]) -> list[dict[str, Any]]:
    """Return a row for each task and algorithm: texts, each with where it comes from."""
    rows = []
    for task, by_algorithm in summary.items():
        for algorithm, curve in by_algorithm.items():
            end, final = len(curve.reward) - 1, curve.reward[-1]
            source = reward_reference(curve, end)
            how = "mean over the runs" if len(curve.runs) > 1 else "as it stands"
            costs = {
                "reward_queries": f"{curve.queries[-1]:,.0f}",
                "forward_equivalents": f"{curve.forwards[-1]:,.0f}",
                "seconds": _duration(curve.seconds),
            }
            rows.append(
                {
                    "task": task,
                    "algorithm": algorithm,
                    "before": (f"{curve.reward[0].estimate:.3f}", reward_reference(curve, 0)),
                    "after": (f"{final.estimate:.3f}", source),
                    "interval": (f"{final.low:.3f} to {final.high:.3f}", source),
                    "over": f"{len(curve.runs)} seeds" if final.over == "seeds" else final.over,
                    "costs": [(text, reference(curve.runs, end, f"costs.{name}", how)) for name, text in costs.items()],
                    "metrics": {
                        name: [
                            (f"{values[index]:.2f}", reference(curve.runs, index, f"metrics.{name}", how))
                            for index in (0, end)
                        ]
                        for name, values in curve.metrics.items()
                    },
                }
            )
    return rows


def _metrics(summary: Mapping[str, Mapping[str, Curve]]) -> list[str]:
    return list(
        dict.fromkeys(name for curves in summary.values() for curve in curves.values() for name in curve.metrics)
    )


def _run_facts(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return one run's line in the list of runs."""
    spec, last = run["spec"], (run["evaluations"] or [{"costs": {}}])[-1]["costs"]
    costs = {**last, **run.get("costs", {})}
    size = spec["config"]["images_per_iteration"]
    return {
        "folder": run.get("folder", ""),
        "task": spec["task"]["reward"],
        "algorithm": spec["algorithm"],
        "seed": spec["config"]["seed"],
        "complete": run.get("complete", True),
        "queries": costs.get("reward_queries", 0),
        "total": -(-spec["reward_queries"] // size) * size,
        "seconds": costs.get("seconds", 0.0),
        "threads": run["provenance"].get("torch_threads"),
        "revision": run["provenance"].get("revision"),
    }


def _facts(source: Source) -> list[tuple[str, str]]:
    """Return the head's facts: what was run, on what, for how long."""
    runs = [_run_facts(run) for run in source.results["runs"]]
    task, made_by = source.results["runs"][0]["spec"]["task"], source.results["provenance"]
    seeds = len({run["seed"] for run in runs})
    done = sum(run["complete"] for run in runs)
    queries = sorted({run["total"] for run in runs})
    if done == len(runs):
        state = "finished"
    else:
        share = sum(run["queries"] for run in runs) / sum(run["total"] for run in runs)
        state = f"not finished: {done} of {len(runs)} runs, {share:.0%} of the reward queries"
    machine = made_by.get("gpu") or f"{made_by['processor']}, {made_by['cores']} cores"
    return [
        ("State", state),
        ("Model", f"{task['model']}, {task['num_inference_steps']} denoising steps"),
        (
            "Runs",
            f"{len(runs)} of {' or '.join(f'{q:,}' for q in queries)} reward queries, {seeds} seed{'s' * (seeds > 1)}",
        ),
        ("Training time", f"{_duration(sum(run['seconds'] for run in runs))}, all runs together"),
        ("Machine", machine),
        ("Date", made_by.get("date", "not recorded").replace("T", " ").replace("+00:00", " UTC")),
    ]


def _setting(runs: list[Mapping[str, Any]], algorithm: str) -> str:
    spec = next(run["spec"] for run in runs if run["spec"]["algorithm"] == algorithm)
    config = {key: value for key, value in spec["config"].items() if key != "seed"}
    return json.dumps({**config, "reward_queries": spec["reward_queries"]}, indent=1)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

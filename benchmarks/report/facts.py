"""What the page says of the runs themselves: title, state, machine, settings, and a line for each run."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.analysis.results import Run, seed_of, task_of, variant_of
from benchmarks.report.source import Source


def title(source: Source) -> str:
    """Return the page's title."""
    runs = source.results["runs"]
    variants = dict.fromkeys(variant_of(run) for run in runs)
    joined = ", ".join(dict.fromkeys(task_of(run) for run in runs))
    return f"{' against '.join(variants)}: {joined}" if len(variants) < 3 else f"Comparison: {joined}"


def run_facts(run: Run) -> dict[str, Any]:
    """Return one run's line in the list of runs."""
    spec, last = run["spec"], (run["evaluations"] or [{"costs": {}}])[-1]["costs"]
    costs = {**last, **run.get("costs", {})}
    size = spec["config"]["images_per_iteration"]
    return {
        "folder": run.get("folder", ""),
        "task": task_of(run),
        "variant": variant_of(run),
        "seed": seed_of(run),
        "complete": run.get("complete", True),
        "queries": costs.get("reward_queries", 0),
        "total": -(-spec["reward_queries"] // size) * size,
        "seconds": costs.get("seconds", 0.0),
        "threads": run["provenance"].get("torch_threads"),
        "revision": run["provenance"].get("revision"),
        "date": run["provenance"].get("date", "")[:10],
    }


def facts(source: Source) -> list[tuple[str, str]]:
    """Return the head's facts: what was run, on what, for how long."""
    runs, made_by = [run_facts(run) for run in source.results["runs"]], source.results["provenance"]
    seeds = len({run["seed"] for run in runs})
    queries = sorted({run["total"] for run in runs})
    machine = made_by.get("gpu") or f"{made_by['processor']}, {made_by['cores']} cores"
    said = [
        ("State", _state(runs)),
        ("Model", _models(source.results["runs"])),
        (
            "Runs",
            f"{len(runs)} of {' or '.join(f'{q:,}' for q in queries)} reward queries, {seeds} seed{'s' * (seeds > 1)}",
        ),
        ("Training time", f"{duration(sum(run['seconds'] for run in runs))}, all runs together"),
        ("Machine", machine),
        ("Date", made_by.get("date", "not recorded").replace("T", " ").replace("+00:00", " UTC")),
    ]
    failures = source.results.get("failures")
    return [*said, ("Failed", "; ".join(f"{name}: {error}" for name, error in failures.items()))] if failures else said


def _state(runs: Sequence[Mapping[str, Any]]) -> str:
    done = sum(run["complete"] for run in runs)
    if done == len(runs):
        return "finished"
    share = sum(run["queries"] for run in runs) / sum(run["total"] for run in runs)
    return f"not finished: {done} of {len(runs)} runs, {share:.0%} of the reward queries"


def _models(runs: Sequence[Run]) -> str:
    tasks = [run["spec"]["task"] for run in runs]
    return "; ".join(dict.fromkeys(f"{task['model']}, {task['num_inference_steps']} denoising steps" for task in tasks))


def settings(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Return each variant's configurations as JSON, and the tasks that it has each of them on."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        tasks = found.setdefault(variant_of(run), {}).setdefault(_setting(run["spec"]), [])
        if task_of(run) not in tasks:
            tasks.append(task_of(run))
    return found


def _setting(spec: Mapping[str, Any]) -> str:
    config = {key: value for key, value in spec["config"].items() if key != "seed"}
    return json.dumps({"algorithm": spec["algorithm"], **config, "reward_queries": spec["reward_queries"]}, indent=1)


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

"""What the page says about the runs themselves: title, state, machine, settings, and a line for each run."""

import json
from collections.abc import Sequence

from benchmarks.report.source import Source
from benchmarks.runs.record import Run


def title(runs: Sequence[Run]) -> str:
    """Return the page's title."""
    variants = dict.fromkeys(run.variant for run in runs)
    tasks = ", ".join(dict.fromkeys(run.task for run in runs))
    return f"{' against '.join(variants)}: {tasks}" if len(variants) < 3 else f"Comparison: {tasks}"


def facts(source: Source) -> list[tuple[str, str]]:
    """Return the facts at the head: what was run, on what, for how long."""
    runs, made_by = source.results.runs, source.results.provenance
    seeds = len({run.seed for run in runs})
    queries = " or ".join(f"{total:,}" for total in sorted({run.spec.total_queries for run in runs}))
    tasks = [run.spec.task for run in runs]
    seconds = sum(run.costs.get("seconds", 0) for run in runs)
    said = {
        "State": _state(runs),
        "Model": "; ".join(dict.fromkeys(f"{t.model}, {t.num_inference_steps} denoising steps" for t in tasks)),
        "Runs": f"{len(runs)} of {queries} reward queries, {seeds} seed{'s' * (seeds > 1)}",
        "Training time": f"{duration(seconds)}, all runs together",
        "Machine": made_by.get("gpu") or f"{made_by['processor']}, {made_by['cores']} cores",
        "Date": made_by.get("date", "not recorded").replace("T", " ").replace("+00:00", " UTC"),
    }
    if source.results.failures:
        said["Failed"] = "; ".join(f"{name}: {error}" for name, error in source.results.failures.items())
    return list(said.items())


def _state(runs: Sequence[Run]) -> str:
    done = sum(run.complete for run in runs)
    if done == len(runs):
        return "finished"
    spent = sum(run.costs.get("reward_queries", 0) for run in runs)
    share = spent / sum(run.spec.total_queries for run in runs)
    return f"not finished: {done} of {len(runs)} runs, {share:.0%} of the reward queries"


def settings(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Return each variant's configurations as JSON, and the tasks that it has each of them on."""
    found: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        tasks = found.setdefault(run.variant, {}).setdefault(_setting(run), [])
        if run.task not in tasks:
            tasks.append(run.task)
    return found


def _setting(run: Run) -> str:
    spec = run.spec.to_json()
    config = {key: value for key, value in spec["config"].items() if key != "seed"}
    return json.dumps({"algorithm": spec["algorithm"], **config, "reward_queries": spec["reward_queries"]}, indent=1)


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

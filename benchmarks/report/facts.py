"""What the page says about the runs themselves: title, state, machine, and for how long they were trained."""

from collections.abc import Sequence

from benchmarks.report.source import Source
from benchmarks.runs.record import Run
from benchmarks.terminal import duration


def title(runs: Sequence[Run]) -> str:
    """Return the page's title."""
    variants = dict.fromkeys(run.variant for run in runs)
    tasks = ", ".join(dict.fromkeys(run.task for run in runs))
    return f"{' against '.join(variants)}: {tasks}" if len(variants) < 3 else f"Comparison: {tasks}"


def facts(source: Source) -> list[tuple[str, str]]:
    """Return what was run, on what, for how long; the page begins with the first three."""
    runs, made_by = source.results.runs, source.results.provenance
    seeds = len({run.seed for run in runs})
    queries = " or ".join(f"{total:,}" for total in sorted({run.spec.total_queries for run in runs}))
    tasks = [run.spec.task for run in runs]
    seconds = sum(run.costs.get("seconds", 0) for run in runs)
    return [
        ("State", _state(runs)),
        ("Model", "; ".join(dict.fromkeys(f"{t.model}, {t.num_inference_steps} denoising steps" for t in tasks))),
        (
            "Runs",
            f"{len(runs)} run{'s' * (len(runs) > 1)} of {queries} reward queries, {seeds} seed{'s' * (seeds > 1)}",
        ),
        ("Training time", f"{duration(seconds)}, all runs together"),
        ("Machine", made_by.get("gpu") or f"{made_by['processor']}, {made_by['cores']} cores"),
        ("Date", made_by.get("date", "not recorded").replace("T", " ").replace("+00:00", " UTC")),
    ]


def _state(runs: Sequence[Run]) -> str:
    done = sum(run.complete for run in runs)
    if done == len(runs):
        return "finished"
    spent = sum(run.costs.get("reward_queries", 0) for run in runs)
    share = spent / sum(run.spec.total_queries for run in runs)
    return f"not finished: {done} of {len(runs)} runs, {share:.0%} of the reward queries"

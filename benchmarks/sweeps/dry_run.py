"""``compare --dry-run``: every configuration is built and checked, and listed; no weight is loaded."""

from collections.abc import Mapping

from benchmarks.analysis.table import markdown
from benchmarks.runs.spec import RunSpec


def dry_run(plan: Mapping[str, RunSpec]) -> str:
    """Return, as Markdown, a line for each task and variant, and the sums.

    Building the plan has checked each field, name, option and split of prompts; this checks what the algorithms require
    of their configuration and reward, and raises ValueError (:meth:`RunSpec.check`).
    """
    groups: dict[tuple[str, str], tuple[RunSpec, list[str]]] = {}
    for name, spec in plan.items():
        task, variant, seed = name.split("/")
        spec.check()
        groups.setdefault((task, variant), (spec, []))[1].append(seed.removeprefix("seed-"))
    header = ["task", "runs", "model", "prompts", "held out", "steps", "queries", "iterations", "evaluations", "seeds"]
    lines = [
        [
            task,
            variant,
            spec.task.model,
            spec.task.prompts or "the model's",
            spec.config.evaluation.held_out_prompts or "none",
            str(spec.task.num_inference_steps),
            f"{spec.total_queries:,}",
            f"{iterations(spec):,}",
            str(evaluations(spec)),
            " ".join(seeds),
        ]
        for (task, variant), (spec, seeds) in groups.items()
    ]
    queries = sum(spec.total_queries for spec in plan.values())
    end = f"{len(plan)} runs, {queries:,} reward queries in all; every configuration is valid; nothing was run."
    return f"{markdown(header, lines)}\n\n{end}"


def iterations(spec: RunSpec) -> int:
    """Return how often a run samples and updates."""
    return spec.total_queries // spec.config.images_per_iteration


def evaluations(spec: RunSpec) -> int:
    """Return how often a run is evaluated, before training and at the end included."""
    every, count = spec.config.evaluation.every, iterations(spec)
    return len({*range(0, count, every), count})

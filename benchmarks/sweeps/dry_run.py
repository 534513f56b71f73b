"""``compare --dry-run``: every configuration built and checked, and what would run; no weight is loaded."""

from collections.abc import Mapping

from algorithms import ALGORITHMS
from benchmarks.analysis.table import markdown
from benchmarks.runs.spec import RunSpec


def dry_run(plan: Mapping[str, RunSpec]) -> str:
    """Return, as Markdown, a line for each task and variant, and the sums.

    Building the plan has checked each field, the rewards', prompts' and metrics' names and options, and that held-out
    prompts are none of the trained ones; here is checked what the algorithms require of their configuration.

    Raises:
        ValueError: a configuration that could not be trained.
    """
    rows: dict[tuple[str, str], RunSpec] = {}
    seeds: dict[tuple[str, str], list[str]] = {}
    for name, spec in plan.items():
        task, variant, seed = name.split("/")
        check(spec)
        rows[task, variant] = spec
        seeds.setdefault((task, variant), []).append(seed.removeprefix("seed-"))
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
            " ".join(seeds[task, variant]),
        ]
        for (task, variant), spec in rows.items()
    ]
    queries = sum(spec.total_queries for spec in plan.values())
    end = f"{len(plan)} runs, {queries:,} reward queries in all; every configuration is valid; nothing was run."
    return f"{markdown(header, lines)}\n\n{end}"


def check(spec: RunSpec) -> None:
    """Check what the algorithm requires of its configuration, as far as can be told without the model.

    Raises:
        ValueError: as the algorithm's constructor would.
    """
    ALGORITHMS[spec.algorithm].cls.check_config(spec.config)


def iterations(spec: RunSpec) -> int:
    """Return how often a run samples and updates."""
    return spec.total_queries // spec.config.images_per_iteration


def evaluations(spec: RunSpec) -> int:
    """Return how often a run is evaluated, before training and at the end included."""
    every, count = spec.config.evaluation.every, iterations(spec)
    return len({*range(0, count, every), count})

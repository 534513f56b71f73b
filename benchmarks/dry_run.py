"""``compare --dry-run``: every configuration built and checked, and what would run; no weight is loaded."""

from collections.abc import Mapping

from algorithms import ALGORITHMS
from benchmarks.settings import RunSpec
from benchmarks.tables import markdown
from diffusion_gym.prompts import resolve_prompts


def dry_run(plan: Mapping[str, RunSpec]) -> str:
    """Return, as Markdown, a line for each task and variant, and the sums.

    Building the plan has checked each field, the rewards', prompts' and metrics' names and options; here are checked
    what an algorithm requires of its sampler, and that held-out prompts are none of the trained ones.

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
    """Check a run as far as can be done without its model.

    Raises:
        ValueError: a sampler without noise where the algorithm needs one, no step to train, or prompts held out of
            training that are trained on.
    """
    policy, evaluation = spec.config.policy, spec.config.evaluation
    if ALGORITHMS[spec.algorithm].cls.requires.stochastic and (policy.eta == 0 or spec.task.num_inference_steps < 2):
        raise ValueError(
            f"{spec.algorithm} needs a stochastic sampler and at least 2 steps, got eta={policy.eta} and "
            f"{spec.task.num_inference_steps}."
        )
    if evaluation.held_out_prompts is not None and spec.task.prompts is not None:
        common = set(resolve_prompts(evaluation.held_out_prompts)) & set(resolve_prompts(spec.task.prompts))
        if common:
            raise ValueError(f"{len(common)} held-out prompts are trained on, such as {min(common)!r}.")


def iterations(spec: RunSpec) -> int:
    """Return how often a run samples and updates."""
    return spec.total_queries // spec.config.images_per_iteration


def evaluations(spec: RunSpec) -> int:
    """Return how often a run is evaluated, before training and at the end included."""
    every, count = spec.config.evaluation.every, iterations(spec)
    return len({*range(0, count, every), count})

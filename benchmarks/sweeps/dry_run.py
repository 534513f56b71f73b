"""``compare --dry-run``: every configuration is built and checked, and listed; no weight is loaded."""

from collections.abc import Mapping

from benchmarks.analysis.table import markdown
from benchmarks.runs.forecast import Workload, evaluations, iterations, workload
from benchmarks.runs.spec import RunSpec


def dry_run(plan: Mapping[str, RunSpec], works: Mapping[str, Workload] | None = None) -> str:
    """Return, as Markdown, a line for each task and variant, and the sums.

    Building the plan has checked each field, name, option and split of prompts; this checks what the algorithms require
    of their configuration and reward, and raises ValueError (:meth:`RunSpec.check`). ``works``: of :func:`workloads`,
    where that is known already.
    """
    groups: dict[tuple[str, str], tuple[RunSpec, list[str]]] = {}
    for name, spec in plan.items():
        task, variant, seed = name.split("/")
        spec.check()
        groups.setdefault((task, variant), (spec, []))[1].append(seed.removeprefix("seed-"))
    known = workloads(plan) if works is None else works
    header = ["task", "runs", "model", "prompts", "held out", "steps", "queries", "iterations", "evaluations"]
    header += ["reward calls", "forward passes", "seeds"]
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
            f"{_calls(known[f'{task}/{variant}']):,}",
            "not counted" if (forwards := forwards_of(known[f"{task}/{variant}"], spec)) is None else f"{forwards:,}",
            " ".join(seeds),
        ]
        for (task, variant), (spec, seeds) in groups.items()
    ]
    end = f"{costs(plan, known)}; every configuration is valid; nothing was run."
    return f"{markdown(header, lines)}\n\n{end}"


def costs(plan: Mapping[str, RunSpec], works: Mapping[str, Workload]) -> str:
    """Return the sums of a plan: runs, reward queries, and forward passes where all could be counted.

    Args:
        plan: TASK/VARIANT/seed-N -> run.
        works: TASK/VARIANT -> how much each of its runs does.
    """
    queries = sum(spec.total_queries for spec in plan.values())
    forwards = [forwards_of(works[name.rpartition("/")[0]], spec) for name, spec in plan.items()]
    counted = [count for count in forwards if count is not None]
    passes = f" and {sum(counted):,} forward passes" if len(counted) == len(forwards) else ""
    return f"{len(plan)} runs, {queries:,} reward queries{passes} in all"


def workloads(plan: Mapping[str, RunSpec]) -> dict[str, Workload]:
    """Return TASK/VARIANT -> how much each of its runs does, which is the same for all seeds."""
    firsts: dict[str, RunSpec] = {}
    for name, spec in plan.items():
        firsts.setdefault(name.rpartition("/")[0], spec)
    return {name: workload(spec) for name, spec in firsts.items()}


def forwards_of(work: Workload, spec: RunSpec) -> int | None:
    """Return a run's forward passes, without its evaluations'.

    For a model that takes the guidance scale as an input (Flux dev, LCM) it is twice too many: no model is loaded here.
    """
    policy = spec.config.policy
    guided = policy.guidance_scale > 1
    found = work.forwards(1 + guided + (guided and policy.image_guidance_scale > 1))
    return None if found is None else sum(found)


def _calls(work: Workload) -> int:
    """Return a run's reward calls, those of its evaluations included."""
    return work.iterations * work.images + work.evaluated

"""A user's own algorithms on a suite's tasks: their settings, and the runs of a comparison with the suite's rows."""

from collections.abc import Sequence
from dataclasses import replace

from algorithms import ALGORITHMS, AlgorithmConfig, EvaluationConfig, PolicyConfig
from algorithms.config.base import field_values
from benchmarks.runs.spec import RunSpec
from benchmarks.suite.recipes import Recipe
from benchmarks.suite.suites import Suite
from benchmarks.suite.tasks import Task
from diffusion_gym.recommended import recommended_for

#: ``compare FILE --quick``: one seed, and this part of each task's reward queries.
QUICK_PART = 4


def own_plan(
    suite: Suite,
    names: Sequence[str],
    tasks: Sequence[str],
    seeds: Sequence[int] | None = None,
    reward_queries: int | None = None,
    quick: bool = False,
) -> dict[str, RunSpec]:
    """Return TASK/NAME/seed-N -> run of registered algorithms on some of a suite's tasks; the seed varies slowest.

    Args:
        suite: whose tasks and evaluations are taken, and on each task the policy of the first algorithm's recipe.
        names: of algorithms that are no part of it.
        tasks: names of its comparisons.
        seeds: one run each; None is each comparison's own.
        reward_queries: of each run; None is each task's own budget.
        quick: where neither is given, the first seed alone, and a quarter of the budget.

    Raises:
        ValueError: a name that the suite has, or a configuration that sets what is the suite's, or does not fit a task.
    """
    taken = sorted({*suite.variants, *suite.on_request} & set(names))
    if taken:
        raise ValueError(f"the suite compares a {taken[0]!r} of its own; give your algorithm another name.")
    found = {}
    for task_name in tasks:
        comparison = suite.comparisons[task_name]
        task = comparison.task
        budget = reward_queries or max(1, task.reward_queries // (QUICK_PART if quick else 1))
        first = next(iter(comparison.variants.values()))
        theirs = first.recipe or comparison.recipe or suite.recipe
        own = (comparison.seeds or suite.seeds)[: 1 if quick else None]
        for name in names:
            recipe = own_recipe(theirs, task, name)
            for seed in own if seeds is None else seeds:
                found[f"{task_name}/{name}/seed-{seed}"] = _spec(recipe, task, task_name, name, seed, budget)
    return dict(sorted(found.items(), key=lambda item: item[1].config.seed))


def _spec(recipe: Recipe, task: Task, task_name: str, name: str, seed: int, reward_queries: int) -> RunSpec:
    try:
        spec = recipe.spec(replace(task, reward_queries=reward_queries), name, seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot run on {task_name} with the suite's settings: {error}") from error
    # The check of what the algorithm requires, as in a dry run.
    ALGORITHMS[name].cls.check_config(spec.config)
    return spec


def own_recipe(recipe: Recipe, task: Task, name: str) -> Recipe:
    """Return a recipe with the settings of an algorithm that it does not have.

    Of what every algorithm has, the algorithm's own configuration comes first where it differs from
    ``AlgorithmConfig()``, then the recipe's policy, then what the task's model recommends. The fields that the
    algorithm adds are its own. The KL to the starting model is measured where the recipe's algorithms measure it.

    Raises:
        ValueError: the configuration sets an evaluation or a seed, which are the suite's.
    """
    config = ALGORITHMS[name].config
    if config.evaluation != EvaluationConfig() or config.seed != AlgorithmConfig().seed:
        raise ValueError(
            f"the configuration of {name} sets its evaluation or its seed, which are the suite's; leave them."
        )
    settings = {
        **recommended_for(task.config.model).settings(name),
        **_changed(recipe.policy, PolicyConfig()),
        **_changed(config, AlgorithmConfig()),
    }
    if any(other.get("kl_to_start") for other in recipe.settings.values()):
        settings["kl_to_start"] = any(_levels(settings.get("eta", PolicyConfig().eta)))
    return replace(recipe, settings={name: settings})


def _changed(config: AlgorithmConfig | PolicyConfig, usual: AlgorithmConfig | PolicyConfig) -> dict[str, object]:
    """Return the fields of a configuration, also of the dataclasses in it, that have another value than usually."""
    values, known = field_values(config), field_values(usual)
    whole = {"policy", "evaluation", "lora"}  # whose fields are there one by one
    return {name: values[name] for name, value in known.items() if name not in whole and values[name] != value}


def _levels(eta: object) -> tuple[object, ...]:
    return eta if isinstance(eta, tuple) else (eta,)

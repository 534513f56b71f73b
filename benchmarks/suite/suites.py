"""The suites: tasks, the variants that are compared on each, the recipe, and the seeds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from benchmarks.runs.spec import RunSpec
from benchmarks.suite.claims import CLAIMS, Variant
from benchmarks.suite.hacking import (
    FLOOR_TASKS,
    FLOOR_VARIANTS,
    HACKING,
    HACKING_EXACT,
    HACKING_EXACT_TASKS,
    HACKING_EXACT_VARIANTS,
    HACKING_TASKS,
    HACKING_VARIANTS,
    STOPPED_VARIANTS,
    SUM_TASKS,
    SUM_VARIANTS,
)
from benchmarks.suite.ladder import EMBEDDED_LADDER, EXACT_LADDER, RUNGS
from benchmarks.suite.recipes import (
    COMPOSITION,
    EMBEDDED,
    EMBEDDED_YOUNGER,
    EXACT,
    FOLLOW,
    GENEVAL,
    LEASHED,
    MODERN,
    MODERN_GENEVAL,
    PAPER,
    PRESETS,
    QUICK,
    QUICK_GENEVAL,
    QUICK_YOUNGER,
    STABLE_DIFFUSION,
    Recipe,
)
from benchmarks.suite.tasks import (
    COMPOSITION_TASKS,
    DEFAULT_TASKS,
    EXACT_TASKS,
    FOLLOW_TASKS,
    LADDER_EXACT_TASKS,
    LADDER_TASKS,
    LEARNED_TASKS,
    PAPER_TASKS,
    PRESETS_TASKS,
    QUICK_TASKS,
    STABLE_DIFFUSION_TASKS,
    TASKS,
    Task,
)


@dataclass(frozen=True)
class Comparison:
    """One task, and the variants that are compared on it: usually the four algorithms."""

    task: Task
    variants: Mapping[str, Variant]
    seeds: tuple[int, ...] | None = None
    """Seeds of this comparison; None is the suite's."""
    recipe: Recipe | None = None
    """How its runs are trained; None is the suite's."""


@dataclass(frozen=True)
class Suite:
    """Comparisons that are run together."""

    summary: str
    """For the help."""
    comparisons: Mapping[str, Comparison]
    """Name -> comparison; the name is the first folder of its runs."""
    recipe: Recipe
    """How runs are trained."""
    seeds: tuple[int, ...]
    """One run per seed and variant."""
    on_request: tuple[str, ...] = ()
    """Variants that are run only if they are named."""

    @property
    def variants(self) -> list[str]:
        """Every variant that is run if none is named."""
        names = dict.fromkeys(name for found in self.comparisons.values() for name in found.variants)
        return [name for name in names if name not in self.on_request]

    def plan(
        self,
        tasks: Sequence[str],
        variants: Sequence[str],
        seeds: Sequence[int] | None = None,
        reward_queries: int | None = None,
    ) -> dict[str, RunSpec]:
        """Return name -> run; the seed varies slowest, so that a sweep that is stopped has whole comparisons.

        Args:
            tasks: some of the comparisons' names.
            variants: names of variants; a task that does not compare one of them leaves it out.
            seeds: one run each; None is each comparison's own.
            reward_queries: of each run; None is each task's own budget.
        """
        of_task = {name: self.comparisons[name].seeds or self.seeds if seeds is None else seeds for name in tasks}
        plan = {}
        for seed in dict.fromkeys(seed for found in of_task.values() for seed in found):
            for task_name in tasks:
                if seed not in of_task[task_name]:
                    continue
                found = self.comparisons[task_name]
                task = found.task if reward_queries is None else replace(found.task, reward_queries=reward_queries)
                for name, variant in found.variants.items():
                    if name in variants:
                        recipe = variant.recipe or found.recipe or self.recipe
                        spec = recipe.spec(task, variant.algorithm, seed, **variant.changes)
                        plan[f"{task_name}/{name}/seed-{seed}"] = replace(spec, safeguards=variant.safeguards)
        return plan


#: Algorithm -> settings of its own.
_Changes = Mapping[str, Mapping[str, object]]


def _algorithms_on(
    tasks: Mapping[str, Task], recipe: Recipe, changes: Mapping[str, _Changes] | None = None
) -> dict[str, Comparison]:
    """Compare the recipe's algorithms on tasks; ``changes`` are the settings that differ on a task."""
    own = {task: (changes or {}).get(task, {}) for task in tasks}
    return {
        name: Comparison(
            task, {algorithm: Variant(algorithm, own[name].get(algorithm, {})) for algorithm in recipe.settings}
        )
        for name, task in tasks.items()
    }


def _beside_geneval(
    tasks: Mapping[str, Task], geneval: Recipe, others: Recipe, younger: Recipe
) -> dict[str, Comparison]:
    """Compare on ``geneval`` with a recipe of its own model, and on the other tasks with another.

    Each has a fifth algorithm, the best one there that is younger than the paper.
    """
    found = _algorithms_on(tasks, others)
    fifth = {name: Variant("branched", recipe=younger) for name in found} | {"geneval": Variant("awm")}
    found = {
        name: replace(one, variants={**one.variants, fifth[name].algorithm: fifth[name]}) for name, one in found.items()
    }
    return {**found, "geneval": replace(found["geneval"], recipe=geneval)}


def _with_younger(
    papers: Mapping[str, Comparison], geneval: Mapping[str, Task], changes: Mapping[str, _Changes]
) -> dict[str, Comparison]:
    """Add the younger algorithms to comparisons of the paper's; on geneval they join ``composition``.

    Each keeps its recipe, so that runs of the paper's algorithms are those of ``paper`` and ``composition``.
    """
    found = {}
    for task, one in papers.items():
        own = changes.get(task, {})
        younger = {name: Variant(name, own.get(name, {}), recipe=MODERN) for name in MODERN.settings}
        found[task] = replace(one, variants={**one.variants, **younger})
    there = {name: Variant(name, recipe=COMPOSITION) for name in COMPOSITION.settings}
    there["branched"] = Variant("branched", recipe=MODERN_GENEVAL)
    return {**found, **{name: Comparison(task, there) for name, task in geneval.items()}}


class _WhenAsked(Mapping[str, Comparison]):
    """The recipe's algorithms on tasks that are made on access."""

    def __init__(self, tasks: Mapping[str, Callable[[], Task]], recipe: Recipe) -> None:
        self._tasks, self._recipe = tasks, recipe

    def __getitem__(self, name: str) -> Comparison:
        return _algorithms_on({name: self._tasks[name]()}, self._recipe)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tasks)

    def __len__(self) -> int:
        return len(self._tasks)


#: Where few pictures earn less than the whole reward: more pictures per update, four per prompt, and smaller steps.
_RARE_FAILURES = {"images_per_iteration": 256, "images_per_prompt": 4, "learning_rate": 1e-3}
_LEARNED = {"vlm_alignment": Variant("ddpo-is", _RARE_FAILURES)}

#: ``paper`` on alignment: what the search there ranks first.
_ON_ALIGNMENT: _Changes = {
    "ddpo-is": {"images_per_prompt": 4, "updates_per_iteration": 2, "learning_rate": 1e-3},
    "ddpo-sf": {"images_per_prompt": 4, "images_per_iteration": 64, "learning_rate": 1.5e-3},
    "rwr": {"images_per_iteration": 128, "updates_per_iteration": 10, "learning_rate": 5e-5},
    "sparse-rwr": {"learning_rate": 5e-5},
}

#: ``modern`` on alignment: likewise, by the reward at the end; with noise in every step, as DDPO has it.
_YOUNGER_ON_ALIGNMENT: _Changes = {
    "branched": {"advantage_scale": "batch", "images_per_iteration": 64, "learning_rate": 1e-3, "eta": 1.0},
    "awm": {"learning_rate": 1e-3, "eta": 1.0},
}

#: With and without a KL penalty (docs/overoptimisation.md). Both measure the KL to the starting model, which costs
#: forwards and does not change the training.
_LEASH = {
    "ddpo-is": Variant("ddpo-is", {"kl_to_start": True}),
    "ddpo-is-kl": Variant("ddpo-is", {"kl_to_start": True, "kl_penalty": 0.03}),
}

#: Does DDPO-IS fall back after a reward has saturated because the running baseline lags? The baseline of ``paper``
#: against one of this iteration's images only, five to eight per prompt, whose advantages average 0.
_BASELINES = {"ddpo-is": Variant("ddpo-is"), "ddpo-is-newest": Variant("ddpo-is", {"statistics_buffer": 4})}

#: The paper's tasks with its algorithms.
_PAPERS = _algorithms_on(PAPER_TASKS, PAPER, changes={"vlm_alignment": _ON_ALIGNMENT})

#: Reward gradients only where the reward has one.
_WITHOUT_GRADIENT = ("grpo-fast", "d3po", "mixgrpo")
_PRESETS = {
    name: Comparison(PRESETS_TASKS[name], {one: Variant(one) for one in found})
    for name, found in {"incompressibility": _WITHOUT_GRADIENT, "aesthetic": tuple(PRESETS.settings)}.items()
}

#: Name -> suite. ``default`` is what plain ``compare`` runs.
SUITES: dict[str, Suite] = {
    "default": Suite(
        "prompts that can be checked (geneval) and compressibility, minutes",
        _beside_geneval(DEFAULT_TASKS, GENEVAL, EMBEDDED, EMBEDDED_YOUNGER),
        EMBEDDED,
        (0,),
        ("sb3-ppo",),
    ),
    "quick": Suite(
        "the same with 64 reward queries per run",
        _beside_geneval(QUICK_TASKS, QUICK_GENEVAL, QUICK, QUICK_YOUNGER),
        QUICK,
        (0,),
        ("sb3-ppo",),
    ),
    "composition": Suite(
        "geneval and its held-out prompts, five seeds, hours",
        _algorithms_on(COMPOSITION_TASKS, COMPOSITION),
        COMPOSITION,
        (0, 1, 2, 3, 4),
    ),
    "follow": Suite(
        "awm on geneval, three seeds, minutes each",
        _algorithms_on(FOLLOW_TASKS, FOLLOW),
        FOLLOW,
        (0, 1, 2),
    ),
    "jpeg": Suite(
        "JPEG rewards on emoji-animals, minutes", _algorithms_on(TASKS, EMBEDDED), EMBEDDED, (0,), ("sb3-ppo",)
    ),
    "exact": Suite(
        "exact models, whose best distributions are known, minutes",
        _algorithms_on(EXACT_TASKS, EXACT),
        EXACT,
        (0, 1, 2),
    ),
    "learned-rewards": Suite(
        "DDPO-IS toward rewards that are models, an hour",
        {
            name: Comparison(task, {"ddpo-is": _LEARNED.get(name, Variant("ddpo-is"))})
            for name, task in LEARNED_TASKS.items()
        },
        EMBEDDED,
        (0, 1, 2),
    ),
    "paper": Suite(
        "the paper's four tasks, five seeds, hours",
        _PAPERS,
        PAPER,
        (0, 1, 2, 3, 4),
    ),
    "paper-claims": Suite(
        "the paper's claims one by one, hours",
        {name: Comparison(claim.task, claim.variants, seeds=claim.seeds) for name, claim in CLAIMS.items()},
        PAPER,
        (0, 1, 2),
    ),
    "modern": Suite(
        "the paper's algorithms and younger ones, five seeds, hours",
        _with_younger(_PAPERS, COMPOSITION_TASKS, {"vlm_alignment": _YOUNGER_ON_ALIGNMENT}),
        PAPER,
        (0, 1, 2, 3, 4),
    ),
    "presets": Suite(
        "younger algorithms that modern leaves out, five seeds, an hour",
        _PRESETS,
        PRESETS,
        (0, 1, 2, 3, 4),
    ),
    "ladder": Suite(
        "from DDPO-IS to branched groups, one factor at a time, hours",
        {
            **{name: Comparison(task, RUNGS, recipe=EXACT_LADDER) for name, task in LADDER_EXACT_TASKS.items()},
            **{name: Comparison(task, RUNGS) for name, task in LADDER_TASKS.items()},
        },
        EMBEDDED_LADDER,
        (0, 1, 2, 3, 4),
    ),
    "hacking": Suite(
        "rewards that are hacked, and what keeps a model whole, hours",
        {
            **{name: Comparison(task, HACKING_VARIANTS) for name, task in HACKING_TASKS.items()},
            **{name: Comparison(task, FLOOR_VARIANTS) for name, task in FLOOR_TASKS.items()},
            **{name: Comparison(task, SUM_VARIANTS) for name, task in SUM_TASKS.items()},
            **{
                name: Comparison(task, HACKING_EXACT_VARIANTS, recipe=HACKING_EXACT)
                for name, task in HACKING_EXACT_TASKS.items()
            },
        },
        HACKING,
        (0, 1, 2, 3, 4),
    ),
    "stopped": Suite(
        "with and without --stop-when-hacked, half an hour",
        {name: Comparison(task, STOPPED_VARIANTS) for name, task in HACKING_TASKS.items()},
        HACKING,
        (5, 6, 7),
    ),
    "leash": Suite(
        "DDPO-IS with and without a KL penalty, an hour",
        {"incompressibility": Comparison(TASKS["incompressibility"], _LEASH)},
        LEASHED,
        (0, 1, 2),
    ),
    "baseline": Suite(
        "DDPO-IS with a running and a fresh baseline, half an hour",
        {"compressibility": Comparison(PAPER_TASKS["compressibility"], _BASELINES)},
        PAPER,
        (0, 1, 2, 3, 4),
    ),
    "paper-sd": Suite(
        "the paper's own settings on Stable Diffusion 1.4, GPU days",
        _WhenAsked(STABLE_DIFFUSION_TASKS, STABLE_DIFFUSION),
        STABLE_DIFFUSION,
        (0,),
    ),
}

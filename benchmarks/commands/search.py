"""``search``: the search for the suites' hyperparameters, with equal effort for every algorithm."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from algorithms.config.base import override
from benchmarks.runs.record import Run
from benchmarks.runs.spec import RunSpec, check_names
from benchmarks.suite import (
    EMBEDDED,
    GENEVAL,
    GENEVAL_TASK,
    MODERN,
    MODERN_GENEVAL,
    PAPER_TASKS,
    PRESETS,
    TASKS,
    Recipe,
    Task,
)

Settings = dict[str, object]

_ALIGNMENT, _GENEVAL = "vlm_alignment", "geneval"
#: Tasks to search on; those of ``--suite jpeg``, the default, need no reward model.
SEARCH_TASKS: dict[str, Task] = {**PAPER_TASKS, **TASKS, _GENEVAL: GENEVAL_TASK}


def _recipe(task: str, algorithm: str) -> Recipe:
    """Return the recipe whose settings a candidate changes."""
    if task == _GENEVAL:
        return GENEVAL if algorithm in GENEVAL.settings else MODERN_GENEVAL
    return next((found for found in (MODERN, PRESETS) if algorithm in found.settings), EMBEDDED)


def _each(first: Sequence[Settings], second: Sequence[Settings]) -> tuple[Settings, ...]:
    """Return each of the first settings with each of the second."""
    return tuple({**one, **other} for one in first for other in second)


def _rates(*rates: float, **common: object) -> tuple[Settings, ...]:
    """Return a candidate for each learning rate, with what they have in common."""
    return tuple({**common, "learning_rate": rate} for rate in rates)


_RATES: list[Settings] = [{"learning_rate": rate} for rate in (1e-3, 2e-3, 3e-3)]
_SMALL: Settings = {"images_per_iteration": 64, "updates_per_iteration": 5}
_LARGE: Settings = {"images_per_iteration": 128, "updates_per_iteration": 10}
#: Six configurations per algorithm: two ways to split the work between sampling and updates, times three strengths of
#: an update; the rest is as in ``EMBEDDED``. RWR's updates go with the iteration's size, so that all algorithms spend
#: about 40 UNet forward-equivalents per image.
SIX: dict[str, tuple[Settings, ...]] = {
    "ddpo-is": _each([{"updates_per_iteration": updates} for updates in (2, 4)], _RATES),
    "ddpo-sf": _each([{"images_per_iteration": images} for images in (32, 64)], _RATES),
    "rwr": _each(
        [_SMALL, _LARGE],
        [{"beta": beta, "learning_rate": rate} for beta, rate in ((0.2, 1e-3), (0.2, 2e-3), (0.1, 1e-3))],
    ),
    "sparse-rwr": _each(
        [_SMALL, _LARGE],
        [{"top_fraction": top, "learning_rate": rate} for top, rate in ((0.1, 1e-3), (0.1, 2e-3), (0.2, 1e-3))],
    ),
}
#: If the best of the six has the highest learning rate, the next higher ones with its other settings, until the highest
#: is no longer the best.
PAST_THE_EDGE: dict[str, tuple[Settings, ...]] = {
    "ddpo-is": ({"updates_per_iteration": 4, "learning_rate": 4e-3},),
    "ddpo-sf": ({"images_per_iteration": 32, "learning_rate": 4e-3},),
    "rwr": tuple({**_SMALL, "beta": 0.2, "learning_rate": rate} for rate in (3e-3, 4e-3)),
    "sparse-rwr": ({**_LARGE, "top_fraction": 0.1, "learning_rate": 3e-3},),
}
CANDIDATES: dict[str, tuple[Settings, ...]] = {name: (*SIX[name], *PAST_THE_EDGE[name]) for name in SIX}


def _ddpo_on_alignment(rate: float) -> tuple[Settings, ...]:
    """Return half the learning rate of the other tasks, a quarter, half with twice the images, and the whole.

    Few pictures say there what to change. Four images of a prompt are compared, since there are many prompts.
    """
    four: Settings = {"images_per_prompt": 4}
    half: Settings = {**four, "learning_rate": rate / 2}
    quarter, whole = {**four, "learning_rate": rate / 4}, {**four, "learning_rate": rate}
    return half, quarter, {**half, "images_per_iteration": 128}, whole


#: RWR loses with large steps, so it has one more, and ever smaller ones.
_RWR_ON_ALIGNMENT: tuple[Settings, ...] = (
    *({**_SMALL, "learning_rate": rate} for rate in (1e-3, 5e-4)),
    *({**_LARGE, "learning_rate": rate} for rate in (1e-3, 2e-4, 5e-5)),
)
ALIGNMENT_CANDIDATES: dict[str, tuple[Settings, ...]] = {
    "ddpo-is": _ddpo_on_alignment(2e-3),
    "ddpo-sf": _ddpo_on_alignment(3e-3),
    "rwr": _RWR_ON_ALIGNMENT,
    "sparse-rwr": _RWR_ON_ALIGNMENT,
}
#: As many more of the baseline as younger algorithms have there with noise in all steps.
FURTHER_ON_ALIGNMENT: dict[str, tuple[Settings, ...]] = {
    "ddpo-is": (
        {"images_per_prompt": 4, "learning_rate": 1e-3, "updates_per_iteration": 4},
        {"images_per_prompt": 8, "learning_rate": 1e-3},
    ),
}
#: On emoji-world four candidates for each algorithm, also for younger ones; the rest is as its
#: training.json recommends.
_RWR_ON_GENEVAL: tuple[Settings, ...] = _rates(2e-5, 6e-6, 2e-6, 6e-7)  # from 2e-5 on it destroys the model
#: Windows where DDPO's recommended noise is, in the first four of ten steps, and its scale of advantages.
_EARLY: Settings = {"window_range": (0.0, 0.4), "advantage_scale": "batch", "eta": 0.0}
_ANYWHERE: Settings = {"window_range": (0.0, 1.0), "advantage_scale": "group", "eta": 0.0}
#: The same with noise in each of these steps, which a group shares outside its window.
_EARLY_NOISE: Settings = {**_EARLY, "eta": (1.0,) * 4 + (0.0,) * 6}
GENEVAL_CANDIDATES: dict[str, tuple[Settings, ...]] = {
    "ddpo-is": (
        *_rates(7e-5, 1.5e-4, 3e-4, updates_per_iteration=2),
        {"updates_per_iteration": 4, "learning_rate": 7e-5},
    ),
    "ddpo-sf": _rates(5e-5, 1e-4, 2e-4, 4e-4),
    "rwr": _RWR_ON_GENEVAL,
    "sparse-rwr": _RWR_ON_GENEVAL,
    "awm": (*_rates(1.5e-4, 3e-4, 6e-4), {"learning_rate": 3e-4, "anchor_start": 0.1}),
    "branched": (
        *_rates(2e-5, 5e-5, 1e-4, 2e-4, **_ANYWHERE),
        *_rates(5e-5, 1e-4, 2e-4, **_EARLY),
        {**_EARLY, "images_per_iteration": 64, "learning_rate": 1e-4},
        *_rates(5e-5, 1e-4, **_EARLY_NOISE),
    ),
}
#: With advantages in units of the iteration's spread, not of a group's: most groups there have nearly none.
_BY_BATCH: Settings = {"advantage_scale": "batch", "images_per_iteration": 64}
_YOUNGER_ON_ALIGNMENT: tuple[Settings, ...] = (
    *_rates(5e-4, 1e-3, images_per_iteration=64),
    *_rates(5e-4, 1e-3, **_BY_BATCH),
)
#: Two of these with noise in all steps, as DDPO has it.
_WITH_NOISE: Settings = {"images_per_iteration": 64, "learning_rate": 1e-3, "eta": 1.0}
_NOISY_ON_ALIGNMENT: tuple[Settings, ...] = (_WITH_NOISE, {**_WITH_NOISE, **_BY_BATCH})
YOUNGER_ALIGNMENT_CANDIDATES: dict[str, tuple[Settings, ...]] = {
    # These gained two thirds of what DDPO-IS gains; so four more with the window where the contents are decided.
    "branched": (
        *_YOUNGER_ON_ALIGNMENT,
        *_rates(5e-4, 1e-3, 2e-3, images_per_iteration=64, **_EARLY),
        {**_EARLY, "images_per_iteration": 32, "learning_rate": 1e-3},
        *_NOISY_ON_ALIGNMENT,
    ),
    "awm": (*_YOUNGER_ON_ALIGNMENT, *_NOISY_ON_ALIGNMENT),
}
#: Task -> candidates of its own.
_OWN_CANDIDATES = {
    _ALIGNMENT: {name: (*found, *FURTHER_ON_ALIGNMENT.get(name, ())) for name, found in ALIGNMENT_CANDIDATES.items()},
    _GENEVAL: GENEVAL_CANDIDATES,
}
#: Younger algorithms have one recipe for the other tasks, and so the same four candidates on each.
YOUNGER_CANDIDATES: dict[str, tuple[Settings, ...]] = {
    # As many as ddpo-is has, and a higher rate, because the highest was the best; two with noise in all steps.
    "branched": (
        *_rates(1e-3, 2e-3, 4e-3, images_per_iteration=64),
        *_rates(2e-3, 4e-3, images_per_iteration=32),
        *_rates(2e-3, 4e-3, images_per_iteration=32, eta=1.0),
        {"images_per_iteration": 32, "learning_rate": 8e-3},
    ),
    "awm": (*_rates(1e-3, 2e-3, 4e-3), {"images_per_iteration": 32, "learning_rate": 2e-3}),
    # The highest rate of these was the best of four, so they have the next one too.
    **dict.fromkeys(
        ("grpo-fast", "mixgrpo"),
        (
            *_rates(1e-3, 2e-3, 4e-3, images_per_iteration=64),
            {"images_per_iteration": 32, "learning_rate": 2e-3},
            {"images_per_iteration": 64, "learning_rate": 8e-3},
        ),
    ),
    "d3po": (
        *_rates(1e-3, 2e-3, 4e-3),
        {"images_per_prompt": 4, "learning_rate": 2e-3},
        {"learning_rate": 8e-3},
    ),
    **dict.fromkeys(
        ("draft", "draft-lv", "refl", "opsd"),
        (*_rates(1e-3, 2e-3, 4e-3, updates_per_iteration=2), {"updates_per_iteration": 4, "learning_rate": 2e-3}),
    ),
}


def candidates_on(tasks: Collection[str], algorithms: Collection[str] = ()) -> Mapping[str, tuple[Settings, ...]]:
    """Return each algorithm's candidates on a search's tasks; raise ValueError if they differ between tasks."""
    own = [name for name in tasks if name in _OWN_CANDIDATES]
    if own and len(set(tasks)) > 1:
        raise ValueError(f"{own[0]} has candidates of its own; search on it alone, or on {sorted(TASKS)}.")
    younger = bool(algorithms) and YOUNGER_CANDIDATES.keys() >= set(algorithms)
    if younger and _GENEVAL not in own:
        return YOUNGER_ALIGNMENT_CANDIDATES if own else YOUNGER_CANDIDATES
    return _OWN_CANDIDATES[own[0]] if own else CANDIDATES


@dataclass(frozen=True)
class Search:
    """Try several settings of every algorithm, and rank each algorithm's settings by their gain."""

    reward_queries: int = 2048
    """Reward queries per run: as many as in the comparison, because a smaller budget favours too large steps."""
    seeds: tuple[int, ...] = (1000,)
    """Seeds, none of which a published run uses."""
    tasks: tuple[str, ...] = tuple(TASKS)
    """Tasks to search on."""
    algorithms: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="(default: all that have candidates)")
    ] = ()
    """Algorithms to search for; of those that "paper" does not have, alone."""
    folder: Path = Path("runs/search")
    """Where runs and results are written. The same command resumes."""
    results: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...", help_behavior_hint="(default: none)")] = ()
    """Results files of other days or machines, whose complete runs are reused; the first is also updated."""
    processes: int = 0
    """Runs at the same time; 0 is as many as cores and memory allow (1.5 GB per run)."""

    def __post_init__(self) -> None:
        """Refuse unknown names and impossible numbers before anything is loaded."""
        check_names("task", self.tasks, SEARCH_TASKS)
        known = candidates_on(self.tasks, self.algorithms)
        check_names("algorithm", self.algorithms or known, known)
        if self.reward_queries < 1 or self.processes < 0 or not self.seeds or min(self.seeds) < 0:
            raise ValueError(
                f"expected reward_queries >= 1, processes >= 0 and seeds >= 0, got {self.reward_queries}, "
                f"{self.processes}, {self.seeds}."
            )

    def plan(self) -> dict[str, RunSpec]:
        """Return TASK/ALGORITHM-INDEX/seed-N -> run, evaluated only before and after."""
        plan, candidates = {}, candidates_on(self.tasks, self.algorithms)
        for seed in self.seeds:
            for name in self.tasks:
                task = dataclasses.replace(
                    SEARCH_TASKS[name], held_out_prompts=None, reward_queries=self.reward_queries
                )
                for algorithm in self.algorithms or candidates:
                    for index, changes in enumerate(candidates[algorithm]):
                        spec = _recipe(name, algorithm).spec(task, algorithm, seed, **changes)
                        spec = dataclasses.replace(spec, config=override(spec.config, images=96, every=10**6))
                        plan[f"{name}/{algorithm}-{index}/seed-{seed}"] = spec
        return plan


def search(options: Search) -> int:
    """Run all candidates, write ``results.json`` and print each algorithm's candidates, best first."""
    from benchmarks.runs.ownership import claimed
    from benchmarks.sweeps.local_pool import local_pool
    from benchmarks.sweeps.merged_results import Ledger, holds_results
    from benchmarks.sweeps.sweep import run_all

    with claimed(options.folder, holds_results, "search"):
        ledger = Ledger(options.plan(), options.folder, options.results[:1], options.results[1:])
        pool = local_pool(ledger.own.values(), options.processes, 1)
        failures = run_all(ledger.own, options.folder, pool, lambda name: ledger.write())
    for name, error in failures.items():
        print(f"run {name} failed: {error.splitlines()[-1]}")
    print(f"\n{ranking(ledger.write(failures).runs)}")
    return 1 if failures else 0


def ranking(runs: Sequence[Run]) -> str:
    """Return every candidate as a Markdown table, each algorithm's best first.

    They are ranked by their gain, in reward or in the metric that the task names, as a share of the largest gain of
    their algorithm's candidates on the same task, averaged over the tasks: so tasks count alike, whatever their units,
    and whatever other algorithms gain. Candidates without a share, because none of their algorithm gained, are ranked
    by what they lose.
    """
    from benchmarks.analysis.table import markdown

    tasks = list(dict.fromkeys(run.task for run in runs))
    candidates = candidates_on(tasks, {run.variant.rpartition("-")[0] for run in runs})
    ends: dict[tuple[str, str], dict[str, list[tuple[float, float]]]] = {}
    for run in runs:
        algorithm, _, index = run.variant.rpartition("-")
        ends.setdefault((algorithm, index), {}).setdefault(run.task, []).append(_ends(run))
    gains = {
        candidate: [_mean([gain for gain, _ in by_task[task]]) if task in by_task else None for task in tasks]
        for candidate, by_task in ends.items()
    }
    rows: dict[str, list[tuple[float, float, list[str]]]] = {}
    for (algorithm, index), found in gains.items():
        if None in found:  # a candidate that failed somewhere, or has not been tried there yet, is not ranked
            continue
        own = [values for (other, _), values in gains.items() if other == algorithm]
        best = [max(values[i] or 0.0 for values in own) for i in range(len(tasks))]
        # Where none gained there is nothing to have a share of, and the task says nothing.
        share = _mean([gain / top for gain, top in zip(found, best, strict=True) if gain is not None and top > 0])
        seen = [_mean([share for _, share in ends[algorithm, index][task]]) for task in tasks]
        changes = ", ".join(f"{name} {value}" for name, value in candidates[algorithm][int(index)].items())
        numbers = [*(f"{gain:+.3f}" for gain in found), f"{share:.2f}", *(f"{share:.2f}" for share in seen)]
        gained = _mean([gain for gain in found if gain is not None])
        rows.setdefault(algorithm, []).append((share, gained, [algorithm, changes, *numbers]))
    header = ["algorithm", "setting", *(f"gain, {task}" for task in tasks), "share of its best gain"]
    header += [f"{_task(task).beside}, {task}" for task in tasks]
    lines = [row for found in rows.values() for *_, row in sorted(found, key=lambda one: one[:2], reverse=True)]
    return markdown(header, lines)


def _ends(run: Run) -> tuple[float, float]:
    """Return a run's gain in what its task is ranked by, and at its end the metric that is shown beside."""
    task = _task(run.task)
    first, last = (
        line.mean_reward if task.ranked_by is None else line.metrics[task.ranked_by]
        for line in (run.evaluations[0], run.evaluations[-1])
    )
    return last - first, run.evaluations[-1].metrics[task.beside]


def _task(name: str) -> Task:
    """Return a task that is searched on; of others' results, one that is ranked by its reward."""
    return SEARCH_TASKS.get(name, TASKS["compressibility"])


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0

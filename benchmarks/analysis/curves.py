"""What a comparison's runs say over training: one curve for each variant on each task, with its seeds together."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from algorithms import EvaluationConfig
from benchmarks.analysis.statistics import Interval, interquartile_mean, over_seeds, summarise
from benchmarks.runs.metrics import more_is_better
from benchmarks.runs.record import Evaluation, Run, Scores
from benchmarks.runs.spec import RunSpec, TaskConfig

#: The reward on held-out prompts, among a run's metrics.
HELD_OUT = "held-out"
#: Task, reward queries and evaluation: equal where two runs can be compared.
Terms = tuple[TaskConfig, int, EvaluationConfig]


@dataclass(frozen=True)
class Peak:
    """A metric's best moment against its end: interquartile means over the runs of each run's own best and end.

    Attributes:
        start, best, final: of the metric. The best of many evaluations is higher than other images of that moment would
            show. All runs begin with the same images, so the interval of the end is also that of the change.
        queries: reward queries at each run's best, interquartile mean.
        places: index of each run's best evaluation.
        fallen: how many runs end below their start.
    """

    start: float
    best: float
    queries: float
    final: Interval
    places: list[int]
    fallen: int

    @property
    def is_passed(self) -> bool:
        """Whether the best is above both the start and the end."""
        return self.best > max(self.start, self.final.estimate)


@dataclass(frozen=True)
class Curve:
    """One variant on one task over its evaluations.

    If some of its runs are finished, the others are left out; if none is, the curve ends with the shortest run.

    Attributes:
        runs: indices into the results' runs, one per seed.
        finished: whether these runs are finished.
        seeds: of these runs.
        specs: their specifications; equal where a run is part of another curve too.
        terms: what they were trained and evaluated on.
        queries, forwards, times, images: reward queries, UNet forward-equivalents, mean training seconds and sampled
            images at each evaluation.
        reward: the interval at each evaluation.
        held_out: the same on prompts that are not trained on; empty if none were evaluated.
        metrics: name -> interquartile mean over seeds at each evaluation, with its interval if there are several seeds.
        held_out_metrics: the same on prompts that are not trained on.
        deployed_at: indices of the evaluations that were also made with the sampler that the model is used with.
        deployed, deployed_metrics: the reward and the metrics of these, as above.
        peaks: metric of which more is better -> its best moment against its end.
        by_run: mean evaluation rewards, (runs, evaluations), float64.
        metrics_by_run: name -> the metric, (runs, evaluations), float64; the reward on held-out prompts as "held-out".
    """

    runs: list[int]
    finished: bool
    seeds: list[int]
    specs: list[RunSpec]
    terms: Terms
    queries: list[float]
    forwards: list[float]
    times: list[float]
    images: list[float]
    reward: list[Interval]
    held_out: list[Interval]
    metrics: dict[str, list[Interval]]
    held_out_metrics: dict[str, list[Interval]]
    deployed_at: list[int]
    deployed: list[Interval]
    deployed_metrics: dict[str, list[Interval]]
    peaks: dict[str, Peak]
    by_run: np.ndarray
    metrics_by_run: dict[str, np.ndarray]

    @property
    def finals(self) -> np.ndarray:
        """Each seed's mean reward at the end, (runs,)."""
        return self.by_run[:, -1]

    def places(self, seeds: Sequence[int]) -> list[int]:
        """Return the indices of these seeds' runs in ``runs`` and ``by_run``."""
        return [self.seeds.index(seed) for seed in seeds]


#: Task -> variant -> curve.
Curves = Mapping[str, Mapping[str, Curve]]


def curves(runs: Sequence[Run]) -> dict[str, dict[str, Curve]]:
    """Return task -> variant -> curve, in the order of the runs; seeds are put together.

    Raises:
        ValueError: runs of one variant on one task differ in more than their seed.
    """
    groups: dict[str, dict[str, list[int]]] = {}
    for index, run in enumerate(runs):
        if run.evaluations:
            groups.setdefault(run.task, {}).setdefault(run.variant, []).append(index)
    return {
        task: {variant: _curve(runs, indices) for variant, indices in by_variant.items()}
        for task, by_variant in groups.items()
    }


def _curve(all_runs: Sequence[Run], indices: Sequence[int]) -> Curve:
    one = all_runs[indices[0]]
    check_one_setting(one.task, one.variant, [all_runs[index].spec for index in indices])
    finished = [index for index in indices if all_runs[index].complete]
    chosen = finished or list(indices)
    runs = [all_runs[index] for index in chosen]
    steps = list(zip(*(run.evaluations for run in runs), strict=False))
    held_out = [found for step in steps if (found := [line.held_out for line in step if line.held_out])]

    deployed_at = [index for index, step in enumerate(steps) if all(line.deployed for line in step)]
    deployed = [[line.deployed for line in steps[index] if line.deployed] for index in deployed_at]

    def cost(name: str) -> list[float]:
        return [step[0].costs[name] for step in steps]  # the same for every seed

    metrics = _metrics(steps)
    return Curve(
        runs=chosen,
        finished=bool(finished),
        seeds=[run.seed for run in runs],
        specs=[run.spec for run in runs],
        terms=terms(runs[0].spec),
        queries=cost("reward_queries"),
        forwards=cost("forward_equivalents"),
        times=[sum(line.costs["seconds"] for line in step) / len(step) for step in steps],
        images=cost("images"),
        reward=summarise([[line.rewards for line in step] for step in steps]),
        held_out=summarise([[line.rewards for line in step] for step in held_out]),
        metrics=metrics,
        held_out_metrics=_metrics(held_out),
        deployed_at=deployed_at,
        deployed=summarise([[line.rewards for line in step] for step in deployed]),
        deployed_metrics=_metrics(deployed),
        peaks={name: _peak(steps, name, values) for name, values in metrics.items() if more_is_better(name)},
        by_run=np.array([[line.mean_reward for line in step] for step in steps]).T,
        metrics_by_run=_by_run(steps, list(metrics)),
    )


def _by_run(steps: Sequence[Sequence[Evaluation]], names: Sequence[str]) -> dict[str, np.ndarray]:
    found = {name: np.array([[line.metrics[name] for line in step] for step in steps]).T for name in names}
    held_out = [[line.held_out.mean_reward for line in step if line.held_out] for step in steps]
    if all(len(some) == len(step) for some, step in zip(held_out, steps, strict=True)):
        found[HELD_OUT] = np.array(held_out).T
    return found


def _metrics(steps: Sequence[Sequence[Scores]]) -> dict[str, list[Interval]]:
    """Return the metrics that every evaluation has, each over the seeds."""
    lines = [line for step in steps for line in step]
    names = [name for name in lines[0].metrics if all(name in line.metrics for line in lines)] if lines else []
    return {name: over_seeds([[line.metrics[name] for line in step] for step in steps]) for name in names}


def _peak(steps: Sequence[Sequence[Evaluation]], name: str, together: Sequence[Interval]) -> Peak:
    values = np.array([[line.metrics[name] for line in step] for step in steps])  # (evaluations, runs)
    best = np.nan_to_num(values, nan=-np.inf).argmax(0)
    highest = values[best, np.arange(values.shape[1])]
    queries = np.array([step[0].costs["reward_queries"] for step in steps])
    peak, at = (float(interquartile_mean(numbers)) for numbers in (highest, queries[best]))
    fallen = int((values[-1] < values[0]).sum())
    return Peak(together[0].estimate, peak, at, together[-1], best.tolist(), fallen)


def check_one_setting(task: str, variant: str, specs: Sequence[RunSpec]) -> None:
    """Check that runs can be put together in one curve.

    Raises:
        ValueError: they differ in more than their seed; the message names what.
    """
    first, *others = map(_setting, specs)
    different = sorted({key for other in others for key, value in other.items() if first.get(key) != value})
    if different:
        raise ValueError(
            f"runs of {variant} toward {task} differ in {', '.join(different)}, not only in their seed, and cannot be "
            "put together in one curve. Report each run's own folder, and give runs of other settings another --folder."
        )


def _setting(spec: RunSpec) -> dict[str, Any]:
    """Return all fields of a specification but the seed, by their last name."""
    data = spec.to_json()
    config = {key: value for key, value in data["config"].items() if key != "seed"}
    return {**config, **data["task"], **data["safeguards"], "reward_queries": spec.reward_queries}


def terms(spec: RunSpec) -> Terms:
    """Return what runs of a task must share to be compared; how often they are evaluated may differ."""
    return spec.task, spec.reward_queries, dataclasses.replace(spec.config.evaluation, every=1)


def check_one_comparison(task: str, specs: Sequence[tuple[str, RunSpec]]) -> None:
    """Check that runs of one task, given as variant and specification, can be compared.

    Raises:
        ValueError: they differ in their task, their reward queries or their evaluation.
    """
    first, own = specs[0]
    for variant, spec in specs[1:]:
        if terms(spec) != terms(own):
            raise ValueError(
                f"runs of {' and '.join(dict.fromkeys([first, variant]))} on {task} differ in their task, their reward "
                f"queries ({own.reward_queries} and {spec.reward_queries}) or their evaluation, and cannot be "
                "compared. Give runs of other terms another --folder and --results."
            )

"""Statistics over several tasks: normalised scores, and how probable it is that one variant is better than another."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.statistics import (
    Interval,
    Strata,
    interquartile_mean,
    optimality_gap,
    performance_profile,
    pooled_interquartile_mean,
    pooled_mean,
    probability_of_improvement,
    stratified_bootstrap,
)

_THRESHOLDS = 41
#: Scores that tables read the profiles at.
MARKS = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Scale:
    """How a task's rewards become scores: ``(reward - start) / unit``.

    Attributes:
        starts: variant -> the untuned model's evaluation reward; equal for variants of the same model.
        unit: the largest gain of any variant's interquartile mean at the end; if none gained, the largest loss.
    """

    starts: dict[str, float]
    unit: float

    def __str__(self) -> str:
        first = next(iter(self.starts.values()))
        if np.allclose(list(self.starts.values()), first):
            return f"0 is a reward of {first:.3f}, 1 is {first + self.unit:.3f}"
        return f"0 is each algorithm's own start, 1 a gain of {self.unit:.3f}"


@dataclass(frozen=True)
class Aggregate:
    """Statistics over tasks, of the seeds that every variant has on each of them; all tasks have equal weight.

    Attributes:
        tasks, variants, seeds: which.
        left_out: TASK/VARIANT/seed-N of runs that are not counted: other variants lack that task or seed.
        scales: task -> how its rewards become scores.
        scores: variant -> interquartile mean of its final scores over all runs of all tasks.
        means, gaps: variant -> their mean, and their optimality gap.
        efficiency: variant -> reward queries, and the interquartile mean at each of its evaluations.
        thresholds: scores at which the profiles are read; :data:`MARKS` are among them.
        profiles: variant -> share of its runs that end above each threshold.
    """

    tasks: list[str]
    variants: list[str]
    seeds: list[int]
    left_out: list[str]
    scales: dict[str, Scale]
    scores: dict[str, Interval]
    means: dict[str, Interval]
    gaps: dict[str, Interval]
    efficiency: dict[str, tuple[list[float], list[Interval]]]
    thresholds: list[float]
    profiles: dict[str, list[Interval]]


@dataclass(frozen=True)
class Ahead:
    """In how many of the seeds that both have, which begin from the same noise, each ends higher."""

    better: int
    worse: int
    seeds: int


@dataclass(frozen=True)
class Improvement:
    """Probability that a run of ``better`` ends higher than a run of ``worse``, whatever their seeds.

    Attributes:
        by_task: task -> the probability on it.
        together: averaged over these tasks; None for one task, and if tasks share runs.
        ahead: task -> the same seed by seed.
    """

    better: str
    worse: str
    by_task: dict[str, Interval]
    together: Interval | None
    ahead: dict[str, Ahead]

    def turned(self) -> "Improvement":
        """Return the same with the pair in the other order."""
        together = None if self.together is None else _opposite(self.together)
        by_task = {task: _opposite(probability) for task, probability in self.by_task.items()}
        ahead = {task: Ahead(one.worse, one.better, one.seeds) for task, one in self.ahead.items()}
        return Improvement(self.worse, self.better, by_task, together, ahead)


def _opposite(interval: Interval) -> Interval:
    return Interval(1 - interval.estimate, 1 - interval.high, 1 - interval.low, interval.over)


def shared(summary: Curves) -> list[str]:
    """Return the tasks that share a run with another task: nothing is pooled over such tasks.

    They are not independent samples, so intervals over all of them would be too narrow.
    """
    runs = {
        task: {spec for curve in by_variant.values() for spec in curve.specs} for task, by_variant in summary.items()
    }
    times = Counter(spec for found in runs.values() for spec in found)
    return [task for task, found in runs.items() if any(times[spec] > 1 for spec in found)]


def aggregate(summary: Curves) -> Aggregate | None:
    """Return the statistics over tasks.

    A task is counted if at least two variants have finished two seeds on equal terms; a variant, if it has done so on
    every such task.

    Returns:
        the statistics, or None if fewer than two variants have two seeds in common, or tasks share runs.
    """
    usable = {task: found for task, by_variant in summary.items() if (found := _usable(by_variant))}
    names = dict.fromkeys(name for found in usable.values() for name in found)
    variants = [name for name in names if all(name in found for found in usable.values())]
    counted = [found[name] for found in usable.values() for name in variants]
    seeds = sorted(set.intersection(*(set(curve.seeds) for curve in counted))) if counted else []
    if len(variants) < 2 or len(seeds) < 2 or shared(summary):
        return None
    left_out = [
        f"{task}/{name}/seed-{seed}"
        for task, by_variant in summary.items()
        for name, curve in by_variant.items()
        for seed in curve.seeds
        if task not in usable or name not in variants or seed not in seeds
    ]
    rewards = {  # variant -> task -> (runs, evaluations)
        name: {task: found[name].by_run[found[name].places(seeds)] for task, found in usable.items()}
        for name in variants
    }
    scales = {task: scale_of({name: by_task[task] for name, by_task in rewards.items()}) for task in usable}
    scores = {
        name: [(values - scales[task].starts[name]) / scales[task].unit for task, values in by_task.items()]
        for name, by_task in rewards.items()
    }
    queries = {name: [usable[task][name].queries for task in usable] for name in variants}
    return _statistics(list(usable), variants, seeds, left_out, scales, scores, queries)


def _usable(by_variant: Mapping[str, Curve]) -> dict[str, Curve]:
    """Return a task's variants with two finished seeds, or none if fewer than two are on equal terms."""
    found = {name: curve for name, curve in by_variant.items() if _has_seeds(curve)}
    return found if len(found) > 1 and len({curve.terms for curve in found.values()}) == 1 else {}


def _statistics(
    tasks: list[str],
    variants: list[str],
    seeds: list[int],
    left_out: list[str],
    scales: dict[str, Scale],
    scores: Mapping[str, list[np.ndarray]],
    queries: Mapping[str, Sequence[Sequence[float]]],
) -> Aggregate:
    """Return the statistics of scores: variant -> for each task (runs, evaluations)."""
    finals = {name: [values[:, -1] for values in by_task] for name, by_task in scores.items()}
    ends = np.array(list(finals.values()))
    thresholds = np.union1d(np.linspace(min(0.0, ends.min()), ends.max(), _THRESHOLDS), MARKS)

    def each(statistic: Callable[..., np.ndarray]) -> dict[str, Interval]:
        return {name: stratified_bootstrap([strata], statistic)[0] for name, strata in finals.items()}

    def profile(runs: Strata) -> np.ndarray:
        return performance_profile(runs, thresholds)

    return Aggregate(
        tasks,
        variants,
        seeds,
        left_out,
        scales,
        scores=each(pooled_interquartile_mean),
        means=each(pooled_mean),
        gaps=each(optimality_gap),
        efficiency={name: _efficiency(queries[name], by_task) for name, by_task in scores.items()},
        thresholds=thresholds.tolist(),
        profiles={name: stratified_bootstrap([strata], profile) for name, strata in finals.items()},
    )


def improvements(summary: Curves) -> list[Improvement]:
    """Return, for each pair of variants with two finished seeds each on a common task, how surely one is better.

    The variant with the higher probability is named first. Variants on unequal terms are not compared.
    """
    names = list(dict.fromkeys(name for by_variant in summary.values() for name in by_variant))
    pairs = (_improvement(summary, *pair) for pair in combinations(names, 2))
    return [found if _mean(found) >= 0.5 else found.turned() for found in pairs if found is not None]


def improvement(summary: Curves, better: str, worse: str) -> Improvement | None:
    """Return the probability for one pair in this order, or None if there is no task with two seeds of each."""
    names = list(dict.fromkeys(name for by_variant in summary.values() for name in by_variant))
    if better not in names or worse not in names or names.index(better) < names.index(worse):
        return _improvement(summary, better, worse)
    found = _improvement(summary, worse, better)
    return None if found is None else found.turned()


def _mean(found: Improvement) -> float:
    return float(np.mean([probability.estimate for probability in found.by_task.values()]))


def _improvement(summary: Curves, first: str, second: str) -> Improvement | None:
    pairs = {
        task: (by_variant[first], by_variant[second])
        for task, by_variant in summary.items()
        if first in by_variant and second in by_variant and _comparable(by_variant[first], by_variant[second])
    }
    if not pairs:
        return None

    def probability(tasks: Sequence[str]) -> Interval:
        groups = [[pairs[task][side].finals for task in tasks] for side in (0, 1)]
        return stratified_bootstrap(groups, probability_of_improvement)[0]

    together = probability(list(pairs)) if len(pairs) > 1 and not shared(summary) else None
    ahead = {task: _ahead(*pair) for task, pair in pairs.items()}
    return Improvement(first, second, {task: probability([task]) for task in pairs}, together, ahead)


def _has_seeds(curve: Curve) -> bool:
    return curve.finished and len(curve.runs) > 1


def _comparable(first: Curve, second: Curve) -> bool:
    return _has_seeds(first) and _has_seeds(second) and first.terms == second.terms


def _ahead(first: Curve, second: Curve) -> Ahead:
    common = [seed for seed in first.seeds if seed in second.seeds]
    ours, theirs = first.finals[first.places(common)], second.finals[second.places(common)]
    return Ahead(int((ours > theirs).sum()), int((ours < theirs).sum()), len(common))


def scale_of(rewards: Mapping[str, np.ndarray]) -> Scale:
    """Return a task's scale, from variant -> rewards (runs, evaluations), the first evaluation before training."""
    starts = {name: float(values[:, 0].mean()) for name, values in rewards.items()}
    gains = [float(interquartile_mean(values[:, -1], axis=0)) - starts[name] for name, values in rewards.items()]
    return Scale(starts, max(gains) if max(gains) > 0 else max(map(abs, gains)) or 1.0)


def _efficiency(queries: Sequence[Sequence[float]], scores: Sequence[np.ndarray]) -> tuple[list[float], list[Interval]]:
    """Return reward queries and the pooled score at each; between its evaluations a task keeps its latest score."""
    end = min(found[-1] for found in queries)
    marks = [q for q in queries[0] if q <= end]
    latest = [np.searchsorted(found, marks, side="right") - 1 for found in queries]
    strata = [values[:, places] for values, places in zip(scores, latest, strict=True)]
    return marks, stratified_bootstrap([strata], pooled_interquartile_mean)

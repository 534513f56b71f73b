"""What several tasks say together: normalised scores, their statistics, and which variant beats which."""

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
        starts: variant -> the untuned model's evaluation reward; the same for all that begin at the same model.
        unit: the largest gain, of any variant's interquartile mean, at the end of the budget; where none gained, the
            largest loss.
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
    """Statistics over tasks, of the seeds that every variant has on every one of them: all tasks count alike.

    Attributes:
        tasks, variants, seeds: which.
        left_out: TASK/VARIANT/seed-N of runs that are not counted: unfinished, or others lack that task or seed.
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
    """Of seeds that both have, and that begin from the same noise, in how many each ends higher."""

    better: int
    worse: int
    seeds: int


@dataclass(frozen=True)
class Improvement:
    """Probability that a run of ``better`` ends higher than a run of ``worse``, whatever their seeds.

    Attributes:
        by_task: task -> the probability on it.
        together: averaged over these tasks; None for one task, and where tasks share runs.
        ahead: task -> the same seed by seed.
    """

    better: str
    worse: str
    by_task: dict[str, Interval]
    together: Interval | None
    ahead: dict[str, Ahead]


def shared(summary: Curves) -> list[str]:
    """Return the tasks that hold a run which stands in another task too: nothing is pooled over such tasks.

    They are no independent samples, so that intervals over all of them would be too narrow.
    """
    runs = {
        task: {spec for curve in by_variant.values() for spec in curve.specs} for task, by_variant in summary.items()
    }
    times = Counter(spec for found in runs.values() for spec in found)
    return [task for task, found in runs.items() if any(times[spec] > 1 for spec in found)]


def aggregate(summary: Curves) -> Aggregate | None:
    """Return the statistics over tasks, or None where fewer than two variants have two seeds in common.

    None too where tasks share runs (:func:`shared`).

    A task is counted where at least two variants have finished two seeds and were trained and evaluated on equal terms;
    a variant, where it has them on every such task.
    """
    if shared(summary):
        return None
    usable = {
        task: found
        for task, by_variant in summary.items()
        if len(found := {name: curve for name, curve in by_variant.items() if _has_seeds(curve)}) > 1
        and len({curve.terms for curve in found.values()}) == 1
    }
    names = dict.fromkeys(name for found in usable.values() for name in found)
    variants = [name for name in names if all(name in found for found in usable.values())]
    counted = [found[name] for found in usable.values() for name in variants]
    seeds = sorted(set.intersection(*(set(curve.seeds) for curve in counted))) if counted else []
    if len(variants) < 2 or len(seeds) < 2:
        return None
    rewards = {  # variant -> task -> (runs, evaluations)
        name: {task: found[name].by_run[found[name].places(seeds)] for task, found in usable.items()}
        for name in variants
    }
    scales = {task: _scale({name: by_task[task] for name, by_task in rewards.items()}) for task in usable}
    scores = {
        name: {task: (values - scales[task].starts[name]) / scales[task].unit for task, values in by_task.items()}
        for name, by_task in rewards.items()
    }
    finals = {name: [values[:, -1] for values in by_task.values()] for name, by_task in scores.items()}
    ends = np.array(list(finals.values()))
    thresholds = np.union1d(np.linspace(min(0.0, ends.min()), ends.max(), _THRESHOLDS), MARKS)
    return Aggregate(
        tasks=list(usable),
        variants=variants,
        seeds=seeds,
        left_out=[
            f"{task}/{name}/seed-{seed}"
            for task, by_variant in summary.items()
            for name, curve in by_variant.items()
            for seed in curve.seeds
            if task not in usable or name not in variants or seed not in seeds
        ],
        scales=scales,
        scores=_each(finals, pooled_interquartile_mean),
        means=_each(finals, pooled_mean),
        gaps=_each(finals, optimality_gap),
        efficiency={
            name: _efficiency([usable[task][name].queries for task in usable], list(by_task.values()))
            for name, by_task in scores.items()
        },
        thresholds=thresholds.tolist(),
        profiles={name: stratified_bootstrap([strata], _profile_at(thresholds)) for name, strata in finals.items()},
    )


def improvements(summary: Curves) -> list[Improvement]:
    """Return, for each pair of variants that finished two seeds each on a common task, which is better how surely.

    Of a pair the one that is named first is the one with the higher probability. Where two variants were not trained
    and evaluated on equal terms, nothing is said.
    """
    names = list(dict.fromkeys(name for by_variant in summary.values() for name in by_variant))
    pooled = not shared(summary)
    found = []
    for first, second in combinations(names, 2):
        pairs = {
            task: (by_variant[first], by_variant[second])
            for task, by_variant in summary.items()
            if first in by_variant and second in by_variant and _comparable(by_variant[first], by_variant[second])
        }
        if pairs:
            found.append(_improvement(first, second, pairs, pooled))
    return found


def improvement(summary: Curves, better: str, worse: str) -> Improvement | None:
    """Return the probability for one pair in this order, or None where it has no task with two seeds of each."""
    pair = {task: _only(by_variant, (better, worse)) for task, by_variant in summary.items()}
    for found in improvements(pair):
        return found if found.better == better else _turned(found)
    return None


def _has_seeds(curve: Curve) -> bool:
    return curve.finished and len(curve.runs) > 1


def _comparable(first: Curve, second: Curve) -> bool:
    return _has_seeds(first) and _has_seeds(second) and first.terms == second.terms


def _improvement(first: str, second: str, pairs: Mapping[str, tuple[Curve, Curve]], pooled: bool) -> Improvement:
    def probability(tasks: Sequence[str]) -> Interval:
        groups = [[pairs[task][side].finals for task in tasks] for side in (0, 1)]
        return stratified_bootstrap(groups, probability_of_improvement)[0]

    by_task = {task: probability([task]) for task in pairs}
    together = probability(list(pairs)) if pooled and len(pairs) > 1 else None
    mean = np.mean([found.estimate for found in by_task.values()])
    found = Improvement(first, second, by_task, together, {task: _ahead(*pairs[task]) for task in pairs})
    return found if mean >= 0.5 else _turned(found)


def _ahead(first: Curve, second: Curve) -> Ahead:
    common = [seed for seed in first.seeds if seed in second.seeds]
    ours, theirs = first.finals[first.places(common)], second.finals[second.places(common)]
    return Ahead(int((ours > theirs).sum()), int((ours < theirs).sum()), len(common))


def _turned(found: Improvement) -> Improvement:
    """Return the same with the pair in the other order."""
    together = None if found.together is None else _opposite(found.together)
    by_task = {task: _opposite(probability) for task, probability in found.by_task.items()}
    ahead = {task: Ahead(one.worse, one.better, one.seeds) for task, one in found.ahead.items()}
    return Improvement(found.worse, found.better, by_task, together, ahead)


def _opposite(interval: Interval) -> Interval:
    return Interval(1 - interval.estimate, 1 - interval.high, 1 - interval.low, interval.over)


def _only(by_variant: Mapping[str, Curve], names: Sequence[str]) -> dict[str, Curve]:
    return {name: by_variant[name] for name in names if name in by_variant}


def _scale(rewards: Mapping[str, np.ndarray]) -> Scale:
    starts = {name: float(values[:, 0].mean()) for name, values in rewards.items()}
    gains = [float(interquartile_mean(values[:, -1], axis=0)) - starts[name] for name, values in rewards.items()]
    return Scale(starts, max(gains) if max(gains) > 0 else max(map(abs, gains)) or 1.0)


def _each(finals: Mapping[str, Strata], statistic: Callable[..., np.ndarray]) -> dict[str, Interval]:
    return {name: stratified_bootstrap([strata], statistic)[0] for name, strata in finals.items()}


def _profile_at(thresholds: np.ndarray) -> Callable[[Strata], np.ndarray]:
    return lambda scores: performance_profile(scores, thresholds)


def _efficiency(queries: Sequence[Sequence[float]], scores: Sequence[np.ndarray]) -> tuple[list[float], list[Interval]]:
    """Return reward queries, and the pooled score at each; a task evaluated more seldom keeps its latest score."""
    end = min(found[-1] for found in queries)
    marks = [q for q in queries[0] if q <= end]
    latest = [np.searchsorted(found, marks, side="right") - 1 for found in queries]
    strata = [values[:, places] for values, places in zip(scores, latest, strict=True)]
    return marks, stratified_bootstrap([strata], pooled_interquartile_mean)

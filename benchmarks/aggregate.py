"""What several tasks say together: normalised scores, their statistics, and which variant beats which."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from benchmarks.curves import Curve, Curves
from benchmarks.statistics import (
    Interval,
    Strata,
    performance_profile,
    pooled_interquartile_mean,
    probability_of_improvement,
    stratified_bootstrap,
)

_THRESHOLDS = 41


@dataclass(frozen=True)
class Scale:
    """How a task's rewards become scores: ``(reward - start) / unit``.

    Attributes:
        start: the untuned model's evaluation reward.
        unit: the largest gain, of any variant's interquartile mean, at the end of the budget; where none gained, the
            largest loss.
    """

    start: float
    unit: float


@dataclass(frozen=True)
class Aggregate:
    """Statistics over the tasks on which all variants have at least two seeds.

    Attributes:
        tasks, variants: which.
        scales: task -> how its rewards become scores.
        scores: variant -> interquartile mean of its final scores over all runs of all tasks.
        efficiency: variant -> reward queries, and the same statistic at each of its evaluations.
        thresholds: scores at which the profiles are read.
        profiles: variant -> share of its runs that end above each threshold.
    """

    tasks: list[str]
    variants: list[str]
    scales: dict[str, Scale]
    scores: dict[str, Interval]
    efficiency: dict[str, tuple[list[float], list[Interval]]]
    thresholds: list[float]
    profiles: dict[str, list[Interval]]


@dataclass(frozen=True)
class Improvement:
    """Probability that a run of ``better`` ends higher than a run of ``worse``.

    Attributes:
        by_task: task -> the probability on it.
        together: averaged over these tasks; None for one task.
    """

    better: str
    worse: str
    by_task: dict[str, Interval]
    together: Interval | None


def aggregate(summary: Curves) -> Aggregate | None:
    """Return the statistics over tasks, or None where fewer than two variants have two seeds on a task."""
    usable = {
        task: {name: curve for name, curve in by_variant.items() if len(curve.runs) > 1}
        for task, by_variant in summary.items()
    }
    tasks = [task for task, by_variant in usable.items() if len(by_variant) > 1]
    names = dict.fromkeys(name for task in tasks for name in usable[task])
    variants = [name for name in names if all(name in usable[task] for task in tasks)]
    if len(variants) < 2:
        return None
    scales = {task: _scale([usable[task][name] for name in variants]) for task in tasks}
    curves_of = {name: [usable[task][name] for task in tasks] for name in variants}
    finals = {
        name: [_scores(curve.finals, scales[task]) for task, curve in zip(tasks, curves_of[name], strict=True)]
        for name in variants
    }
    low = min(float(values.min()) for strata in finals.values() for values in strata)
    high = max(float(values.max()) for strata in finals.values() for values in strata)
    thresholds = np.linspace(min(0.0, low), high, _THRESHOLDS)
    return Aggregate(
        tasks=tasks,
        variants=variants,
        scales=scales,
        scores={name: stratified_bootstrap([strata], pooled_interquartile_mean)[0] for name, strata in finals.items()},
        efficiency={name: _efficiency(found, [scales[task] for task in tasks]) for name, found in curves_of.items()},
        thresholds=thresholds.tolist(),
        profiles={name: stratified_bootstrap([strata], _profile_at(thresholds)) for name, strata in finals.items()},
    )


def improvements(summary: Curves) -> list[Improvement]:
    """Return, for each pair of variants with at least two seeds each on a common task, which is better how surely.

    Of a pair the one that is named first is the one with the higher probability.
    """
    names = list(dict.fromkeys(name for by_variant in summary.values() for name in by_variant))
    found = []
    for first, second in combinations(names, 2):
        pairs = {
            task: (by_variant[first], by_variant[second])
            for task, by_variant in summary.items()
            if min(len(by_variant[name].runs) if name in by_variant else 0 for name in (first, second)) > 1
        }
        if pairs:
            found.append(_improvement(first, second, pairs))
    return found


def improvement(summary: Curves, better: str, worse: str) -> Improvement | None:
    """Return the probability for one pair in this order, or None where it has no task with two seeds of each."""
    for found in improvements({task: _only(by_variant, (better, worse)) for task, by_variant in summary.items()}):
        return found if found.better == better else _turned(found)
    return None


def _improvement(first: str, second: str, pairs: Mapping[str, tuple[Curve, Curve]]) -> Improvement:
    def probability(tasks: Sequence[str]) -> Interval:
        groups = [[pairs[task][side].finals for task in tasks] for side in (0, 1)]
        return stratified_bootstrap(groups, probability_of_improvement)[0]

    by_task = {task: probability([task]) for task in pairs}
    together = probability(list(pairs)) if len(pairs) > 1 else None
    mean = together.estimate if together else next(iter(by_task.values())).estimate
    found = Improvement(first, second, by_task, together)
    return found if mean >= 0.5 else _turned(found)


def _turned(found: Improvement) -> Improvement:
    """Return the same with the pair in the other order."""
    together = None if found.together is None else _opposite(found.together)
    by_task = {task: _opposite(probability) for task, probability in found.by_task.items()}
    return Improvement(found.worse, found.better, by_task, together)


def _opposite(interval: Interval) -> Interval:
    return Interval(1 - interval.estimate, 1 - interval.high, 1 - interval.low, interval.over)


def _only(by_variant: Mapping[str, Curve], names: Sequence[str]) -> dict[str, Curve]:
    return {name: by_variant[name] for name in names if name in by_variant}


def _scale(found: Sequence[Curve]) -> Scale:
    start = float(np.mean([curve.by_run[:, 0].mean() for curve in found]))
    gains = [curve.reward[-1].estimate - start for curve in found]
    return Scale(start, max(gains) if max(gains) > 0 else max(map(abs, gains)) or 1.0)


def _scores(rewards: np.ndarray, scale: Scale) -> np.ndarray:
    return (rewards - scale.start) / scale.unit


def _profile_at(thresholds: np.ndarray) -> Callable[[Strata], np.ndarray]:
    return lambda scores: performance_profile(scores, thresholds)


def _efficiency(found: Sequence[Curve], scales: Sequence[Scale]) -> tuple[list[float], list[Interval]]:
    """Return reward queries, and the pooled score at each; a task evaluated more seldom keeps its latest score."""
    end = min(curve.queries[-1] for curve in found)
    queries = [q for q in found[0].queries if q <= end]
    strata = []
    for curve, scale in zip(found, scales, strict=True):
        latest = np.searchsorted(curve.queries, queries, side="right") - 1
        strata.append(_scores(curve.by_run[:, latest], scale))
    return queries, stratified_bootstrap([strata], pooled_interquartile_mean)

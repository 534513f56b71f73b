"""Statistics over seeds and tasks, after Agarwal et al. 2021 (arXiv 2108.13264), whose own package is rliable.

Scores come as strata: for each task one array whose first axis are the runs. A resample draws runs with replacement
within each task, so that every task keeps its number of runs. Where there are at most :data:`RESAMPLES` different
resamples, every one is counted with the probability that it is drawn, and intervals are exact: up to nine runs alone
(five are 126 multisets), two samples of five (15,876). Else as many are drawn.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

#: The most resamples that are counted one by one, and how many are drawn where there are more.
RESAMPLES = 50_000
_PART = 2_000  # resamples held at once
_SIDE = 40  # a 95 % interval leaves one part in 40 out on each side

#: One array (runs,) or (runs, k) a task.
Strata = Sequence[np.ndarray]
#: The same with the resamples in front, (resamples, runs) or (resamples, runs, k) a task.
Resamples = Sequence[np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A point estimate with a 95 % interval.

    Attributes:
        low, high: of the interval; NaN where there is none.
        over: what the interval is over: ``"seeds"``, ``"images"``, or ``"nothing"`` for one number.
    """

    estimate: float
    low: float
    high: float
    over: str

    @property
    def known(self) -> bool:
        """Whether there is an interval: not of one number, nor where something could not be measured."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half: a quarter of the values, rounded down, is cut off at each end (scipy's trim_mean).

    Fewer than four values have no quarter to cut: theirs is the mean. Where a value is NaN, so is the mean.
    """
    ordered = np.sort(values, axis=axis)
    n = ordered.shape[axis]
    cut = n // 4
    middle = np.take(ordered, range(cut, n - cut), axis=axis).mean(axis)
    return np.where(np.isnan(values).any(axis), np.nan, middle)


def summarise(evaluations: Sequence[Sequence[Sequence[float]]]) -> list[Interval]:
    """Summarise a curve's evaluations, each of them the per-image rewards of one seed, or of several.

    With one seed the estimate is the mean over images, and the interval says how much other evaluation images would
    change it, nothing about other training runs. With several, it is the interquartile mean of the seeds' means.
    """
    if evaluations and all(len(by_seed) == 1 for by_seed in evaluations):
        return _means_over_images(np.array([rewards for (rewards,) in evaluations], dtype=np.float64))
    return over_seeds([[float(np.mean(rewards)) for rewards in by_seed] for by_seed in evaluations])


def over_seeds(evaluations: Sequence[Sequence[float]]) -> list[Interval]:
    """Summarise a curve's evaluations, each of them one number a seed: interquartile means.

    Seeds are resampled with all their evaluations. One seed's number has no interval.
    """
    if all(len(by_seed) == 1 for by_seed in evaluations):
        return [Interval(float(value), math.nan, math.nan, "nothing") for (value,) in evaluations]
    return stratified_bootstrap([[np.array(evaluations).T]], pooled_interquartile_mean)


def _means_over_images(rewards: np.ndarray) -> list[Interval]:
    """Mean of each evaluation's (evaluations, images), with all evaluations of an image resampled together."""
    images = rewards.shape[1]

    def means(places: Resamples) -> np.ndarray:
        """How often each image is drawn gives all evaluations' means as one product."""
        (drawn,) = places
        cells = drawn + images * np.arange(len(drawn))[:, None]
        times = np.bincount(cells.ravel(), minlength=len(drawn) * images).reshape(len(drawn), images)
        return times @ rewards.T / images

    return stratified_bootstrap([[np.arange(images)]], means, over="images")


def stratified_bootstrap(
    groups: Sequence[Strata], statistic: Callable[..., np.ndarray], seed: int = 0, over: str = "seeds"
) -> list[Interval]:
    """Stratified percentile bootstrap of a statistic of one or more algorithms' scores.

    An interval's low end is the smallest value at or below which at least 2.5 % of the resamples lie, its high end the
    largest at or above which at least 2.5 % lie: both are values that a resample has, and the interval of the negated
    statistic is the negated interval.

    Args:
        groups: each algorithm's strata; runs of different algorithms are resampled independently.
        statistic: takes each group's resamples; returns (resamples,), or (resamples, k) for k numbers at once.
        seed: of the resampling, where resamples are drawn.
        over: what the interval is over.

    Returns:
        one interval for each of the k numbers.
    """
    estimates = _as_columns(statistic(*([np.asarray(values)[None] for values in strata] for strata in groups)))[0]
    draws, weights = [], []
    for places, weight in _resamples([len(values) for strata in groups for values in strata], seed):
        place = iter(places)
        resampled = ([np.asarray(values)[next(place)] for values in strata] for strata in groups)
        draws.append(_as_columns(statistic(*resampled)))
        weights.append(weight)
    lows, highs = _ends(np.concatenate(draws), np.concatenate(weights))
    return [
        Interval(float(estimate), float(low), float(high), over)
        for estimate, low, high in zip(estimates, lows, highs, strict=True)
    ]


def _resamples(sizes: Sequence[int], seed: int) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """Yield resamples of strata of these sizes, part by part.

    Each part is (m, size) indices for each stratum, and (m,) in how many of all equally likely draws each comes up.
    """
    if math.prod(math.comb(2 * size - 1, size) for size in sizes) <= RESAMPLES:
        multisets, times = zip(*(_multisets(size) for size in sizes), strict=True)
        joint = np.indices([len(found) for found in times]).reshape(len(sizes), -1)
        for start in range(0, joint.shape[1], _PART):
            part = joint[:, start : start + _PART]
            weight = math.prod(found[which] for found, which in zip(times, part, strict=True))
            yield [found[which] for found, which in zip(multisets, part, strict=True)], np.asarray(weight)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, RESAMPLES, _PART):
        count = min(_PART, RESAMPLES - start)
        yield [rng.integers(size, size=(count, size)) for size in sizes], np.ones(count, dtype=np.int64)


def _multisets(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return each multiset of ``size`` of ``size`` things once, (m, size), and how many ordered draws give it, (m,)."""
    found = np.array(list(itertools.combinations_with_replacement(range(size), size)))
    times = (found[:, :, None] == np.arange(size)).sum(1)
    factorials = np.array([math.factorial(k) for k in range(size + 1)])
    return found, math.factorial(size) // factorials[times].prod(1)


def _ends(draws: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each column's (2, k) ends of draws (m, k) that count as often as weights (m,) say; NaN where one is."""
    order = draws.argsort(axis=0)
    upto = weights[order].cumsum(axis=0)
    total = weights.sum()
    places = np.stack([(upto * _SIDE < total).sum(0), (upto * _SIDE <= total * (_SIDE - 1)).sum(0)])
    ends = np.take_along_axis(draws, np.take_along_axis(order, places, axis=0), axis=0)
    return np.where(np.isnan(draws).any(0), np.nan, ends)


def _as_columns(numbers: np.ndarray) -> np.ndarray:
    return numbers[:, None] if numbers.ndim == 1 else numbers


def pooled_interquartile_mean(scores: Resamples) -> np.ndarray:
    """Interquartile mean over the runs of all tasks together: (resamples,) or (resamples, k)."""
    return interquartile_mean(np.concatenate(scores, axis=1), axis=1)


def pooled_mean(scores: Resamples) -> np.ndarray:
    """Mean over the runs of all tasks together: (resamples,) or (resamples, k)."""
    return np.concatenate(scores, axis=1).mean(1)


def optimality_gap(scores: Resamples) -> np.ndarray:
    """How far the runs of all tasks stay below a score of 1, on average, what is above not counted: (resamples,)."""
    return np.maximum(1 - np.concatenate(scores, axis=1), 0).mean(1)


def performance_profile(scores: Resamples, thresholds: np.ndarray) -> np.ndarray:
    """Share of the runs of all tasks whose score is above each of k thresholds: (resamples, k)."""
    runs = np.concatenate(scores, axis=1)
    return (runs[:, :, None] > thresholds).mean(1)


def probability_of_improvement(scores: Resamples, others: Resamples) -> np.ndarray:
    """Probability that a run of one algorithm scores higher than a run of another, averaged over tasks: (resamples,).

    On one task it is the Mann-Whitney statistic, the share of pairs (x, y) with x > y, a tie counting one half.
    """
    by_task = []
    for x, y in zip(scores, others, strict=True):
        gap = x[:, :, None] - y[:, None, :]
        by_task.append(((gap > 0) + 0.5 * (gap == 0)).mean((1, 2)))
    return np.mean(by_task, axis=0)

"""Statistics over seeds and tasks, after Agarwal et al. 2021 (arXiv 2108.13264), whose own package is rliable.

Scores come as strata: one array per task, whose first axis is the runs. A resample draws runs with replacement within
each task, so that every task keeps its number of runs. If there are at most :data:`RESAMPLES` different resamples, each
is counted with its probability and intervals are exact: up to nine runs of one variant (five give 126 multisets), two
samples of five (15,876). Otherwise as many are drawn.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

#: The most resamples that are counted one by one, and how many are drawn if there are more.
RESAMPLES = 50_000
_PART = 2_000  # resamples held at once
_SIDE = 40  # a 95 % interval leaves one part in 40 out on each side

#: One array (runs,) or (runs, k) per task.
Strata = Sequence[np.ndarray]
#: The same with the resamples in front, (resamples, runs) or (resamples, runs, k) per task.
Resamples = Sequence[np.ndarray]


@dataclass(frozen=True)
class Interval:
    """A point estimate with a 95 % interval.

    Attributes:
        low, high: of the interval; NaN if there is none.
        over: what the interval is over: ``"seeds"``, ``"images"``, or ``"nothing"`` for one number.
    """

    estimate: float
    low: float
    high: float
    over: str

    @property
    def known(self) -> bool:
        """Whether there is an interval: not for one number, nor if something could not be measured."""
        return math.isfinite(self.low) and math.isfinite(self.high)


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Return the mean of the middle half: a quarter of the values, rounded down, is cut at each end.

    Of fewer than four values it is the mean, as in scipy's trim_mean. If a value is NaN, so is the mean.
    """
    ordered = np.sort(values, axis=axis)
    n = ordered.shape[axis]
    cut = n // 4
    middle = np.take(ordered, range(cut, n - cut), axis=axis).mean(axis)
    return np.where(np.isnan(values).any(axis), np.nan, middle)


def summarise(evaluations: Sequence[Sequence[Sequence[float]]]) -> list[Interval]:
    """Return each evaluation's interval, from the per-image rewards of one seed or several.

    With one seed the estimate is the mean over images, and the interval shows how much other evaluation images would
    change it, nothing about other training runs. With several it is the interquartile mean of the seeds' means.
    """
    if evaluations and all(len(by_seed) == 1 for by_seed in evaluations):
        return _means_over_images(np.array([rewards for (rewards,) in evaluations], dtype=np.float64))
    return over_seeds([[float(np.mean(rewards)) for rewards in by_seed] for by_seed in evaluations])


def over_seeds(evaluations: Sequence[Sequence[float]]) -> list[Interval]:
    """Return each evaluation's interquartile mean with its interval, from one number per seed.

    Seeds are resampled with all their evaluations. The number of one seed has no interval.
    """
    if all(len(by_seed) == 1 for by_seed in evaluations):
        return [Interval(float(value), math.nan, math.nan, "nothing") for (value,) in evaluations]
    return stratified_bootstrap([[np.array(evaluations).T]], pooled_interquartile_mean)


def _means_over_images(rewards: np.ndarray) -> list[Interval]:
    """Return the means of rewards (evaluations, images); all evaluations of an image are resampled together."""
    images = rewards.shape[1]

    def means(places: Resamples) -> np.ndarray:
        """Return all evaluations' means as one product with how often each image is drawn."""
        (drawn,) = places
        cells = drawn + images * np.arange(len(drawn))[:, None]
        times = np.bincount(cells.ravel(), minlength=len(drawn) * images).reshape(len(drawn), images)
        return times @ rewards.T / images

    return stratified_bootstrap([[np.arange(images)]], means, over="images")


def stratified_bootstrap(
    groups: Sequence[Strata], statistic: Callable[..., np.ndarray], seed: int = 0, over: str = "seeds"
) -> list[Interval]:
    """Return the stratified percentile bootstrap of a statistic of one or more algorithms' scores.

    The low end of an interval is the smallest value with at least 2.5 % of the resamples at or below it, the high end
    the largest with at least 2.5 % at or above it. So the interval of the negated statistic is the negated interval.

    Args:
        groups: each algorithm's strata; runs of different algorithms are resampled independently.
        statistic: takes each group's resamples; returns (resamples,), or (resamples, k) for k numbers at once.
        seed: of the resampling, if resamples are drawn.
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

    Each part is (m, size) indices for each stratum, and (m,) the number of equally likely draws that give each.
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
    """Return each column's interval (2, k) of draws (m, k) with weights (m,); NaN if a draw is NaN."""
    order = draws.argsort(axis=0)
    upto = weights[order].cumsum(axis=0)
    total = weights.sum()
    places = np.stack([(upto * _SIDE < total).sum(0), (upto * _SIDE <= total * (_SIDE - 1)).sum(0)])
    ends = np.take_along_axis(draws, np.take_along_axis(order, places, axis=0), axis=0)
    return np.where(np.isnan(draws).any(0), np.nan, ends)


def _as_columns(numbers: np.ndarray) -> np.ndarray:
    return numbers[:, None] if numbers.ndim == 1 else numbers


def pooled_interquartile_mean(scores: Resamples) -> np.ndarray:
    """Return the interquartile mean over the runs of all tasks together: (resamples,) or (resamples, k)."""
    return interquartile_mean(np.concatenate(scores, axis=1), axis=1)


def pooled_mean(scores: Resamples) -> np.ndarray:
    """Return the mean over the runs of all tasks together: (resamples,) or (resamples, k)."""
    return np.concatenate(scores, axis=1).mean(1)


def optimality_gap(scores: Resamples) -> np.ndarray:
    """Return the mean distance of the runs of all tasks below a score of 1; above 1 it is 0: (resamples,)."""
    return np.maximum(1 - np.concatenate(scores, axis=1), 0).mean(1)


def performance_profile(scores: Resamples, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of the runs of all tasks with a score above each of k thresholds: (resamples, k)."""
    runs = np.concatenate(scores, axis=1)
    return (runs[:, :, None] > thresholds).mean(1)


def probability_of_improvement(scores: Resamples, others: Resamples) -> np.ndarray:
    """Return the probability that a run of one algorithm scores higher than one of another, averaged over tasks.

    On one task it is the Mann-Whitney statistic: the share of pairs (x, y) with x > y, a tie counting one half.
    """
    by_task = []
    for x, y in zip(scores, others, strict=True):
        gap = x[:, :, None] - y[:, None, :]
        by_task.append(((gap > 0) + 0.5 * (gap == 0)).mean((1, 2)))
    return np.mean(by_task, axis=0)

"""Statistics over seeds and tasks, after Agarwal et al. 2021 (arXiv 2108.13264), whose own package is rliable.

Scores come as strata: for each task one array whose first axis are the runs. A resample draws runs with replacement
within each task, so that every task keeps its number of runs; 95 % intervals are the resamples' percentiles.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)

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


def bootstrap(values: Sequence[float], statistic: Callable[..., np.ndarray], over: str, seed: int = 0) -> Interval:
    """Percentile bootstrap of a statistic that takes ``axis``; values: one a seed, or one an image."""
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = statistic(data[rng.integers(len(data), size=(_RESAMPLES, len(data)))], axis=1)
    low, high = np.percentile(draws, _PERCENTILES)
    return Interval(float(statistic(data, axis=0)), float(low), float(high), over)


def summarise(evaluations: Sequence[Sequence[Sequence[float]]]) -> list[Interval]:
    """Summarise a curve's evaluations, each of them the per-image rewards of one seed, or of several.

    With one seed the estimate is the mean over images, and the interval says how much other evaluation images would
    change it, nothing about other training runs. With several, it is the interquartile mean of the seeds' means.
    """
    if all(len(by_seed) == 1 for by_seed in evaluations):
        return [bootstrap(rewards, np.mean, "images") for (rewards,) in evaluations]
    return over_seeds([[float(np.mean(rewards)) for rewards in by_seed] for by_seed in evaluations])


def over_seeds(evaluations: Sequence[Sequence[float]]) -> list[Interval]:
    """Summarise a curve's evaluations, each of them one number a seed: interquartile means.

    Seeds are resampled with all their evaluations. One seed's number has no interval.
    """
    if all(len(by_seed) == 1 for by_seed in evaluations):
        return [Interval(float(value), math.nan, math.nan, "nothing") for (value,) in evaluations]
    return stratified_bootstrap([[np.array(evaluations).T]], pooled_interquartile_mean)


def stratified_bootstrap(
    groups: Sequence[Strata], statistic: Callable[..., np.ndarray], seed: int = 0
) -> list[Interval]:
    """Stratified percentile bootstrap of a statistic of one or more algorithms' scores.

    Args:
        groups: each algorithm's strata; runs of different algorithms are resampled independently.
        statistic: takes each group's resamples; returns (resamples,), or (resamples, k) for k numbers at once.
        seed: of the resampling.

    Returns:
        one interval for each of the k numbers.
    """
    rng = np.random.default_rng(seed)
    draws = _as_columns(statistic(*([_resample(values, rng) for values in strata] for strata in groups)))
    estimates = _as_columns(statistic(*([np.asarray(values)[None] for values in strata] for strata in groups)))[0]
    lows, highs = np.percentile(draws, _PERCENTILES, axis=0)
    return [
        Interval(float(estimate), float(low), float(high), "seeds")
        for estimate, low, high in zip(estimates, lows, highs, strict=True)
    ]


def _resample(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)[rng.integers(len(values), size=(_RESAMPLES, len(values)))]


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

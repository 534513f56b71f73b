"""Intervals: over evaluation images for one seed, over seeds for several (Agarwal et al. 2021, arXiv 2108.13264)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A point estimate with a 95 % interval, and what the interval is over (``"seeds"`` or ``"images"``)."""

    estimate: float
    low: float
    high: float
    over: str


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half: a quarter of the values, rounded down, is cut off at each end (scipy's trim_mean)."""
    ordered = np.sort(values, axis=axis)
    n = ordered.shape[axis]
    cut = n // 4
    return np.take(ordered, range(cut, n - cut), axis=axis).mean(axis)


def bootstrap(values: Sequence[float], statistic: Callable[..., np.ndarray], over: str, seed: int = 0) -> Interval:
    """Percentile bootstrap of a statistic that takes ``axis``; values: one a seed, or one an image."""
    data = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    draws = statistic(data[rng.integers(len(data), size=(_RESAMPLES, len(data)))], axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    return Interval(float(statistic(data, axis=0)), float(low), float(high), over)


def summarise(rewards_by_seed: Sequence[Sequence[float]]) -> Interval:
    """Summarise a run's evaluation: per-image rewards of one seed, or of several.

    With one seed the estimate is the mean over images, and the interval says how much other evaluation images would
    change it, nothing about other training runs. With several, it is the interquartile mean of the seeds' means.
    """
    if len(rewards_by_seed) == 1:
        return bootstrap(rewards_by_seed[0], np.mean, "images")
    return bootstrap([float(np.mean(rewards)) for rewards in rewards_by_seed], interquartile_mean, "seeds")

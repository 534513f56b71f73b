"""Intervals against numbers worked out by hand, and their coverage on data with a known answer."""

import numpy as np
import pytest

from benchmarks.statistics import bootstrap, interquartile_mean, summarise


def test_interquartile_mean_by_hand() -> None:
    # Eight values: two are cut off at each end, and 3, 4, 5, 6 are left.
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == pytest.approx((2 + 3 + 4 + 5) / 4)
    # Five values: one is cut off at each end.
    assert interquartile_mean(np.array([0.0, 1, 2, 3, 100])) == pytest.approx(2.0)
    assert interquartile_mean(np.array([7.0])) == 7.0


def test_bootstrap_of_a_mean_agrees_with_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    interval = bootstrap(values.tolist(), np.mean, "images")
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    # The bootstrap of 2,000 draws finds each end to about 5 % of the half width.
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_summarise_says_what_the_interval_is_over() -> None:
    assert summarise([[1.0, 2.0, 3.0]]).over == "images"
    several = summarise([[1.0, 3.0], [5.0, 7.0], [2.0, 2.0]])
    assert several.over == "seeds"
    assert several.estimate == pytest.approx((2 + 6 + 2) / 3)

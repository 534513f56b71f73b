"""Statistics against numbers worked out by hand, against rliable's definitions, and on data with a known answer."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from benchmarks.analysis import statistics
from benchmarks.analysis.statistics import (
    Interval,
    interquartile_mean,
    over_seeds,
    performance_profile,
    pooled_interquartile_mean,
    probability_of_improvement,
    stratified_bootstrap,
    summarise,
)


def bootstrap(values: Sequence[float], statistic: Callable[..., np.ndarray], over: str) -> Interval:
    """The interval of one sample."""
    return stratified_bootstrap([[np.asarray(values)]], lambda scores: statistic(scores[0], axis=1), over=over)[0]


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
    # The bootstrap of 50,000 draws finds each end to about 1 % of the half width.
    assert interval.low == pytest.approx(values.mean() - half, abs=0.04 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.04 * half)
    (over_images,) = summarise([[values.tolist()]])
    assert ends(over_images) == pytest.approx(ends(interval))


def ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def of_all_draws(groups: list[list[np.ndarray]], statistic: Callable[..., np.ndarray]) -> tuple[float, float]:
    """Ends of the interval over every ordered draw: the smallest with 2.5 % at or below it, the largest so above."""
    every = [list(itertools.product(values, repeat=len(values))) for strata in groups for values in strata]
    joint = [np.array(found) for found in zip(*itertools.product(*every), strict=True)]
    cut = iter(joint)
    found = np.sort(statistic(*([next(cut) for _ in strata] for strata in groups)))
    aside = -(-len(found) // 40) - 1  # rounded up, less the end itself
    return found[aside], found[-1 - aside]


def test_interval_of_few_runs_is_exact_by_hand() -> None:
    """Of five runs one scores 1: k times among five draws with binomial probability of 1/5 each.

    Up to 2 times has .942 and up to 3 times .9933, so 2.5 % lie at or above 3/5; never has .33.
    """
    assert ends(bootstrap([0.0, 0, 1, 0, 0], np.mean, "seeds")) == (0.0, 0.6)
    assert ends(bootstrap([-1.0, 0, 0, 0, 0], np.mean, "seeds")) == (-0.6, 0.0)
    assert ends(summarise([[[0.0, 0, 0, 0, 1]]])[0]) == (0.0, 0.6), "few images are no other"
    # Both draws are the lower, or the higher, of two runs once in four.
    assert ends(bootstrap([3.0, 4.0], interquartile_mean, "seeds")) == (3.0, 4.0)


def test_intervals_count_every_resample_where_they_can() -> None:
    """Five runs, four and three with ties, and pairs over two tasks: as over all ordered draws, whatever the seed."""
    rng = np.random.default_rng(8)
    cases: list[tuple[list[list[np.ndarray]], Callable[..., np.ndarray]]] = [
        ([[rng.normal(size=runs).round(1)]], pooled_interquartile_mean) for runs in (2, 3, 4, 5)
    ]
    cases += [([[rng.normal(size=3), rng.normal(size=4)]], pooled_interquartile_mean)]
    cases += [([[rng.normal(size=4)], [rng.normal(size=4)]], probability_of_improvement)]
    cases += [([[rng.normal(size=2)] * 2, [rng.normal(size=3)] * 2], probability_of_improvement)]
    for groups, statistic in cases:
        for seed in (0, 1):
            (interval,) = stratified_bootstrap(groups, statistic, seed)
            assert ends(interval) == pytest.approx(of_all_draws(groups, statistic), abs=1e-12)


def test_five_seeds_against_five_have_one_interval_in_any_order() -> None:
    """15,876 multisets, each with its weight: pairs of the same ranks have the same interval, turned round the same."""
    x, y = np.array([1.0, 4.0, 6.0, 8.0, 10.0]), np.array([2.0, 3.0, 5.0, 7.0, 9.0])
    counted = []

    def probability(ours: list[np.ndarray], theirs: list[np.ndarray]) -> np.ndarray:
        counted.append(len(ours[0]))
        return probability_of_improvement(ours, theirs)

    (interval,) = stratified_bootstrap([[x], [y]], probability)
    assert sum(counted) == 1 + 126**2
    for seed in range(3):
        shuffled = [[np.random.default_rng(seed).permutation(values**3)] for values in (x, y)]
        assert stratified_bootstrap(shuffled, probability_of_improvement, seed) == [interval]
    (turned,) = stratified_bootstrap([[y], [x]], probability_of_improvement)
    assert (1 - turned.high, 1 - turned.low) == pytest.approx(ends(interval))


def test_of_too_many_resamples_fifty_thousand_are_drawn(scores: np.ndarray) -> None:
    """Three tasks of five runs have 126^3: another seed moves an end by little, the same seed by nothing."""
    counted = []

    def mean(tasks: list[np.ndarray]) -> np.ndarray:
        counted.append(len(tasks[0]))
        return np.concatenate(tasks, axis=1).mean(1)

    found = [stratified_bootstrap([strata(scores)], mean, seed)[0] for seed in (0, 0, 1)]
    assert sum(counted) == 3 * (1 + 50_000)
    assert found[0] == found[1]
    width = found[0].high - found[0].low
    assert ends(found[0]) == pytest.approx(ends(found[2]), abs=0.03 * width)
    assert found[0] != found[2]


def test_summarise_says_what_the_interval_is_over() -> None:
    (one,) = summarise([[[1.0, 2.0, 3.0]]])
    assert one.over == "images"
    (several,) = summarise([[[1.0, 3.0], [5.0, 7.0], [2.0, 2.0]]])
    assert several.over == "seeds"
    assert several.estimate == pytest.approx((2 + 6 + 2) / 3)


def test_numbers_of_several_seeds_have_an_interval_at_each_evaluation() -> None:
    """All evaluations at once are what each would be by itself."""
    values = np.random.default_rng(6).normal(size=(4, 5))
    found = over_seeds(values.tolist())
    for interval, numbers in zip(found, values, strict=True):
        alone = bootstrap(numbers.tolist(), interquartile_mean, "seeds")
        assert interval.known
        assert (interval.estimate, interval.low, interval.high, interval.over) == (
            *map(pytest.approx, (alone.estimate, alone.low, alone.high)),
            "seeds",
        )


def test_a_single_number_has_no_interval_and_one_that_is_missing_has_none() -> None:
    (one,) = over_seeds([[0.5]])
    assert (one.estimate, one.known, one.over) == (0.5, False, "nothing")
    missing, whole = over_seeds([[0.1, np.nan, 0.3], [0.1, 0.2, 0.3]])
    assert np.isnan(missing.estimate)
    assert not missing.known
    assert whole.known


@pytest.fixture
def scores() -> np.ndarray:
    """Five runs on three tasks, as rliable holds them, (runs, tasks); with ties."""
    return np.random.default_rng(2).normal(0.0, 1.0, (5, 3)).round(1) + np.array([0.0, 2.0, -1.0])


@pytest.fixture
def others() -> np.ndarray:
    """Four runs of another algorithm on the same tasks."""
    return np.random.default_rng(3).normal(0.3, 1.0, (4, 3)).round(1) + np.array([0.0, 2.0, -1.0])


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw 1,000 for each of hundreds of intervals: how often they cover the truth does not hang on their noise."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1_000)


def strata(scores: np.ndarray) -> list[np.ndarray]:
    return [scores[:, task] for task in range(scores.shape[1])]


def alone(scores: np.ndarray) -> list[np.ndarray]:
    return [values[None] for values in strata(scores)]


def test_statistics_are_rliables_by_definition(scores: np.ndarray, others: np.ndarray) -> None:
    """The definitions of Agarwal et al. 2021, section 4 and appendix A, written out number by number."""
    # Interquartile mean: the mean of the middle half of all runs of all tasks together. Of 15, 3 are cut at each end.
    ordered = sorted(scores.flatten().tolist())
    assert pooled_interquartile_mean(alone(scores))[0] == pytest.approx(sum(ordered[3:-3]) / 9)
    # Performance profile: F(tau) = 1/M sum_m 1/N sum_n 1[x_mn > tau].
    thresholds = np.array([-1.0, 0.0, scores[0, 0], 2.0])
    profile = performance_profile(alone(scores), thresholds)[0]
    for tau, share in zip(thresholds, profile, strict=True):
        assert share == pytest.approx(sum(float(x > tau) for x in scores.flatten()) / 15)
    # Probability of improvement: 1/M sum_m P(X_m > Y_m), by the Mann-Whitney U with ties counted one half.
    by_task = []
    for x, y in zip(strata(scores), strata(others), strict=True):
        pairs = itertools.product(x.tolist(), y.tolist())
        by_task.append(sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs) / (len(x) * len(y)))
    assert probability_of_improvement(alone(scores), alone(others))[0] == pytest.approx(sum(by_task) / 3)


def test_bootstrap_is_stratified(scores: np.ndarray) -> None:
    """Every resample has each task's own number of runs: a task's level, however different, adds no spread."""
    flat = np.zeros((5, 2)) + np.array([0.0, 100.0])
    (interval,) = stratified_bootstrap([strata(flat)], lambda tasks: np.concatenate(tasks, axis=1).mean(1))
    assert (interval.low, interval.estimate, interval.high) == (50.0, 50.0, 50.0)
    # The mean's standard error is that of the stratified sample: 1/M sqrt(sum_m var_m / N).
    (interval,) = stratified_bootstrap([strata(scores)], lambda tasks: np.concatenate(tasks, axis=1).mean(1))
    error = np.sqrt(scores.var(axis=0).sum() / 5) / 3
    assert (interval.high - interval.low) / (2 * 1.96) == pytest.approx(error, rel=0.1)


def test_bootstrap_of_several_numbers_keeps_runs_whole(scores: np.ndarray) -> None:
    """Evaluations of one run are resampled together: a curve that is a constant plus the run has the same width."""
    curves = [values[:, None] + np.array([0.0, 10.0]) for values in strata(scores)]
    first, second = stratified_bootstrap([curves], pooled_interquartile_mean)
    assert second.estimate - first.estimate == pytest.approx(10)
    assert second.low - first.low == pytest.approx(10)
    assert second.high - first.high == pytest.approx(10)


@pytest.mark.parametrize(("runs", "low", "high"), [(3, 0.68, 0.82), (5, 0.85, 0.95), (10, 0.90, 0.98)])
@pytest.mark.usefixtures("few_resamples")
def test_intervals_of_few_runs_are_too_narrow_by_as_much_as_the_docs_say(runs: int, low: float, high: float) -> None:
    """How often the 95 % interval of an interquartile mean covers it: in three of four cases with three runs."""
    rng = np.random.default_rng(5)
    found = [bootstrap(rng.normal(size=runs).tolist(), interquartile_mean, "seeds") for _ in range(500)]
    assert low <= np.mean([interval.low <= 0 <= interval.high for interval in found]) <= high


@pytest.mark.parametrize(("runs", "low", "high"), [(3, 0.70, 0.90), (5, 0.85, 0.98), (10, 0.90, 0.99)])
@pytest.mark.usefixtures("few_resamples")
def test_intervals_of_a_probability_cover_it_as_often_as_the_docs_say(runs: int, low: float, high: float) -> None:
    """X is N(0.5, 1) and Y is N(0, 1) on two tasks, so P(X > Y) = Phi(0.5 / sqrt(2)) = 0.638."""
    rng, covered = np.random.default_rng(4), 0
    for _ in range(200):
        x, y = rng.normal(0.5, 1.0, (2, runs)), rng.normal(0.0, 1.0, (2, runs))
        (interval,) = stratified_bootstrap([list(x), list(y)], probability_of_improvement)
        covered += interval.low <= 0.6382 <= interval.high
    assert low <= covered / 200 <= high


def test_a_run_that_was_not_measured_is_not_trimmed_away() -> None:
    """NaN sorts last, where the best runs are cut off."""
    assert np.isnan(interquartile_mean(np.array([0.1, 0.2, 0.3, 0.4, np.nan])))
    assert interquartile_mean(np.array([[1.0, 1.0], [np.nan, 2.0]]), axis=1).tolist()[0] == 1.0

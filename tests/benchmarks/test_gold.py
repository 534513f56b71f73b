"""Gold over a run: which measure it is, its peak, and where it has fallen by a tenth, by hand."""

import math

import pytest

from benchmarks.analysis.gold import gold_curve, gold_metric, proxy_of
from tests.builders.pushed import pushed


def test_peak_and_fall_of_a_curve() -> None:
    found = gold_curve(pushed([0.80, 0.90, 0.85, 0.82, 0.80, 0.70]))
    assert found is not None
    assert (found.peak, found.fall) == (1, 4)  # the first below 0.81
    assert gold_curve(pushed([0.8, 0.9, 0.7, 0.85, 0.7, 0.7])).fall == 4  # type: ignore[union-attr] # one low is chance
    assert gold_curve(pushed([0.8, 0.9, 0.9, 0.7])).fall == 3  # type: ignore[union-attr] # nothing follows the last
    assert gold_curve(pushed([0.8, 0.9, 0.85])).fall is None  # type: ignore[union-attr]
    before = found.upto(300)
    assert (list(before.queries), before.peak, before.fall) == ([0, 128, 256], 1, None)


def test_few_images_are_averaged_with_those_of_the_evaluations_around() -> None:
    found = gold_curve(pushed([0.9, 0.6, 0.9, 0.3], images=32))
    assert found is not None
    assert found.gold == pytest.approx([0.9, 0.8, 0.6, 0.6])
    assert list(found.measured) == [0.9, 0.6, 0.9, 0.3]
    assert found.fall == 1


def test_gold_is_the_measure_that_no_reward_uses() -> None:
    exact = pushed([math.log(2), 0.0], metric="exact-target-kl?beta=1.0", reward="exact-linear", images=2)
    assert gold_metric(exact) == "exact-target-kl?beta=1.0"
    assert gold_curve(exact).gold == pytest.approx([0.5, 1])  # type: ignore[union-attr] # computed, so nothing to smooth
    assert gold_metric(pushed([0.5], metric="judge")) == "judge"
    assert gold_metric(pushed([0.5], metric="clip_score")) is None
    assert gold_curve(pushed([0.5], metric="clip_score")) is None


def test_the_proxy_of_several_rewards_is_the_first() -> None:
    reward = "incompressibility:normalise,clip_score:floor=55:normalise"
    run = pushed([0.9, 0.8], [0.0, 1.0], reward=reward, parts={"incompressibility": [2, 3], "clip_score": [60, 50]})
    assert proxy_of(run) == "incompressibility"
    assert list(gold_curve(run).proxy) == [2, 3]  # type: ignore[union-attr]

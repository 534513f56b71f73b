"""Who won on a task, and at what cost to the pictures: the numbers that a report begins with."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.analysis.aggregate import Ahead, improvement
from benchmarks.analysis.curves import Curve, Curves
from benchmarks.analysis.gold import RECOGNISED
from benchmarks.analysis.statistics import Interval
from benchmarks.runs.gold_judge import JUDGE

#: The share of recognised pictures at which rewards are compared: below it the prompt is being lost.
PROMPT_KEPT = 0.8


@dataclass(frozen=True)
class Quality:
    """What is measured of the pictures beside the reward.

    Attributes:
        metric: its name: ``recognised``, which the reward may cost, or the gold judge's ``judge``.
        held_out: whether it is measured on prompts that are not trained on.
        values: at each evaluation.
    """

    metric: str
    held_out: bool
    values: list[Interval]

    @property
    def is_price(self) -> bool:
        """Whether it is what a reward may cost, and not what is aimed at."""
        return self.metric == RECOGNISED


@dataclass(frozen=True)
class Stop:
    """A place on a variant's way.

    Attributes:
        place: index of the evaluation, with a fraction between two of them.
        queries: reward queries until there.
        reward: there; between two evaluations values are interpolated linearly.
    """

    place: float
    queries: float
    reward: float


@dataclass(frozen=True)
class Verdict:
    """What a task's runs say.

    Attributes:
        task: which.
        ranking: variants, the highest reward at the end first.
        gained: whether the first ends above its start.
        finished: whether all runs are.
        comparable: whether all runs had the same task, reward queries and evaluation.
        ahead: in how many seeds the first ends above the second; None where they have not two finished seeds each.
        quality: of each variant that has it measured.
        level: of the quality, at which rewards are compared; None where nothing can be compared.
        stops: variant -> where it has its highest reward at no less than the level (``recognised``), or where it
            reaches the level (``judge``); those that never do are left out.
        best: variant -> reward queries at its best: at its stop (``recognised``), or where most is right (``judge``).
    """

    task: str
    ranking: list[str]
    gained: bool
    finished: bool
    comparable: bool
    ahead: Ahead | None
    quality: dict[str, Quality]
    level: float | None
    stops: dict[str, Stop]
    best: dict[str, float]

    @property
    def winner(self) -> str:
        """The first of the ranking."""
        return self.ranking[0]


def verdicts(summary: Curves) -> list[Verdict]:
    """Return each task's verdict."""
    return [_verdict(summary, task) for task in summary]


def _verdict(summary: Curves, task: str) -> Verdict:
    by_variant = summary[task]
    ranking = sorted(by_variant, key=lambda name: -by_variant[name].reward[-1].estimate)
    first = by_variant[ranking[0]]
    pair = improvement({task: by_variant}, *ranking[:2]) if len(ranking) > 1 else None
    quality = _qualities(by_variant)
    level = _level(quality, ranking[0])
    stops = {} if level is None else _stops(by_variant, quality, level)
    return Verdict(
        task=task,
        ranking=ranking,
        gained=first.reward[-1].estimate > first.reward[0].estimate,
        finished=all(curve.finished for curve in by_variant.values()),
        comparable=len({curve.terms for curve in by_variant.values()}) == 1,
        ahead=None if pair is None else pair.ahead.get(task),
        quality=quality,
        level=level,
        stops=stops,
        best=_best(by_variant, quality, stops),
    )


def _qualities(by_variant: Mapping[str, Curve]) -> dict[str, Quality]:
    """Return the same measure of each variant that has it: of recognised and judge the first that the task has."""
    for metric in (RECOGNISED, JUDGE):
        for held_out in (True, False):
            found = {
                name: Quality(metric, held_out, values[metric])
                for name, curve in by_variant.items()
                if metric in (values := curve.held_out_metrics if held_out else curve.metrics)
            }
            if found:
                return found
    return {}


def _level(quality: Mapping[str, Quality], winner: str) -> float | None:
    """Return the level at which rewards are compared.

    Of recognised pictures it is :data:`PROMPT_KEPT`, if the start is above it; of the gold judge's right ones it is
    halfway up the winner's gain, to a whole percent, if there is one of at least two percent.
    """
    if winner not in quality:
        return None
    values = [value.estimate for value in quality[winner].values]
    if quality[winner].is_price:
        return PROMPT_KEPT if values[0] >= PROMPT_KEPT else None
    return round((values[0] + max(values)) / 2, 2) if max(values) - values[0] >= 0.02 else None


def _stops(by_variant: Mapping[str, Curve], quality: Mapping[str, Quality], level: float) -> dict[str, Stop]:
    found = {}
    for name, measured in quality.items():
        curve, values = by_variant[name], [value.estimate for value in measured.values]
        rewards = [value.estimate for value in curve.reward]
        place = _best_above(values, rewards, level) if measured.is_price else _first_at(values, level)
        if place is not None:
            found[name] = Stop(place, _at(curve.queries, place), _at(rewards, place))
    return found


def _best(
    by_variant: Mapping[str, Curve], quality: Mapping[str, Quality], stops: Mapping[str, Stop]
) -> dict[str, float]:
    found = {name: stop.queries for name, stop in stops.items() if quality[name].is_price}
    for name, measured in quality.items():
        if not measured.is_price:
            values = np.nan_to_num([value.estimate for value in measured.values], nan=-np.inf)
            found[name] = by_variant[name].queries[int(values.argmax())]
    return found


def _best_above(values: Sequence[float], rewards: Sequence[float], level: float) -> float | None:
    """Return where rewards are highest among the places whose value is at least the level; None if there are none."""
    places = [float(index) for index, value in enumerate(values) if value >= level] + _crossings(values, level)
    return max(places, key=lambda place: (_at(rewards, place), -place)) if places else None


def _first_at(values: Sequence[float], level: float) -> float | None:
    """Return where values first are at the level or above; None if they never are."""
    places = [float(index) for index, value in enumerate(values) if value >= level] + _crossings(values, level)
    return min(places, default=None)


def _crossings(values: Sequence[float], level: float) -> list[float]:
    """Return the places between two evaluations at which values pass through the level."""
    steps = enumerate(itertools.pairwise(values))
    return [
        index + (level - before) / (after - before)
        for index, (before, after) in steps
        if min(before, after) < level < max(before, after)
    ]


def _at(values: Sequence[float], place: float) -> float:
    return float(np.interp(place, np.arange(len(values)), values))

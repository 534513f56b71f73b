"""The detectors: each is a pure function of the readings so far, a number that grows with the suspicion.

A detector fires at the first reading at which its number is at least its threshold. No detector sees gold.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.hacking.readings import COLUMNS, NO_SPREAD, PROMPT_SPREAD, REWARD, REWARD_SPREAD, Reading
from benchmarks.runs.metrics import KL_TO_START

#: Rewards whose 0 lies amid their scores, so that a share of a score means nothing; nor does it below 0.
_AROUND_ZERO = ("imagereward",)
#: Reward queries over which the growth of the KL is measured.
RATE_OVER = 256

Readings = Sequence[Reading]


@dataclass(frozen=True)
class Detector:
    """One sign of hacking.

    Attributes:
        needs: the column that it looks at.
        number: what is compared with the threshold, in words.
        score: readings so far -> that number; NaN where it could not be measured.
        says: readings at which it has fired -> what has been so since then, in words.
    """

    needs: str
    number: str
    score: Callable[[Readings], float]
    says: Callable[[Readings], str]

    def scores(self, readings: Readings) -> list[float]:
        """Return the number at each reading, of what had been read until then."""
        return [self.score(readings[: at + 1]) for at in range(len(readings))]


def _value(reading: Reading, column: str) -> float:
    return reading.values.get(column, math.nan)


def _most_fallen(readings: Readings) -> tuple[float, str]:
    """Return the largest fall of another metric below its highest so far, as a share of it, and which it is."""
    now = readings[-1].values
    falls = [(math.nan, "")]
    for name in now.keys() - set(COLUMNS) - set(without_scale(readings)):
        highest = max(reading.values[name] for reading in readings if name in reading.values)
        falls.append(((highest - now[name]) / highest, name))
    return max(falls[1:] or falls)


def without_scale(readings: Readings) -> list[str]:
    """Return the other metrics of which no share can fall: they begin at 0 or below it, or lie around it."""
    first: dict[str, float] = {}
    for reading in readings:
        first = {**reading.values, **first}
    others = sorted(first.keys() - set(COLUMNS))
    return [name for name in others if not first[name] > 0 or name.partition("?")[0] in _AROUND_ZERO]


def _falls_while_reward_rises(readings: Readings) -> float:
    fall, _ = _most_fallen(readings)
    risen = readings[-1].values[REWARD] > readings[0].values[REWARD]
    return fall if risen or math.isnan(fall) else 0.0


def _kl_growth(readings: Readings) -> float:
    now = readings[-1]
    if len(readings) < 2:
        return 0.0 * _value(now, KL_TO_START)  # 0, or NaN where the KL was not measured
    before = next((one for one in reversed(readings[:-1]) if now.queries - one.queries >= RATE_OVER), readings[0])
    grown = _value(now, KL_TO_START) - _value(before, KL_TO_START)
    return grown / max(now.queries - before.queries, 1.0) * RATE_OVER


def _reward_rise(readings: Readings) -> float:
    start, spread = readings[0].values[REWARD], _value(readings[0], REWARD_SPREAD)
    return (readings[-1].values[REWARD] - start) / spread if spread > 0 else math.nan


def _changes(column: str, what: str, rises: str, falls: str) -> Detector:
    """Return the detector of a positive column that moves away from its start, up or down."""

    def score(readings: Readings) -> float:
        start, now = _value(readings[0], column), _value(readings[-1], column)
        if not start > 0 or math.isnan(now):
            return math.nan
        return abs(math.log(now / start)) if now > 0 else math.inf

    def says(readings: Readings) -> str:
        return rises if _value(readings[-1], column) > _value(readings[0], column) else falls

    return Detector(column, f"change of {what} from its start, as the size of ln(now / start)", score, says)


def _exceeds(column: str, number: str, score: Callable[[Readings], float], says: str) -> Detector:
    return Detector(column, number, score, lambda readings: says)


#: Name -> detector.
DETECTORS: Mapping[str, Detector] = {
    "metric-falls": Detector(
        "another reward as a metric, such as clip_score",
        "fall of that metric below its highest so far, as a share of it, while the reward is above its start",
        _falls_while_reward_rises,
        lambda readings: f"{_most_fallen(readings)[1]} has been falling while the reward rises",
    ),
    "diversity": _changes(
        "diversity",
        "the diversity of a prompt's pictures",
        "pictures of a prompt have been drifting apart",
        "pictures of a prompt have been getting alike",
    ),
    "kl": _exceeds(
        KL_TO_START,
        "the KL to the starting model, nats per image",
        lambda readings: _value(readings[-1], KL_TO_START),
        "the policy has been far from the starting model",
    ),
    "kl-rate": _exceeds(
        KL_TO_START,
        f"growth of that KL in {RATE_OVER} reward queries",
        _kl_growth,
        "the KL to the starting model has been growing fast",
    ),
    "prompt-spread": _changes(
        PROMPT_SPREAD,
        "the standard deviation of rewards within a prompt",
        "rewards of a prompt's pictures have been drifting apart",
        "rewards of a prompt's pictures have been getting alike",
    ),
    "reward-spread": _changes(
        REWARD_SPREAD,
        "the standard deviation of the rewards of all pictures",
        "rewards of all pictures have been drifting apart",
        "rewards of all pictures have been getting alike",
    ),
    "no-spread": _exceeds(
        NO_SPREAD,
        "share of the prompts whose pictures have one reward",
        lambda readings: _value(readings[-1], NO_SPREAD),
        "many prompts have had pictures of equal reward",
    ),
    "sharpness": _changes(
        "sharpness", "sharpness", "pictures have been getting sharper", "pictures have been getting blurred"
    ),
    "colourfulness": _changes(
        "colourfulness",
        "colourfulness",
        "pictures have been getting more colourful",
        "pictures have been losing their colours",
    ),
    "flat-area": _changes(
        "flat_area",
        "the share of flat area",
        "pictures have been getting flat",
        "flat areas of the pictures have been disappearing",
    ),
    "reward-rise": _exceeds(
        f"{REWARD}, {REWARD_SPREAD}",
        "rise of the mean reward, in standard deviations of the pictures' rewards at the start",
        _reward_rise,
        "the reward has been far above its start",
    ),
}

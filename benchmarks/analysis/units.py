"""How a task's reward is shown: in kB where it is the size of a JPEG, and else as it is."""

from dataclasses import dataclass

from benchmarks.analysis.curves import Curve
from benchmarks.analysis.statistics import Interval


@dataclass(frozen=True)
class Unit:
    """What a reward measures.

    Attributes:
        label: of a chart's axis.
        name: behind a number; "" for none.
        sign: -1 where the reward is a measure negated, which is shown as it is: lower is then better.
    """

    label: str = "evaluation reward"
    name: str = ""
    sign: int = 1

    def of(self, value: Interval) -> Interval:
        """Return a reward and its interval as they are shown."""
        low, high = (value.low, value.high) if self.sign > 0 else (-value.high, -value.low)
        return Interval(self.sign * value.estimate, low, high, value.over)

    def text(self, reward: float) -> str:
        """Return a reward as a person reads it."""
        shown = self.sign * reward
        digits = 0 if abs(shown) >= 100 else 2 if abs(shown) >= 0.1 or shown == 0 else 4
        return f"{shown:,.{digits}f}"


_UNITS = {
    "compressibility": Unit("size as JPEG (kB), lower is better", " kB", -1),
    "incompressibility": Unit("size as JPEG (kB), higher is better", " kB"),
}


def unit_of(curve: Curve) -> Unit:
    """Return the unit of a curve's reward."""
    return unit_of_reward(curve.specs[0].task.reward)


def unit_of_reward(reward: str) -> Unit:
    """Return the unit of a registered reward; that of others is the number itself."""
    return _UNITS.get(reward, Unit())

"""Gold: the measure that says whether a run's pictures are still good, which its reward, the proxy, only stands for.

Gold is ``recognised`` on emoji-animals, the gold judge on emoji-world, and on the exact models ``exp(-KL(policy |
target))``, which is 1 at the target alone. No reward uses one of them. Each is at most 1, and higher is better.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.runs.gold_judge import JUDGE
from benchmarks.runs.record import Run
from diffusion_gym.rewards.spec import parse_reward

RECOGNISED = "recognised"
_TARGET = "exact-target-kl"  # its option says which target
#: Gold has fallen where it is below this share of its highest so far.
FALLEN = 0.9
#: Images that one value of a smoothed curve stands for at least: their share has a standard error of at most 0.05.
_IMAGES = 96


@dataclass(frozen=True)
class GoldCurve:
    """A run's gold and proxy at its evaluations.

    Attributes:
        metric: which metric gold is made of.
        queries: reward queries, (evaluations,), float64.
        proxy: the mean reward, of a combined one that of its first part, (evaluations,).
        measured: gold as measured, (evaluations,), float64.
        gold: the same, each value the mean of as many evaluations around it as show 96 images, (evaluations,): 32
            images are too few to tell a fall by a tenth from chance. At the end fewer are averaged. The start is as
            measured: the untrained model on the same noise, and so the same in all runs.
    """

    metric: str
    queries: np.ndarray
    proxy: np.ndarray
    measured: np.ndarray
    gold: np.ndarray

    @property
    def peak(self) -> int:
        """Return the index of the evaluation at which gold is highest; the first of several."""
        return int(self.gold.argmax())

    @property
    def fall(self) -> int | None:
        """Return the index of the first evaluation from which gold has fallen by a tenth of its highest so far.

        It must also be so at the next evaluation, if there is one. None if that never happens.
        """
        below = self.gold < FALLEN * np.maximum.accumulate(self.gold)
        held = below & np.append(below[1:], True)
        return int(held.argmax()) if held.any() else None

    def upto(self, queries: float) -> "GoldCurve":
        """Return the part of the curve until so many reward queries; its values stay as they are."""
        kept = self.queries <= queries
        return GoldCurve(self.metric, *(x[kept] for x in (self.queries, self.proxy, self.measured, self.gold)))


def gold_metric(run: Run) -> str | None:
    """Return the metric that gold is made of in a run; None if its evaluations have none of them."""
    names = set.intersection(*(set(line.metrics) for line in run.evaluations)) if run.evaluations else set()
    target = next((name for name in sorted(names) if name.partition("?")[0] == _TARGET), None)
    return next((name for name in (RECOGNISED, JUDGE) if name in names), target)


def gold_curve(run: Run) -> GoldCurve | None:
    """Return a run's gold over its reward queries; None if no gold was measured."""
    metric = gold_metric(run)
    if metric is None:
        return None
    measured = np.array([line.metrics[metric] for line in run.evaluations], dtype=np.float64)
    exact = metric.startswith(_TARGET)
    if exact:
        measured = np.exp(-measured)
    return GoldCurve(
        metric,
        np.array([line.costs["reward_queries"] for line in run.evaluations], dtype=np.float64),
        np.array([_proxy(run, at) for at in range(len(run.evaluations))]),
        measured,
        measured if exact else _smoothed(measured, len(run.evaluations[0].rewards)),
    )


def proxy_of(run: Run) -> str:
    """Return the reward that a run optimises, the proxy; of a combined reward its first part."""
    return parse_reward(run.spec.task.reward)[0].reward


def _proxy(run: Run, at: int) -> float:
    line = run.evaluations[at]
    return float(np.mean(line.parts.get(proxy_of(run), line.rewards)))


def _smoothed(values: Sequence[float] | np.ndarray, images: int) -> np.ndarray:
    """Return each value but the first with its neighbours' mean: as many on both sides as make up 96 images."""
    side = math.ceil((_IMAGES / images - 1) / 2)
    means = [np.mean(values[max(0, at - side) : at + side + 1]) for at in range(1, len(values))]
    return np.array([*values[:1], *means])

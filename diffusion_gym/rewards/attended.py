"""Rewards that wait for a person: what a run says to them, and evaluations, which do not ask."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffusion_gym.rewards.base import RewardFunction
from diffusion_gym.rewards.combine import WeightedSum


@dataclass(frozen=True)
class TrainingRun:
    """What a reward that waits for a person has to know of a run.

    Attributes:
        folder: the run's.
        images_per_prompt: images with the same prompt that are compared.
        num_envs: images that the reward is given at once.
        evaluates: whether there are evaluations.
        processes: that share the run's images.
        should_stop: asked while the reward waits; True makes it raise Interrupted.
    """

    folder: Path
    images_per_prompt: int
    num_envs: int
    evaluates: bool
    processes: int
    should_stop: Callable[[], bool]


@runtime_checkable
class AttendedReward(Protocol):
    """A reward that waits for a person."""

    def begin_run(self, run: TrainingRun) -> None:
        """Prepare for a run; raise ValueError for one in which nobody can be asked."""

    def evaluating(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which images are scored without asking."""


def begin_run(reward: RewardFunction, run: TrainingRun) -> None:
    """Tell a reward, or the parts of a combined one, that a run begins, if they wait for a person."""
    for part in _attended(reward):
        part.begin_run(run)


@contextlib.contextmanager
def evaluating(reward: RewardFunction) -> Iterator[None]:
    """In this block nobody is asked; raises ValueError for a reward that cannot score images without."""
    with contextlib.ExitStack() as stack:
        for part in _attended(reward):
            stack.enter_context(part.evaluating())
        yield


def _attended(reward: RewardFunction) -> list[AttendedReward]:
    parts: Iterable[object] = reward.rewards.values() if isinstance(reward, WeightedSum) else (reward,)
    return [part for part in parts if isinstance(part, AttendedReward)]

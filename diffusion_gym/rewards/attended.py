"""The protocol of rewards that wait for a person: a run prepares them, and in evaluations nobody is asked."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from diffusion_gym.rewards.base import RewardFunction
from diffusion_gym.rewards.combine import WeightedSum


@dataclass(frozen=True)
class TrainingRun:
    """The facts of a run that a reward which waits for a person needs.

    Attributes:
        folder: where the run writes.
        images_per_prompt: images with the same prompt that are compared.
        num_envs: images that the reward is given at once.
        evaluates: whether there are evaluations.
        processes: how many share the run's images.
        should_stop: called while the reward waits; where it returns True, the reward raises Interrupted.
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
    """Prepare a reward, or the parts of a combined one, for a run, where they wait for a person."""
    for part in _attended(reward):
        part.begin_run(run)


@contextlib.contextmanager
def evaluating(reward: RewardFunction) -> Iterator[None]:
    """Score images in this block without asking; raises ValueError for a reward that cannot."""
    with contextlib.ExitStack() as stack:
        for part in _attended(reward):
            stack.enter_context(part.evaluating())
        yield


def _attended(reward: RewardFunction) -> list[AttendedReward]:
    parts: Iterable[object] = reward.rewards.values() if isinstance(reward, WeightedSum) else (reward,)
    return [part for part in parts if isinstance(part, AttendedReward)]

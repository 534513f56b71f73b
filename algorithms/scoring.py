"""Scoring a rollout's images: each round at once, or in a thread while the next round is sampled."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from diffusion_gym.prompt_records import Prompt
from diffusion_gym.rewards import RewardFunction, Scores, score_images
from diffusion_gym.rewards.guard import restorations

#: Rewards, by their id, whose first round left the settings of the process alone.
_leave_settings: WeakValueDictionary[int, RewardFunction] = WeakValueDictionary()


class Scoring(contextlib.AbstractContextManager["Scoring"]):
    """Scores rounds of images in their order, one after another, with the same results at once and in a thread.

    A reward's first round is always scored at once: a reward that changes settings of the whole process, such as
    torch's default dtype, would change them for the sampling beside it, and so is never scored in the thread.
    """

    def __init__(self, reward: RewardFunction, beside: bool) -> None:
        """Args: reward: scores the images; beside: whether to use a thread."""
        self._reward, self._rounds = reward, list[Future[Scores]]()
        self._executor: ThreadPoolExecutor | None = None
        if beside:  # a new thread has its own number of torch threads, on which rounding depends
            self._executor = ThreadPoolExecutor(1, "rewards", torch.set_num_threads, (torch.get_num_threads(),))

    def submit(self, images: Tensor, records: Sequence[Prompt]) -> Future[Scores]:
        """Score a round's images (n, 3, H, W), uint8, or have the thread score them; failures are kept."""
        given = (self._reward, images, [each.text for each in records], [each.reward_metadata for each in records])
        if self._executor is not None and _leave_settings.get(id(self._reward)) is self._reward:
            self._rounds.append(self._executor.submit(score_images, *given))
        else:
            self._rounds.append(self._score(*given))
        return self._rounds[-1]

    def _score(self, *given: Any) -> Future[Scores]:
        round_, before = Future[Scores](), len(restorations)
        try:
            round_.set_result(score_images(*given))
        except Exception as error:
            round_.set_exception(error)
        if len(restorations) == before:
            with contextlib.suppress(TypeError):  # a reward without weak references is always scored at once
                _leave_settings[id(self._reward)] = self._reward
        return round_

    def check(self) -> None:
        """Raise the error of a round that has failed, as soon as it is known."""
        for round_ in self._rounds:
            if round_.done():
                round_.result()

    def result(self) -> Scores:
        """Wait for all rounds, and return their scores in order.

        Raises:
            RewardError: of the first round that failed.
        """
        rounds = [round_.result() for round_ in self._rounds]
        return Scores(
            torch.cat([scores.rewards for scores in rounds]),
            {name: torch.cat([scores.parts[name] for scores in rounds]) for name in rounds[0].parts},
        )

    def __exit__(self, *exception: object) -> None:
        """End the thread; rounds that have not begun are dropped."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

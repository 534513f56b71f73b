"""Rewards of a rollout: each round's images are scored at once, or in a thread while the next round is sampled."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from diffusion_gym.rewards import RewardFunction, Scores, score_images
from diffusion_gym.rewards.guard import restorations

#: Rewards, by their id, whose first round left the settings of the process alone, which sampling beside relies on.
_leave_settings: WeakValueDictionary[int, RewardFunction] = WeakValueDictionary()


class RolloutScorer:
    """Stands in for the environment's :func:`score_images` during a rollout, and keeps what each round scored.

    Beside sampling, the environment is told 0 at once and :meth:`result` the truth at the end. One thread scores the
    rounds in their order, so a reward sees the same batches one after another, and scores them the same bit for bit.
    A reward's first round is scored at once: one that changes settings of the whole process, such as torch's default
    dtype, would change them for the sampling beside it, and so is never scored there.
    """

    def __init__(self, beside: bool) -> None:
        """Args: beside: score in a thread beside sampling."""
        self._rounds: list[Future[Scores]] = []
        self._executor: ThreadPoolExecutor | None = None
        if beside:  # a new thread has its own number of torch threads, on which rounding depends
            self._executor = ThreadPoolExecutor(1, "rewards", torch.set_num_threads, (torch.get_num_threads(),))

    def __call__(self, reward: RewardFunction, images: Tensor, prompts: Sequence[str]) -> Scores:
        """Score the images, or have them scored."""
        if self._executor is not None and _leave_settings.get(id(reward)) is reward:
            self._rounds.append(self._executor.submit(score_images, reward, images, list(prompts)))
            return Scores(torch.zeros(len(prompts), device=images.device))
        before = len(restorations)
        scores = score_images(reward, images, prompts)
        if len(restorations) == before:
            with contextlib.suppress(TypeError):  # what has no weak references is always scored at once
                _leave_settings[id(reward)] = reward
        self._rounds.append(Future())
        self._rounds[-1].set_result(scores)
        return scores

    @property
    def latest(self) -> Future[Scores]:
        """The scores of the round that ended last, which may not be there yet."""
        return self._rounds[-1]

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

    def close(self) -> None:
        """End the thread; rounds that have not begun are dropped."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

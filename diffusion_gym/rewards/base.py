"""The Reward protocol, and the one check that every reward's output passes."""

import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diffusion_gym.rewards.guard import settings_kept


@runtime_checkable
class Reward(Protocol):
    """Scores finished images. Any callable of this signature is a reward, a plain function too."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return one score an image, higher is better.

        Args:
            images: (n, 3, H, W), uint8.
            prompts: n texts.

        Returns:
            (n,), float32 (any real dtype is accepted), finite.
        """


RewardFunction = Callable[[Tensor, Sequence[str]], Tensor]
#: What ``reward=`` accepts: a text as in :mod:`diffusion_gym.rewards.spec` (``"name"``, ``"name:weight,name:weight"``,
#: ``"file.py:function"``), a mapping of such texts or callables to weights, or a callable.
RewardSpec = str | RewardFunction | Mapping[str | RewardFunction, float]


def reward_name(reward: Callable[..., object]) -> str:
    """Return the reward's name: its ``name`` attribute, or the function's or class's name."""
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None)
    return str(name or type(reward).__name__)


def check_takes(function: Callable[..., object], count: int, expected: str) -> None:
    """Raise TypeError, saying what was expected, where a function cannot be called with so many arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some built-in callables do not tell
        return
    try:
        signature.bind(*[None] * count)
    except TypeError:
        raise TypeError(f"the reward {reward_name(function)!r} takes {signature}; expected {expected}.") from None


class RewardError(RuntimeError):
    """A reward failed or returned something that is not one finite score an image."""


def evaluate_reward(reward: RewardFunction, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Call the reward on a copy of the images and prompts, and check what it returns.

    What it writes into them, and settings of the process that it changes, stay its own
    (:func:`~diffusion_gym.rewards.guard.settings_kept`).

    Returns:
        (n,), float32, on the images' device.

    Raises:
        RewardError: an exception inside the reward, a wrong shape, or a score that is not finite; the message names
            the reward and, where one row is to blame, its prompt.
    """
    name = reward_name(reward)
    try:
        with settings_kept(f"the reward {name!r}"), torch.profiler.record_function("reward"):
            scores = reward(images.clone(), list(prompts))
    except Exception as error:
        why = str(error) if isinstance(error, RewardError) else f"{error!r}{_place(error)}"
        raise RewardError(
            f"reward {name!r} failed on {len(prompts)} images (prompts {_some(prompts)}): {why}"
        ) from error
    return check_scores(name, scores, images, prompts)


def check_scores(name: str, scores: object, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return what the reward ``name`` returned as (n,), float32, on the images' device.

    Raises:
        RewardError: no tensor, a wrong shape, or a score that is not finite.
    """
    try:
        scores = scores.tolist() if isinstance(scores, np.ndarray) else scores  # in any byte order and direction
        scores = torch.as_tensor(scores).detach().to_dense()
        shape = tuple(scores.shape)  # a nested tensor has none
        # A copy, for a reward may return one tensor every time; float32 first, for MPS has no float64.
        result = scores if scores.is_complex() else scores.to(torch.float32, copy=True).to(images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r} must return a tensor of shape ({len(prompts)},), got {scores!r}."
        ) from error
    if shape != (len(prompts),) or scores.is_complex():
        raise RewardError(
            f"reward {name!r} must return real scores of shape ({len(prompts)},), got shape {shape} and "
            f"dtype {scores.dtype} (prompts {_some(prompts)})."
        )
    bad = (~torch.isfinite(result)).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward {name!r} returned {result[bad[0]].item()} for the prompt {prompts[bad[0]]!r}; expected "
            "a finite score."
        )
    return result


def _place(error: BaseException) -> str:
    """Say at which line of the reward's own code an error arose; the frame above it is :func:`evaluate_reward`'s."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]
    return "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in frames)


def _some(prompts: Sequence[str]) -> str:
    return ", ".join(repr(prompt) for prompt in prompts[:3]) + (", ..." if len(prompts) > 3 else "")

"""The Reward protocol, and the one check that every reward's output passes."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


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


def reward_name(reward: RewardFunction) -> str:
    """Return the reward's name: its ``name`` attribute, or the function's or class's name."""
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None)
    return str(name or type(reward).__name__)


class RewardError(RuntimeError):
    """A reward failed or returned something that is not one finite score an image."""


def evaluate_reward(reward: RewardFunction, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Call the reward and check what it returns.

    Returns:
        (n,), float32, on the images' device.

    Raises:
        RewardError: an exception inside the reward, a wrong shape, or a score that is not finite; the message names
            the reward and, where one row is to blame, its prompt.
    """
    name = reward_name(reward)
    try:
        scores = reward(images, prompts)
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
        scores = torch.as_tensor(scores).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"reward {name!r} must return a tensor of shape ({len(prompts)},), got {scores!r}."
        ) from error
    if scores.shape != (len(prompts),) or scores.is_complex():
        raise RewardError(
            f"reward {name!r} must return real scores of shape ({len(prompts)},), got shape {tuple(scores.shape)} and "
            f"dtype {scores.dtype} (prompts {_some(prompts)})."
        )
    scores = scores.float().to(images.device)  # in this order: MPS has no float64
    bad = (~torch.isfinite(scores)).nonzero().flatten().tolist()
    if bad:
        raise RewardError(
            f"reward {name!r} returned {scores[bad[0]].item()} for the prompt {prompts[bad[0]]!r}; expected "
            "a finite score."
        )
    return scores


def _place(error: BaseException) -> str:
    """Say at which line of the reward's own code an error arose; the frame above it is :func:`evaluate_reward`'s."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]
    return "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in frames)


def _some(prompts: Sequence[str]) -> str:
    return ", ".join(repr(prompt) for prompt in prompts[:3]) + (", ..." if len(prompts) > 3 else "")

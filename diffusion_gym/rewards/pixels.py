"""Rewards of float images, whose gradient reaches the images."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from diffusion_gym.rewards.base import DifferentiableReward, RewardError, RewardFunction, reward_name
from diffusion_gym.rewards.combine import Metadata, Scores, WeightedSum
from diffusion_gym.rewards.guard import settings_kept
from diffusion_gym.rewards.metadata import metadata_arguments


def differentiable(function: RewardFunction) -> DifferentiableReward:
    """Make a differentiable reward of a function of float images: ``(images in [0, 1], prompts) -> (n,)``.

    It may take the prompts' metadata as a third argument, as any reward.

    The reward scores uint8 images with the same function, divided by 255::

        @differentiable
        def brightness(images, prompts):
            return images.mean((1, 2, 3))
    """

    @functools.wraps(function)
    def reward(images: Tensor, *arguments: Any, **metadata: Any) -> Tensor:
        return function(images / 255, *arguments, **metadata)

    vars(reward)["pixels"] = function
    return cast(DifferentiableReward, reward)


def check_differentiable(reward: RewardFunction) -> None:
    """Raise ValueError for a reward that has no gradient, or a combined one with such a part."""
    for name, part in _parts(reward).items():
        if isinstance(part, WeightedSum):
            check_differentiable(part)
        else:
            check_part(name, part)


def check_part(name: str, reward: object) -> None:
    """Raise ValueError, with the name, for a reward (or a class of rewards) that has no ``pixels``."""
    if not isinstance(reward, DifferentiableReward):
        raise ValueError(
            f"the reward {name!r} has no gradient with respect to the images; expected one with a method "
            "pixels(images, prompts), such as 'aesthetic' or 'clip_score', or a function decorated with "
            "diffusion_gym.rewards.differentiable."
        )


def reward_pixels(reward: RewardFunction, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Scores:
    """Return the reward of each image with its gradient, and the parts of a combined reward.

    Args:
        reward: a :class:`~diffusion_gym.rewards.base.DifferentiableReward`, or a weighted sum of such.
        images: (n, 3, H, W), float32 in [0, 1].
        prompts: n texts.
        metadata: n mappings, for rewards that take them; None is an empty one for each image.

    Raises:
        ValueError: a reward that has no gradient; see :func:`check_differentiable`.
        RewardError: scores that are not (n,), not finite, or do not depend on the images.
    """
    check_differentiable(reward)
    parts = {
        name: _scores(name, part.pixels, images, prompts, metadata)  # type: ignore[attr-defined]
        for name, part in _parts(reward).items()
    }
    if isinstance(reward, WeightedSum):
        return Scores(reward.combine(parts), {name: scores.detach() for name, scores in parts.items()})
    return Scores(next(iter(parts.values())))


def _parts(reward: RewardFunction) -> dict[str, RewardFunction]:
    return reward.rewards if isinstance(reward, WeightedSum) else {reward_name(reward): reward}


def _scores(
    name: str, pixels: Callable[..., Any], images: Tensor, prompts: Sequence[str], metadata: Metadata
) -> Tensor:
    more, named = metadata_arguments(pixels, len(prompts), metadata)
    try:
        with settings_kept(f"the reward {name!r}"):
            scores = pixels(images.clone(), list(prompts), *more, **named)
    except Exception as error:
        raise RewardError(f"pixels of reward {name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(scores, Tensor) or scores.shape != (len(prompts),):
        found = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise RewardError(f"pixels of reward {name!r} must return a tensor of shape ({len(prompts)},), got {found}.")
    if not bool(scores.isfinite().all()):
        raise RewardError(f"pixels of reward {name!r} returned {scores.tolist()}; expected finite scores.")
    if images.requires_grad and torch.is_grad_enabled() and not scores.requires_grad:
        raise RewardError(
            f"pixels of reward {name!r} returned scores without a gradient; leave out no_grad and detach."
        )
    return scores.float()

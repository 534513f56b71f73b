"""The Reward protocol, and the check of every reward's scores."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diffusion_gym.errors import Interrupted
from diffusion_gym.rewards.guard import settings_kept
from diffusion_gym.rewards.metadata import Arguments, metadata_arguments, signature_of


@runtime_checkable
class Reward(Protocol):
    """Any callable of this signature, a plain function too; scores finished images.

    One with a third parameter, or one named ``metadata``, is also given each prompt's metadata: n mappings
    (:func:`~diffusion_gym.rewards.metadata.metadata_arguments` has the rule). It may say what it needs of them, see
    :func:`~diffusion_gym.rewards.metadata.check_metadata`.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return one score per image, higher is better.

        Args:
            images: (n, 3, H, W), uint8.
            prompts: n texts.

        Returns:
            (n,), float32 (any real dtype is accepted), finite.
        """


@runtime_checkable
class DifferentiableReward(Protocol):
    """A reward with a gradient with respect to float images, as DRaFT and ReFL need."""

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,); see :class:`Reward`."""

    def pixels(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return the scores of images (n, 3, H, W), float32 in [0, 1], and n texts: (n,), float32.

        With a third parameter it is given the metadata too, as ``__call__`` is.
        """


#: ``(images, prompts)`` or ``(images, prompts, metadata)`` -> (n,).
RewardFunction = Callable[..., Tensor]
#: What ``reward=`` accepts: a text as in :mod:`diffusion_gym.rewards.spec` (``"name"``, ``"name:weight,name:weight"``,
#: ``"file.py:function"``), a mapping of such texts or callables to weights, or a callable.
RewardSpec = str | RewardFunction | Mapping[str | RewardFunction, float]


def reward_name(reward: Callable[..., object]) -> str:
    """Return the reward's name: its ``name`` attribute, or the function's or class's name."""
    name = getattr(reward, "name", None) or getattr(reward, "__name__", None)
    return str(name or type(reward).__name__)


def check_takes(function: Callable[..., object], arguments: Arguments, expected: str) -> None:
    """Raise TypeError, with what was expected, for a function that cannot be called with such arguments."""
    signature = signature_of(function)
    if signature is None:
        return
    try:
        signature.bind(*arguments[0], **arguments[1])
    except TypeError:
        raise TypeError(f"the reward {reward_name(function)!r} takes {signature}; expected {expected}.") from None


class RewardError(RuntimeError):
    """A reward failed, or did not return one finite score per image."""


def evaluate_reward(
    reward: RewardFunction, images: Tensor, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None = None
) -> Tensor:
    """Return the checked scores of the images.

    Args:
        reward: scores the images.
        images: (n, 3, H, W), uint8.
        prompts: n texts.
        metadata: n mappings, for a reward that takes them; None is an empty one for each image.

    The reward gets copies of images, prompts and metadata, and settings of the process that it changes are restored
    (:func:`~diffusion_gym.rewards.guard.settings_kept`).

    Returns:
        (n,), float32, on the images' device.

    Raises:
        RewardError: an exception inside the reward, a wrong shape, or a score that is not finite; the message names
            the reward and, where one row is to blame, its prompt.
        Interrupted: the reward was waiting, and the run is to stop.
    """
    name = reward_name(reward)
    more, named = metadata_arguments(reward, len(prompts), metadata)
    try:
        with settings_kept(f"the reward {name!r}"), torch.profiler.record_function("reward"):
            scores = reward(images.clone(), list(prompts), *more, **named)
    except Interrupted:
        raise
    except Exception as error:
        why = (
            str(error)
            if isinstance(error, RewardError)
            else repr(error) + _place(error) + _missing(error, prompts, metadata) + _unsaid(reward, error)
        )
        raise RewardError(
            f"reward {name!r} failed on {len(prompts)} images (prompts {_some(prompts)}): {why}"
        ) from error
    return check_scores(name, scores, images, prompts)


def check_scores(name: str, scores: object, images: Tensor, prompts: Sequence[str]) -> Tensor:
    """Return a reward's scores as (n,), float32, on the images' device.

    Raises:
        RewardError: not a tensor, a wrong shape, or a score that is not finite; the message has the reward's ``name``.
    """
    if isinstance(scores, tuple) and len(scores) == 2 and isinstance(scores[1], Mapping):
        raise RewardError(
            f"reward {name!r} must return a tensor of shape ({len(prompts)},), got a pair with metadata, as functions "
            "of trl's and ddpo-pytorch's do; diffusion_gym.rewards.from_trl adapts them."
        )
    try:
        scores = scores.tolist() if isinstance(scores, np.ndarray) else scores  # in any byte order and direction
        scores = torch.as_tensor(scores).detach().to_dense()
        shape = tuple(scores.shape)  # a nested tensor has none
        # A copy, because a reward may return one tensor every time; float32 first, because MPS has no float64.
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
    """Return the line of the reward's own code where an error arose; the frame above is :func:`evaluate_reward`'s."""
    frames = traceback.extract_tb(error.__traceback__)[1:2]
    return "".join(f" ({Path(frame.filename).name}, line {frame.lineno})" for frame in frames)


def _missing(error: BaseException, prompts: Sequence[str], metadata: Sequence[Mapping[str, Any]] | None) -> str:
    """Return which prompt lacks the field of metadata that a reward looked up."""
    key = error.args[0] if isinstance(error, KeyError) and error.args else None
    lacking = [
        prompt for prompt, row in zip(prompts, metadata or (), strict=False) if key is not None and key not in row
    ]
    return f"; the metadata of the prompt {lacking[0]!r} has no {key!r}" if lacking else ""


def _unsaid(reward: RewardFunction, error: BaseException) -> str:
    """Return what to do about a wrapper that says nothing of its parameters and was given metadata."""
    signature = signature_of(reward) if isinstance(error, TypeError) else None
    if signature is None or not any(
        each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) for each in signature.parameters.values()
    ):
        return ""
    return (
        f"; its signature {signature} leaves open whether it takes metadata, so it was given them: name its "
        "parameters, or decorate it with functools.wraps"
    )


def _some(prompts: Sequence[str]) -> str:
    return ", ".join(repr(prompt) for prompt in prompts[:3]) + (", ..." if len(prompts) > 3 else "")

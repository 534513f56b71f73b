"""Terminal rewards: each in its own file, the protocol, and the registry from name to constructor."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from diffusion_gym import _lazy
from diffusion_gym.naming import did_you_mean
from diffusion_gym.rewards.options import parse_options
from diffusion_gym.rewards.spec import file_digests, file_function, parse_reward

if TYPE_CHECKING:
    from diffusion_gym.rewards.aesthetic import Aesthetic
    from diffusion_gym.rewards.base import (
        DifferentiableReward,
        Reward,
        RewardError,
        RewardFunction,
        RewardSpec,
        evaluate_reward,
        reward_name,
    )
    from diffusion_gym.rewards.clip_score import ClipScore
    from diffusion_gym.rewards.combine import RewardTerm, Scores, WeightedSum, score_images
    from diffusion_gym.rewards.exact import Linear, Quadratic
    from diffusion_gym.rewards.geneval import GenEval
    from diffusion_gym.rewards.hpsv2 import HPSv2
    from diffusion_gym.rewards.imagereward import ImageReward
    from diffusion_gym.rewards.jpeg import Compressibility, Incompressibility, jpeg_kilobytes
    from diffusion_gym.rewards.ocr import OCR
    from diffusion_gym.rewards.pickscore import PickScore
    from diffusion_gym.rewards.pixels import check_differentiable, differentiable, reward_pixels
    from diffusion_gym.rewards.trl import from_trl
    from diffusion_gym.rewards.unified import Unified
    from diffusion_gym.rewards.vlm_alignment import VLMAlignment
    from diffusion_gym.rewards.votes import Votes

__all__ = [
    "OCR",
    "REWARDS",
    "Aesthetic",
    "ClipScore",
    "Compressibility",
    "DifferentiableReward",
    "GenEval",
    "HPSv2",
    "ImageReward",
    "Incompressibility",
    "Linear",
    "PickScore",
    "Quadratic",
    "Reward",
    "RewardError",
    "RewardFunction",
    "RewardSpec",
    "RewardTerm",
    "Scores",
    "Unified",
    "VLMAlignment",
    "Votes",
    "WeightedSum",
    "check_differentiable",
    "check_reward",
    "check_reward_gradient",
    "differentiable",
    "evaluate_reward",
    "file_digests",
    "from_trl",
    "jpeg_kilobytes",
    "resolve_reward",
    "reward_name",
    "reward_pixels",
    "score_images",
]

#: Name -> constructor, whose arguments are the reward's options. A new reward is one file and one line here.
REWARDS: dict[str, Callable[..., RewardFunction]] = _lazy.Registry(
    {
        "aesthetic": "diffusion_gym.rewards.aesthetic:Aesthetic",
        "clip_score": "diffusion_gym.rewards.clip_score:ClipScore",
        "compressibility": "diffusion_gym.rewards.jpeg:Compressibility",
        "geneval": "diffusion_gym.rewards.geneval:GenEval",
        "hpsv2": "diffusion_gym.rewards.hpsv2:HPSv2",
        "imagereward": "diffusion_gym.rewards.imagereward:ImageReward",
        "incompressibility": "diffusion_gym.rewards.jpeg:Incompressibility",
        "ocr": "diffusion_gym.rewards.ocr:OCR",
        "pickscore": "diffusion_gym.rewards.pickscore:PickScore",
        "unified": "diffusion_gym.rewards.unified:Unified",
        "vlm_alignment": "diffusion_gym.rewards.vlm_alignment:VLMAlignment",
        "votes": "diffusion_gym.rewards.votes:Votes",
        "exact-linear": "diffusion_gym.rewards.exact:Linear",
        "exact-quadratic": "diffusion_gym.rewards.exact:Quadratic",
    }
)
_MODULES = {
    "aesthetic": ("Aesthetic",),
    "base": (
        *("DifferentiableReward", "Reward", "RewardError", "RewardFunction", "RewardSpec"),
        *("evaluate_reward", "reward_name"),
    ),
    "clip_score": ("ClipScore",),
    "combine": ("RewardTerm", "Scores", "WeightedSum", "score_images"),
    "exact": ("Linear", "Quadratic"),
    "geneval": ("GenEval",),
    "hpsv2": ("HPSv2",),
    "imagereward": ("ImageReward",),
    "jpeg": ("Compressibility", "Incompressibility", "jpeg_kilobytes"),
    "ocr": ("OCR",),
    "pickscore": ("PickScore",),
    "pixels": ("check_differentiable", "differentiable", "reward_pixels"),
    "trl": ("from_trl",),
    "unified": ("Unified",),
    "vlm_alignment": ("VLMAlignment",),
    "votes": ("Votes",),
}
__getattr__, __dir__ = _lazy.attributes(
    __name__, {name: f"{__name__}.{module}" for module, names in _MODULES.items() for name in names}
)


def resolve_reward(spec: RewardSpec) -> RewardFunction:
    """Return the reward of a specification; models that it needs are loaded, each once per process.

    Raises:
        ValueError: an unknown name or option, an invalid weight, a file without the reward, or weights that cannot be
            loaded.
        TypeError: something that cannot be a reward.
    """
    from diffusion_gym.rewards.combine import RewardTerm, WeightedSum
    from diffusion_gym.rewards.own import check_callable

    if isinstance(spec, str):
        check_reward(spec)  # a mistake in the last term must not wait for the models of the first
        parsed = parse_reward(spec)
        if len(parsed) == 1 and not parsed[0].modifiers:
            return _named(parsed[0].reward)
        built = {name: _named(name) for name in dict.fromkeys(term.reward for term in parsed)}  # each is built once
        return WeightedSum([RewardTerm(built[term.reward], **term.modifiers) for term in parsed])
    if isinstance(spec, Mapping):
        return WeightedSum([term for key, weight in spec.items() for term in _scaled(key, weight)])
    return check_callable(spec)


def check_reward(spec: str) -> None:
    """Raise ValueError for an unknown name or option or an invalid weight; no weights are loaded, no file is run."""
    for term in parse_reward(spec):
        if file_function(term.reward) is None:
            name, _, options = term.reward.partition("?")
            _check_name(name)
            if options:  # without any, the constructor need not be imported
                _constructor_and_options(term.reward)


def check_reward_gradient(spec: str) -> None:
    """Raise ValueError where a registered class in a valid specification has no gradient.

    No weights are loaded and no file is run, so a function in a file may still turn out to have none, as
    :func:`check_differentiable` says once it is loaded.
    """
    from diffusion_gym.rewards.pixels import check_part

    for term in parse_reward(spec):
        if file_function(term.reward) is None:
            name = term.reward.partition("?")[0]
            if isinstance(REWARDS[name], type):
                check_part(name, REWARDS[name])


def _named(name: str) -> RewardFunction:
    file = file_function(name)
    if file is not None:
        from diffusion_gym.rewards.own import load_function

        return load_function(*file)
    from diffusion_gym.rewards.guard import settings_kept

    constructor, options = _constructor_and_options(name)
    with settings_kept(f"the reward {name!r}"):
        return constructor(**options)


def _constructor_and_options(text: str) -> tuple[Callable[..., RewardFunction], dict[str, Any]]:
    """Return constructor and options of ``name?key=value&key=value``."""
    name, _, options = text.partition("?")
    _check_name(name)
    return REWARDS[name], parse_options(name, REWARDS[name], options)


def _check_name(name: str) -> None:
    if name.partition("-")[0] == "judge":
        raise ValueError(
            f"{name!r} is a metric and never a reward, so that it can show when a reward is hacked; train on geneval "
            f"and watch --metrics {name}."
        )
    if name not in REWARDS:
        raise ValueError(
            f"unknown reward {name!r}; expected one of {sorted(REWARDS)}, a function in a file "
            "('path/to/file.py:function'), or in Python a callable (images, prompts) -> scores."
            f"{did_you_mean(name, REWARDS)}"
        )


def _scaled(key: str | RewardFunction, weight: object) -> list[RewardTerm]:
    """Return the terms of a mapping's key, times its weight."""
    from diffusion_gym.rewards.base import reward_name
    from diffusion_gym.rewards.combine import RewardTerm, WeightedSum

    try:
        factor = float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        name = key if isinstance(key, str) else reward_name(key)
        raise ValueError(f"the weight of reward {name!r} must be a finite number, got {weight!r}.") from None
    reward = resolve_reward(key)
    if not isinstance(reward, WeightedSum):
        return [RewardTerm(reward, factor)]
    return [dataclasses.replace(term, weight=term.weight * factor) for term in reward.terms]

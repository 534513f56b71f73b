"""Terminal rewards: one a file, the protocol, and the registry from name to constructor."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from diffusion_gym.rewards.aesthetic import Aesthetic
from diffusion_gym.rewards.base import Reward, RewardError, RewardFunction, evaluate_reward, reward_name
from diffusion_gym.rewards.clip_score import ClipScore
from diffusion_gym.rewards.combine import WeightedSum
from diffusion_gym.rewards.exact import Linear, Quadratic
from diffusion_gym.rewards.jpeg import Compressibility, Incompressibility, jpeg_kilobytes
from diffusion_gym.rewards.options import parse_options
from diffusion_gym.rewards.vlm_alignment import VLMAlignment

__all__ = [
    "REWARDS",
    "Aesthetic",
    "ClipScore",
    "Compressibility",
    "Incompressibility",
    "Linear",
    "Quadratic",
    "Reward",
    "RewardError",
    "RewardFunction",
    "RewardSpec",
    "VLMAlignment",
    "WeightedSum",
    "check_reward",
    "evaluate_reward",
    "jpeg_kilobytes",
    "resolve_reward",
    "reward_name",
]

#: What ``reward=`` accepts: a text as :func:`resolve_reward` describes, a mapping of texts or callables to weights,
#: or a callable.
RewardSpec = str | RewardFunction | Mapping[str | RewardFunction, float]

#: Name -> constructor, whose arguments are the reward's options. A new reward is one file and one line here.
REWARDS: dict[str, Callable[..., RewardFunction]] = {
    "aesthetic": Aesthetic,
    "clip_score": ClipScore,
    "compressibility": Compressibility,
    "incompressibility": Incompressibility,
    "vlm_alignment": VLMAlignment,
    "exact-linear": Linear,
    "exact-quadratic": Quadratic,
}


def resolve_reward(spec: RewardSpec) -> RewardFunction:
    """Turn a reward's specification into a callable, loading the models that it needs.

    A text is ``name``, ``name?key=value&key=value`` with options of the reward, or several of them with weights,
    ``name:weight?key=value,name:weight``.

    Raises:
        ValueError: an unknown name or option, a weight that is no number, or weights that cannot be had.
        TypeError: something that can be no reward.
    """
    if isinstance(spec, str):
        terms = _terms(spec)
        if len(terms) == 1 and terms[0].weight is None:
            return terms[0].build()
        return WeightedSum({term.build(): 1.0 if term.weight is None else term.weight for term in terms})
    if isinstance(spec, Mapping):
        return WeightedSum({resolve_reward(key): _weight(key, weight) for key, weight in spec.items()})
    if callable(spec):
        return spec
    raise TypeError(
        f"reward must be a name, 'name:weight,...', a mapping to weights or a callable (images, prompts) -> scores, "
        f"got {type(spec).__name__}."
    )


def check_reward(spec: str) -> None:
    """Check names, options and weights of a reward's text without loading anything.

    Raises:
        ValueError: an unknown name or option, or a weight that is no number.
    """
    _terms(spec)


@dataclass(frozen=True)
class _Term:
    name: str
    options: Mapping[str, Any]
    weight: float | None

    def build(self) -> RewardFunction:
        return REWARDS[self.name](**self.options)


def _terms(spec: str) -> list[_Term]:
    return [_term(text.strip()) for text in spec.split(",")]


def _term(text: str) -> _Term:
    head, _, options = text.partition("?")  # first of all: options hold colons, as in http://
    name, colon, weight = head.partition(":")
    if name not in REWARDS:
        raise ValueError(
            f"unknown reward {name!r}; expected one of {sorted(REWARDS)}, or a callable (images, prompts) -> scores."
        )
    return _Term(name, parse_options(name, REWARDS[name], options), _weight(name, weight or 1.0) if colon else None)


def _weight(key: str | RewardFunction, weight: object) -> float:
    try:
        value = float(weight)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        name = key if isinstance(key, str) else reward_name(key)
        raise ValueError(
            f"the weight of reward {name!r} must be a finite number, got {weight!r} (expected 'name:weight')."
        )
    return value

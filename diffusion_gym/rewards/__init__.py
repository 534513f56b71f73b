"""Terminal rewards: one a file, the protocol, and the registry from name to constructor."""

import math
from collections.abc import Callable, Mapping

from diffusion_gym.rewards.base import Reward, RewardError, RewardFunction, evaluate_reward, reward_name
from diffusion_gym.rewards.combine import WeightedSum
from diffusion_gym.rewards.exact import Linear, Quadratic
from diffusion_gym.rewards.jpeg import Compressibility, Incompressibility, jpeg_kilobytes

__all__ = [
    "REWARDS",
    "Compressibility",
    "Incompressibility",
    "Linear",
    "Quadratic",
    "Reward",
    "RewardError",
    "RewardFunction",
    "RewardSpec",
    "WeightedSum",
    "evaluate_reward",
    "jpeg_kilobytes",
    "resolve_reward",
    "reward_name",
]

#: What ``reward=`` accepts: a name, ``"name:weight,name:weight"``, a mapping of either to weights, or a callable.
RewardSpec = str | RewardFunction | Mapping[str | RewardFunction, float]

#: Name -> constructor. A new reward is one file and one line here.
REWARDS: dict[str, Callable[[], RewardFunction]] = {
    "compressibility": Compressibility,
    "incompressibility": Incompressibility,
    "exact-linear": Linear,
    "exact-quadratic": Quadratic,
}


def resolve_reward(spec: RewardSpec) -> RewardFunction:
    """Turn a reward's specification into a callable.

    Raises:
        ValueError: an unknown name or a weight that is no number.
        TypeError: something that can be no reward.
    """
    if isinstance(spec, str):
        if ":" not in spec and "," not in spec:
            return _named(spec)
        return WeightedSum({_named(name): weight for name, weight in map(_term, spec.split(","))})
    if isinstance(spec, Mapping):
        return WeightedSum({resolve_reward(key): _weight(key, weight) for key, weight in spec.items()})
    if callable(spec):
        return spec
    raise TypeError(
        f"reward must be a name, 'name:weight,...', a mapping to weights or a callable (images, prompts) -> scores, "
        f"got {type(spec).__name__}."
    )


def _named(name: str) -> RewardFunction:
    if name not in REWARDS:
        raise ValueError(
            f"unknown reward {name!r}; expected one of {sorted(REWARDS)}, or a callable (images, prompts) -> scores."
        )
    return REWARDS[name]()


def _term(text: str) -> tuple[str, float]:
    name, _, weight = text.strip().partition(":")
    return name, _weight(name, weight or 1.0)


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

"""Several rewards as one: weights, normalisation and floors; each part's own scores stay visible."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from diffusion_gym.rewards.base import RewardFunction, check_scores, evaluate_reward, reward_name

#: n mappings, or None for an empty one for each image.
Metadata = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True)
class RewardTerm:
    """One term of a combination.

    A reward's score s, with mean m and std d, adds ``weight * (s - m) / d``. With a floor x the term adds
    ``-weight * max(0, x - s) / d`` instead: 0 above the floor, and below it a penalty in proportion to the gap.

    Attributes:
        reward: gives s.
        weight: finite; of a floor, positive.
        floor: x, in the reward's own unit, or None.
        mean, std: m and d, fixed numbers; by default the score keeps its own unit.
        normalise: m and d are measured instead, see :meth:`WeightedSum.calibrate`.
    """

    reward: RewardFunction
    weight: float = 1.0
    floor: float | None = None
    mean: float = 0.0
    std: float = 1.0
    normalise: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a number out of range."""
        name = reward_name(self.reward)
        for what in ("weight", "floor", "mean", "std"):
            value = getattr(self, what)
            if value is not None and not math.isfinite(value):
                raise ValueError(f"the {what} of reward {name!r} must be a finite number, got {value!r}.")
        if self.std <= 0:
            raise ValueError(f"the std of reward {name!r} must be positive, got {self.std}.")
        if self.floor is not None and self.weight <= 0:
            raise ValueError(f"the floor of reward {name!r} needs a positive weight, got {self.weight}.")
        if self.floor is not None and self.mean:
            raise ValueError(f"the floor of reward {name!r} is in the reward's own unit; a mean has no effect on it.")
        if self.normalise and (self.mean, self.std) != (0.0, 1.0):
            raise ValueError(f"reward {name!r} has both normalise and a mean or std of its own; expected one of them.")

    def __str__(self) -> str:
        """Return the term as a specification writes it."""
        parts = [reward_name(self.reward), f"{self.weight:g}"]
        parts += ["normalise"] if self.normalise else []
        parts += [f"mean={self.mean:g}"] if self.mean else []
        parts += [f"std={self.std:g}"] if self.std != 1 else []
        parts += [] if self.floor is None else [f"floor={self.floor:g}"]
        return ":".join(parts)

    def contribution(self, scores: Tensor, mean: float, std: float) -> Tensor:
        """Return what the term adds, (n,)."""
        if self.floor is not None:
            return -self.weight * (self.floor - scores).clamp(min=0) / std
        return self.weight * (scores - mean) / std


@dataclass(frozen=True)
class Scores:
    """A reward's scores of n images.

    Attributes:
        rewards: (n,), float32.
        parts: of a combined reward, name -> (n,), float32: each reward's own scores, in its own unit.
    """

    rewards: Tensor
    parts: Mapping[str, Tensor] = field(default_factory=dict)


class WeightedSum:
    """A sum of terms. ``WeightedSum({reward: 2.0})`` gives weights alone; ``RewardTerm`` gives the rest.

    A reward in several terms is called once. The statistics of rewards to ``normalise`` are measured once, stored in
    checkpoints, and the same in training and evaluation.
    """

    def __init__(self, terms: Mapping[RewardFunction, float] | Sequence[RewardTerm]) -> None:
        """Raise ValueError without terms, or for one with a number out of range."""
        listed = [RewardTerm(*item) for item in terms.items()] if isinstance(terms, Mapping) else list(terms)
        if not listed:
            raise ValueError("a combined reward needs at least one term, for example {'compressibility': 1.0}.")
        self.terms = tuple(listed)
        self.name = ",".join(map(str, self.terms))
        self._rewards: dict[str, RewardFunction] = {}
        self._names = [self._register(term.reward) for term in self.terms]  # of the reward of each term
        self._statistics: dict[str, tuple[float, float]] = {}

    def _register(self, reward: RewardFunction) -> str:
        name, count = reward_name(reward), 2
        while name in self._rewards and self._rewards[name] is not reward:
            name, count = f"{reward_name(reward)}-{count}", count + 1
        self._rewards[name] = reward
        return name

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        """Return (n,), float32."""
        return self.combine(self.parts(images, prompts, metadata))

    def pixels(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        """Return (n,), float32, with gradient to images (n, 3, H, W), float32 in [0, 1], if all parts have one."""
        from diffusion_gym.rewards.pixels import reward_pixels

        return reward_pixels(self, images, prompts, metadata).rewards

    def parts(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> dict[str, Tensor]:
        """Return each reward's own scores, name -> (n,), float32."""
        return {name: evaluate_reward(reward, images, prompts, metadata) for name, reward in self._rewards.items()}

    def combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Return the sum of the terms, (n,), from :meth:`parts`.

        Raises:
            ValueError: a reward to normalise was not yet measured.
        """
        terms = zip(self.terms, self._names, strict=True)
        return torch.stack([self._contribution(term, name, parts[name]) for term, name in terms]).sum(0)

    def apart(self, parts: Mapping[str, Tensor]) -> tuple[Tensor, list[float]]:
        """Return what each of the k terms adds before it is weighted, (k, n), float32, and the k weights.

        Raises:
            ValueError: a reward to normalise was not yet measured.
        """
        alone = [replace(term, weight=1.0) for term in self.terms]
        terms = zip(alone, self._names, strict=True)
        values = torch.stack([self._contribution(term, name, parts[name]) for term, name in terms])
        return values, [term.weight for term in self.terms]

    def _contribution(self, term: RewardTerm, name: str, scores: Tensor) -> Tensor:
        if not term.normalise:
            return term.contribution(scores, term.mean, term.std)
        if name not in self._statistics:
            raise ValueError(
                f"the mean and std of reward {name!r}, which is to be normalised, were not measured yet; call "
                f"calibrate(images, prompts), or give them: '{name}:mean=5.2:std=0.4'."
            )
        return term.contribution(scores, *self._statistics[name])

    @property
    def names(self) -> list[str]:
        """Return the names of the rewards, the keys of :meth:`parts`."""
        return list(self._rewards)

    @property
    def rewards(self) -> dict[str, RewardFunction]:
        """Return the rewards by name, each once."""
        return dict(self._rewards)

    # -- normalisation ----------------------------------------------------------------------------------------------

    @property
    def needs_calibration(self) -> bool:
        """Return whether the mean and std of a reward to normalise are still unknown."""
        return any(name not in self._statistics for name in self._normalised())

    def calibrate(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Measure mean and std (population, in float64) of the rewards to normalise.

        Raises:
            ValueError: a reward that gives all images the same score.
            RewardError: a reward that fails.
        """
        measured = {}
        for name in self._normalised():
            scores = evaluate_reward(self._rewards[name], images, prompts, metadata)
            scores = scores.cpu().double()  # in this order: MPS has no float64
            mean, std = float(scores.mean()), float(scores.std(correction=0))
            if std <= 1e-6 * max(1.0, abs(mean)):
                raise ValueError(
                    f"reward {name!r} gives all {len(prompts)} images for calibration the score {mean:g}, so it has no "
                    f"std to normalise by; give one: '{name}:std=0.4'."
                )
            measured[name] = (mean, std)
        self._statistics = measured

    def _normalised(self) -> list[str]:
        terms = zip(self.terms, self._names, strict=True)
        return list(dict.fromkeys(name for term, name in terms if term.normalise))

    def state_dict(self) -> dict[str, Any]:
        """Return the measured statistics, JSON-serialisable."""
        return {"statistics": {name: list(values) for name, values in self._statistics.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of ``state_dict``; statistics of rewards that are not normalised here are left out."""
        known = self._normalised()
        self._statistics = {name: (mean, std) for name, (mean, std) in state["statistics"].items() if name in known}

    # -- logging ----------------------------------------------------------------------------------------------------

    @property
    def floors(self) -> dict[str, float]:
        """Return name -> floor of those rewards that have one (the highest, if several)."""
        floors: dict[str, float] = {}
        for term, name in zip(self.terms, self._names, strict=True):
            if term.floor is not None:
                floors[name] = max(term.floor, floors.get(name, -math.inf))
        return floors


def score_images(reward: RewardFunction, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Scores:
    """Return the reward of each image and, of a combined reward, the parts' scores; no gradients.

    Args:
        reward: scores the images.
        images: (n, 3, H, W), uint8.
        prompts: n texts.
        metadata: n mappings, for rewards that take them; None is an empty one for each image.

    Raises:
        RewardError: see :func:`~diffusion_gym.rewards.base.evaluate_reward`; of a combined reward, naming the part.
    """
    with torch.no_grad():
        if not isinstance(reward, WeightedSum):
            return Scores(evaluate_reward(reward, images, prompts, metadata))
        parts = reward.parts(images, prompts, metadata)
        return Scores(check_scores(reward.name, reward.combine(parts), images, prompts), parts)

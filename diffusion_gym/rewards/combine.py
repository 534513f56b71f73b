"""Weighted sums of rewards, written ``"compressibility:0.5,aesthetic:1"``."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusion_gym.rewards.base import RewardFunction, evaluate_reward, reward_name


class WeightedSum:
    """``sum_k weight_k * reward_k``; weights carry the units (a weight of 0.1 on kB counts 10 kB as 1)."""

    def __init__(self, terms: Mapping[RewardFunction, float]) -> None:
        """Raise ValueError where there is no term."""
        if not terms:
            raise ValueError("a combined reward needs at least one term, for example {'compressibility': 1.0}.")
        self.terms = dict(terms)
        self.name = ",".join(f"{reward_name(reward)}:{weight:g}" for reward, weight in self.terms.items())

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32."""
        parts = [weight * evaluate_reward(reward, images, prompts) for reward, weight in self.terms.items()]
        return torch.stack(parts).sum(0)

"""Algorithms that tune diffusion models with rewards, in Stable-Baselines3's habits, and their registry."""

from dataclasses import dataclass
from typing import Any

from algorithms.base import DiffusionAlgorithm, Requirements
from algorithms.config import AlgorithmConfig, EvaluationConfig
from algorithms.ddpo import DDPO, DDPOConfig
from algorithms.policy import DenoisingPolicy, PolicyConfig
from algorithms.rwr import RWR, RWRConfig
from algorithms.sb3_ppo import SB3PPO, SB3PPOConfig

__all__ = [
    "ALGORITHMS",
    "DDPO",
    "RWR",
    "SB3PPO",
    "AlgorithmConfig",
    "AlgorithmEntry",
    "DDPOConfig",
    "DenoisingPolicy",
    "DiffusionAlgorithm",
    "EvaluationConfig",
    "PolicyConfig",
    "RWRConfig",
    "Requirements",
    "SB3PPOConfig",
]


@dataclass(frozen=True)
class AlgorithmEntry:
    """An algorithm's class and the configuration its name stands for."""

    cls: type[DiffusionAlgorithm[Any]]
    config: AlgorithmConfig
    summary: str


#: Name on the command line -> algorithm. A new one is one file and one line here.
ALGORITHMS: dict[str, AlgorithmEntry] = {
    "ddpo-is": AlgorithmEntry(DDPO, DDPOConfig(), "DDPO with importance sampling: several clipped updates a rollout."),
    "ddpo-sf": AlgorithmEntry(
        DDPO,
        DDPOConfig(importance_sampling=False, updates_per_iteration=1),
        "DDPO with the score function: one update a rollout.",
    ),
    "rwr": AlgorithmEntry(RWR, RWRConfig(), "Reward-weighted regression with softmax weights."),
    "sparse-rwr": AlgorithmEntry(RWR, RWRConfig(sparse=True), "Reward-weighted regression on the best images alone."),
    "sb3-ppo": AlgorithmEntry(
        SB3PPO, SB3PPOConfig(), "Stable-Baselines3's PPO, with a value function: a baseline for the others."
    ),
}

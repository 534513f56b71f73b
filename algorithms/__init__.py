"""Algorithms that tune diffusion models with rewards, in Stable-Baselines3's habits, and their registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from algorithms.config.algorithms import PRESETS, DDPOConfig, ForwardProcessConfig, RWRConfig, SB3PPOConfig
from algorithms.config.base import AlgorithmConfig, EvaluationConfig, PolicyConfig
from algorithms.config.preference import OnlinePreferenceConfig
from diffusion_gym import _lazy

if TYPE_CHECKING:
    from algorithms.base import DiffusionAlgorithm, Requirements
    from algorithms.check import check_algorithm
    from algorithms.ddpo import DDPO
    from algorithms.forward_process import ForwardProcess
    from algorithms.policy import DenoisingPolicy
    from algorithms.preference import OnlinePreference
    from algorithms.rwr import RWR
    from algorithms.sb3_ppo import SB3PPO

__all__ = [
    "ALGORITHMS",
    "DDPO",
    "PRESETS",
    "RWR",
    "SB3PPO",
    "AlgorithmConfig",
    "AlgorithmEntry",
    "DDPOConfig",
    "DenoisingPolicy",
    "DiffusionAlgorithm",
    "EvaluationConfig",
    "ForwardProcess",
    "ForwardProcessConfig",
    "OnlinePreference",
    "OnlinePreferenceConfig",
    "PolicyConfig",
    "RWRConfig",
    "Requirements",
    "SB3PPOConfig",
    "check_algorithm",
]


@dataclass(frozen=True)
class AlgorithmEntry:
    """An algorithm's class, or ``module:name`` of it, and the configuration its name stands for."""

    where: type[DiffusionAlgorithm[Any]] | str
    config: AlgorithmConfig
    summary: str

    @property
    def cls(self) -> type[DiffusionAlgorithm[Any]]:
        """The class; its module is imported now, where that is still to be done."""
        return _lazy.found(self.where) if isinstance(self.where, str) else self.where


#: Name on the command line -> algorithm. A new one is one file and one line here.
ALGORITHMS: dict[str, AlgorithmEntry] = {
    "ddpo-is": AlgorithmEntry(
        "algorithms.ddpo:DDPO", DDPOConfig(), "DDPO with importance sampling: several clipped updates per rollout."
    ),
    "ddpo-sf": AlgorithmEntry(
        "algorithms.ddpo:DDPO",
        DDPOConfig(importance_sampling=False, updates_per_iteration=1),
        "DDPO with the score function: one update per rollout.",
    ),
    "rwr": AlgorithmEntry("algorithms.rwr:RWR", RWRConfig(), "Reward-weighted regression with softmax weights."),
    "sparse-rwr": AlgorithmEntry(
        "algorithms.rwr:RWR", RWRConfig(sparse=True), "Reward-weighted regression on the best images alone."
    ),
    "awm": AlgorithmEntry(
        "algorithms.forward_process:ForwardProcess",
        ForwardProcessConfig(),
        "Advantage-weighted denoising of the policy's own images: no trajectories, any sampler.",
    ),
    "nft": AlgorithmEntry(
        "algorithms.forward_process:ForwardProcess",
        ForwardProcessConfig.preset("nft"),
        "DiffusionNFT: as awm, around an old policy that follows slowly, and samples.",
    ),
    "d3po": AlgorithmEntry(
        "algorithms.preference:OnlinePreference",
        OnlinePreferenceConfig(),
        "D3PO's preference loss: the best image of each group against the worst.",
    ),
    "sb3-ppo": AlgorithmEntry(
        "algorithms.sb3_ppo:SB3PPO",
        SB3PPOConfig(),
        "Stable-Baselines3's PPO, with a value function: a baseline for the others.",
    ),
}

__getattr__, __dir__ = _lazy.attributes(
    __name__,
    {
        "DDPO": "algorithms.ddpo",
        "DenoisingPolicy": "algorithms.policy",
        "DiffusionAlgorithm": "algorithms.base",
        "ForwardProcess": "algorithms.forward_process",
        "OnlinePreference": "algorithms.preference",
        "RWR": "algorithms.rwr",
        "Requirements": "algorithms.base",
        "SB3PPO": "algorithms.sb3_ppo",
        "check_algorithm": "algorithms.check",
    },
)

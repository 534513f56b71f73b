"""Algorithms that tune diffusion models with rewards, in the style of Stable-Baselines3, and their registry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from algorithms.config.algorithms import DDPOConfig, RWRConfig, SB3PPOConfig
from algorithms.config.base import AlgorithmConfig, DeployedConfig, EvaluationConfig, PolicyConfig
from algorithms.config.forward_process import PRESETS, ForwardProcessConfig
from algorithms.config.grpo import GRPO_PRESETS, GRPOConfig
from algorithms.config.opsd import OPSDConfig
from algorithms.config.preference import OnlinePreferenceConfig
from algorithms.config.reward_gradient import RewardGradientConfig
from diffusion_gym import _lazy

if TYPE_CHECKING:
    from algorithms.base import DiffusionAlgorithm, Requirements
    from algorithms.check import check_algorithm
    from algorithms.ddpo import DDPO
    from algorithms.forward_process import ForwardProcess
    from algorithms.grpo import GRPO
    from algorithms.opsd import OPSD
    from algorithms.policy import DenoisingPolicy
    from algorithms.preference import OnlinePreference
    from algorithms.reward_gradient import RewardGradient
    from algorithms.rwr import RWR
    from algorithms.sb3_ppo import SB3PPO

__all__ = [
    "ALGORITHMS",
    "DDPO",
    "GRPO",
    "GRPO_PRESETS",
    "OPSD",
    "PRESETS",
    "RWR",
    "SB3PPO",
    "AlgorithmConfig",
    "AlgorithmEntry",
    "DDPOConfig",
    "DenoisingPolicy",
    "DeployedConfig",
    "DiffusionAlgorithm",
    "EvaluationConfig",
    "ForwardProcess",
    "ForwardProcessConfig",
    "GRPOConfig",
    "OPSDConfig",
    "OnlinePreference",
    "OnlinePreferenceConfig",
    "PolicyConfig",
    "RWRConfig",
    "Requirements",
    "RewardGradient",
    "RewardGradientConfig",
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
        "algorithms.rwr:RWR", RWRConfig(sparse=True), "Reward-weighted regression on the best images only."
    ),
    "awm": AlgorithmEntry(
        "algorithms.forward_process:ForwardProcess",
        ForwardProcessConfig(),
        "Advantage-weighted denoising of the policy's own images: no trajectories, any sampler.",
    ),
    "nft": AlgorithmEntry(
        "algorithms.forward_process:ForwardProcess",
        ForwardProcessConfig.preset("nft"),
        "DiffusionNFT: as awm, around an old policy that follows slowly and does the sampling.",
    ),
    **{
        name: AlgorithmEntry("algorithms.grpo:GRPO", GRPOConfig.preset(name), summary)
        for name, summary in {
            "grpo": "DDPO-IS with group advantages, as in Flow-GRPO.",
            "grpo-fast": "Flow-GRPO-Fast: noise and training in two steps, at a random place in the first half.",
            "mixgrpo": "MixGRPO: noise and training in a window of four steps that slides from noise to image.",
            "flow-dppo": "As grpo, with a mask by the KL to the old policy instead of clipping.",
            "branched": "A group is one image up to a random step, the only one with noise of its own, and trained.",
        }.items()
    },
    "draft": AlgorithmEntry(
        "algorithms.reward_gradient:RewardGradient",
        RewardGradientConfig(),
        "DRaFT: the reward's own gradient, through the last sampling steps. For rewards that have one.",
    ),
    "draft-lv": AlgorithmEntry(
        "algorithms.reward_gradient:RewardGradient",
        RewardGradientConfig(draws_per_image=2, one_step=True),
        "DRaFT-LV: as draft, through one step from finished images that are noised again.",
    ),
    "refl": AlgorithmEntry(
        "algorithms.reward_gradient:RewardGradient",
        RewardGradientConfig(gradient_steps=3, random_steps=True, one_step=True),
        "ReFL: as draft, through a random late step and the image that it predicts.",
    ),
    "opsd": AlgorithmEntry(
        "algorithms.opsd:OPSD",
        OPSDConfig(),
        "OPSD: predictions in late steps are drawn to targets along the reward's gradient, as in NFT.",
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
        "GRPO": "algorithms.grpo",
        "OPSD": "algorithms.opsd",
        "OnlinePreference": "algorithms.preference",
        "RWR": "algorithms.rwr",
        "Requirements": "algorithms.base",
        "RewardGradient": "algorithms.reward_gradient",
        "SB3PPO": "algorithms.sb3_ppo",
        "check_algorithm": "algorithms.check",
    },
)

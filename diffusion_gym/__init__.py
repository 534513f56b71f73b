"""Diffusion Gym: denoising as a Markov decision process, as Gymnasium environments, for policy gradients.

``gymnasium.make("DiffusionDenoise-v0")`` and ``gymnasium.make_vec("DiffusionDenoise-v0", num_envs=...)`` work once
this package is imported. See ``algorithms`` for DDPO and reward-weighted regression.
"""

from typing import TYPE_CHECKING

import gymnasium

from diffusion_gym import _lazy
from diffusion_gym.choices import LoRAConfig
from diffusion_gym.prompts import PROMPT_SETS, resolve_prompts
from diffusion_gym.rewards import REWARDS, resolve_reward

if TYPE_CHECKING:
    from diffusion_gym.models import DiffusionModel, load_model
    from diffusion_gym.rewards import Reward, RewardError

__all__ = [
    "ENV_ID",
    "PROMPT_SETS",
    "REWARDS",
    "DiffusionModel",
    "LoRAConfig",
    "Reward",
    "RewardError",
    "load_model",
    "resolve_prompts",
    "resolve_reward",
]

__version__ = "0.1.0"

ENV_ID = "DiffusionDenoise-v0"

__getattr__, __dir__ = _lazy.attributes(
    __name__,
    {
        "DiffusionModel": "diffusion_gym.models",
        "load_model": "diffusion_gym.models",
        "Reward": "diffusion_gym.rewards",
        "RewardError": "diffusion_gym.rewards",
    },
)

if ENV_ID not in gymnasium.registry:
    gymnasium.register(
        ENV_ID,
        entry_point="diffusion_gym.envs.single:DenoiseEnv",
        vector_entry_point="diffusion_gym.envs.vector:DenoiseVectorEnv",
    )

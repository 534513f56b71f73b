"""The spaces of one image's observation and action."""

from typing import Any

import numpy as np
from gymnasium import spaces

from diffusion_gym.models import DiffusionModel
from diffusion_gym.models.base import NEGATIVE

#: Latents and actions lie in [-LATENT_BOUND, LATENT_BOUND]: far beyond any trajectory (which stays within 10), and
#: finite because Stable-Baselines3 refuses infinite bounds.
LATENT_BOUND = 1e3
#: Bound on conditioning values; CLIP's and T5's embeddings stay within a few hundred.
CONDITIONING_BOUND = 1e4

_Spaces = dict[str, spaces.Space[Any]]


def latent_space(model: DiffusionModel) -> spaces.Box:
    """Return the space of a latent, which the action has, too."""
    return spaces.Box(-LATENT_BOUND, LATENT_BOUND, model.latent_shape, np.float32)


def observation_space(
    model: DiffusionModel, largest_time: float, prompt_tokens: bool, negative_prompts: bool
) -> spaces.Dict:
    """Return the space of an observation.

    Args:
        model: gives latents and conditioning.
        largest_time: of the schedule.
        prompt_tokens: whether the prompt's tokens are part of it.
        negative_prompts: whether it also has the unconditional side of guidance.
    """
    prompt: _Spaces = {
        name: spaces.Box(-CONDITIONING_BOUND, CONDITIONING_BOUND, shape, np.float32)
        for name, shape in model.conditioning_shapes.items()
    }
    limits = model.token_limits if prompt_tokens else {}
    tokens: _Spaces = {name: spaces.Box(0, words - 1, (length,), np.int64) for name, (length, words) in limits.items()}
    negative: _Spaces = {}
    if negative_prompts:  # of its tokens -1 is no prompt at all
        none: _Spaces = {
            name: spaces.Box(-1, words - 1, (length,), np.int64) for name, (length, words) in limits.items()
        }
        negative = {NEGATIVE + name: space for name, space in {**prompt, **none}.items()}
    times = spaces.Box(0.0, largest_time, (1,), np.float32)
    return spaces.Dict({"latent": latent_space(model), "timestep": times, **prompt, **tokens, **negative})

"""What these tests share: small runs on the exact model for every algorithm of the registry."""

from collections.abc import Callable
from typing import Any

import gymnasium
import pytest

import diffusion_gym
from algorithms import ALGORITHMS, DiffusionAlgorithm
from tests.builders.algorithms import WEIGHINGS


@pytest.fixture(params=WEIGHINGS)
def name(request: pytest.FixtureRequest) -> str:
    """Each algorithm of the registry."""
    return request.param


@pytest.fixture
def build() -> Callable[..., DiffusionAlgorithm[Any]]:
    """``build(name, reward=..., prompts=..., **config)``: an algorithm on the exact mixture, 16 images an iteration."""

    def make(name: str, reward: Any, prompts: Any = ("north", "south"), **config: Any) -> DiffusionAlgorithm[Any]:
        env = gymnasium.make(
            diffusion_gym.ENV_ID, model="exact-mixture", reward=reward, prompts=list(prompts), num_inference_steps=3
        )
        config = {"images_per_iteration": 16, "images_per_prompt": 8, "num_envs": 16, "trainable": "full", **config}
        if name.endswith("rwr"):
            config = {"updates_per_iteration": 2, "batch_size": 16, **config}
        if name == "sb3-ppo":  # three minibatches of the 48 transitions
            config = {"n_epochs": 1, "batch_size": 16, **config}
            config.pop("updates_per_iteration", None)
        return ALGORITHMS[name].cls(env, ALGORITHMS[name].config, **config)

    return make

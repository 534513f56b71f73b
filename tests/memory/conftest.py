"""What the tests of precision and memory share: small runs on the tiny Stable Diffusion pipeline."""

import hashlib
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest

import diffusion_gym
from algorithms import DDPO, RWR, DiffusionAlgorithm
from algorithms.rollouts import Rollout
from algorithms.sampling import collect

STEPS, PROMPTS = 3, ["cat", "dog"]
SIZES = {"num_envs": 3, "images_per_iteration": 6, "updates_per_iteration": 1, "chunk_size": 4}
SMALL: dict[str, Any] = {**SIZES, "guidance_scale": 1.0}
"""6 images of 3 steps in rounds of 3, without guidance."""


@pytest.fixture
def small_run(tiny_sd: str) -> Callable[..., DiffusionAlgorithm[Any]]:
    """``small_run(cls=DDPO, make={...}, **config)``: an algorithm on the tiny pipeline, nothing trained yet."""

    def make(cls: type = DDPO, make: dict[str, Any] | None = None, **config: Any) -> DiffusionAlgorithm[Any]:
        settings = {"reward": "compressibility", "prompts": PROMPTS, "num_inference_steps": STEPS, **(make or {})}
        env = gymnasium.make(diffusion_gym.ENV_ID, **{"model": tiny_sd, **settings})
        return cls(env, **{**SMALL, **({"images_per_prompt": 3} if cls is RWR else {}), **config})

    return make


@pytest.fixture
def sample() -> Callable[..., Rollout]:
    """``sample(algorithm)``: a rollout of an iteration's images, as ``learn`` collects it."""

    def draw(algorithm: DiffusionAlgorithm[Any]) -> Rollout:
        texts = [PROMPTS[i % 2] for i in range(algorithm.config.images_per_iteration)]
        seed, whole = algorithm.config.seed, algorithm.requires(algorithm.config).trajectory
        return collect(algorithm.rollout_env, algorithm.policy, texts, seed, whole_trajectory=whole)

    return draw


@pytest.fixture
def digest() -> Callable[[DiffusionAlgorithm[Any]], str]:
    """``digest(algorithm)``: a hash of every bit of the trained weights and of the optimizer's moments."""

    def make(algorithm: DiffusionAlgorithm[Any]) -> str:
        hashed = hashlib.sha256()
        for part, tensors in sorted(algorithm.get_parameters().items()):
            for name, value in sorted(tensors.items()):
                hashed.update(f"{part}/{name}".encode() + value.numpy().tobytes())
        return hashed.hexdigest()

    return make

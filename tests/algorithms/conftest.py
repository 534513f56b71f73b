"""What the tests of the algorithms share: small environments, and a digest of the trained weights."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import diffusion_gym
from algorithms import DiffusionAlgorithm
from algorithms.rollouts import Rollout
from algorithms.sampling import collect

MakeEnv = Callable[..., gymnasium.Env]


@pytest.fixture
def make_env() -> MakeEnv:
    """``make_env(model="exact-gaussian", steps=5, reward="exact-quadratic", ...)``: a single environment."""

    def make(
        model: str = "exact-gaussian", steps: int = 5, reward: Any = "exact-quadratic", **kwargs: Any
    ) -> gymnasium.Env:
        return gymnasium.make(diffusion_gym.ENV_ID, model=model, reward=reward, num_inference_steps=steps, **kwargs)

    return make


@pytest.fixture
def sample() -> Callable[..., Rollout]:
    """``sample(algorithm, n)``: a rollout of the algorithm's environment and policy, as ``learn`` collects it."""

    def draw(algorithm: DiffusionAlgorithm[Any], n: int, **kwargs: Any) -> Rollout:
        prompts = [algorithm.mdp.prompts[i % len(algorithm.mdp.prompts)] for i in range(n)]
        with torch.no_grad():
            return collect(algorithm.rollout_env, algorithm.policy, prompts, algorithm.config.seed, **kwargs)

    return draw


@pytest.fixture
def digest() -> Callable[[DiffusionAlgorithm[Any]], str]:
    """``digest(algorithm)``: a hash of every bit of the trained weights and of the optimizer's moments."""

    def make(algorithm: DiffusionAlgorithm[Any]) -> str:
        hashed = hashlib.sha256()
        for part, tensors in sorted(algorithm.get_parameters().items()):
            for name, value in sorted(tensors.items()):
                hashed.update(f"{part}/{name}".encode() + np.ascontiguousarray(value.cpu().numpy()).tobytes())
        return hashed.hexdigest()

    return make


@pytest.fixture
def with_scheduler(tiny_sd: str, tmp_path: Path) -> Callable[..., str]:
    """``with_scheduler(prediction_type="v_prediction")``: a copy of the tiny pipeline with another scheduler config."""

    def make(**changes: Any) -> str:
        folder = tmp_path / "pipeline"
        shutil.copytree(tiny_sd, folder)
        file = folder / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return str(folder)

    return make

"""Fixtures of the families' tests: each family's tiny pipeline, altered ones, environments and rollouts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch

import diffusion_gym
from algorithms import DiffusionAlgorithm
from algorithms.rollouts import Rollout
from algorithms.sampling import collect
from tests.builders.families import FAMILIES, VARIANTS, Built, prompts_of
from tests.builders.pipelines import SD_UNET, tiny_unet, tiny_vae


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Built]:
    """Return a function from a family's name to its tiny pipeline; each is built once a session."""
    built: dict[str, Built] = {}

    def make(name: str) -> Built:
        if name not in built:
            folder = tmp_path_factory.mktemp(name)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                family = (FAMILIES | VARIANTS)[name]
                family.build(folder)
            built[name] = Built(family, str(folder))
        return built[name]

    return make


@pytest.fixture(params=[*FAMILIES, pytest.param("sd-v", marks=pytest.mark.slow)])
def built(request: pytest.FixtureRequest, build: Callable[[str], Built]) -> Built:
    """Each family's tiny pipeline."""
    return build(request.param)


@pytest.fixture(params=[*FAMILIES, *VARIANTS])
def built_or_variant(request: pytest.FixtureRequest, build: Callable[[str], Built]) -> Built:
    """Each family's tiny pipeline, and each variant."""
    return build(request.param)


@pytest.fixture
def altered(build: Callable[[str], Built], tmp_path: Path) -> Callable[..., str]:
    """``altered(family, change, unet={...})``: the folder of its tiny pipeline, of which something is different.

    ``change(pipe)`` alters it in place; parts are modules to replace its own, or of Stable Diffusion's UNet and VAE the
    settings that differ.
    """
    builders = {"unet": lambda **given: tiny_unet(**{**SD_UNET, **given}), "vae": tiny_vae}

    def alter(family: str, change: Callable[[Any], None] = lambda pipe: None, **parts: Any) -> str:
        pipe = build(family).plain()
        for name, part in parts.items():
            setattr(pipe, name, builders[name](**part) if isinstance(part, dict) else part)
        change(pipe)
        pipe.save_pretrained(tmp_path / "altered")
        return str(tmp_path / "altered")

    return alter


@pytest.fixture
def make_env() -> Callable[..., gymnasium.Env]:
    """``make_env(folder, steps=3, ...)``: a single environment with two prompts and the JPEG reward."""

    def make(folder: str, steps: int = 3, **kwargs: Any) -> gymnasium.Env:
        settings = {
            "model": folder,
            "num_inference_steps": steps,
            "prompts": prompts_of(folder, ["cat", "dog"]),
            **kwargs,
        }
        return gymnasium.make(diffusion_gym.ENV_ID, **settings)

    return make


@pytest.fixture
def sample() -> Callable[[DiffusionAlgorithm[Any], int], Rollout]:
    """``sample(algorithm, n)``: a rollout of the algorithm's environment and policy, as ``learn`` collects it."""

    def draw(algorithm: DiffusionAlgorithm[Any], n: int) -> Rollout:
        prompts = [algorithm.mdp.prompts[i % len(algorithm.mdp.prompts)] for i in range(n)]
        with torch.no_grad():
            return collect(algorithm.rollout_env, algorithm.policy, prompts, algorithm.config.seed)

    return draw

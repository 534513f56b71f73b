"""Each algorithm learns of each prompt by that prompt's own rewards; that each learns at all is in test_check.py."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from algorithms import ALGORITHMS, DiffusionAlgorithm
from diffusion_gym.rewards import Linear, differentiable
from tests.builders.algorithms import WEIGHINGS

#: Learning rates suit two means of order 1, not a UNet. One iteration is 64 images of T = 10 steps.
SETTINGS: dict[str, dict[str, Any]] = {
    "ddpo-is": {"learning_rate": 0.03},
    "ddpo-sf": {"learning_rate": 0.1},
    "rwr": {"learning_rate": 0.02, "beta": 0.5},
    "sparse-rwr": {"learning_rate": 0.02, "top_fraction": 0.2},
    "awm": {"learning_rate": 0.1},
    "nft": {"learning_rate": 0.1},
    "branched": {"learning_rate": 0.2},
    "draft": {"learning_rate": 0.1},
    "draft-lv": {"learning_rate": 0.1},
    "refl": {"learning_rate": 0.1},
    "opsd": {"learning_rate": 0.05},
    "d3po": {"learning_rate": 0.1, "images_per_prompt": 8},
    "sb3-ppo": {"learning_rate": 0.03, "n_epochs": 4, "batch_size": 320},
}
IMAGES, STEPS, ITERATIONS = 64, 10, 20


def build(name: str, env: Any, seed: int, **kwargs: Any) -> DiffusionAlgorithm[Any]:
    """The registry's algorithm with settings for the exact model."""
    entry = ALGORITHMS[name]
    common: dict[str, Any] = {"trainable": "full", "images_per_iteration": IMAGES, "num_envs": 64, "chunk_size": 256}
    return entry.cls(env, entry.config, **{**common, "images_per_prompt": 16, "seed": seed, **SETTINGS[name], **kwargs})


def test_every_algorithm_of_the_registry_has_settings() -> None:
    assert set(SETTINGS) == set(WEIGHINGS)


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "sb3-ppo"])  # whose critic has one scale
def test_each_prompt_learns_by_its_own_measure(make_env: Callable, name: str) -> None:
    """Rewards of two prompts differ by 100 and by tenfold in scale; both prompts' components must still rise.

    Advantages from common statistics would be the prompt's sign alone, and the weights of one prompt nothing.
    """

    @differentiable
    def reward(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        first = Linear((1.0, 0.0))(images, prompts)
        return torch.where(torch.tensor([p == "north" for p in prompts]), first, 100 + 10 * first)

    env = make_env("exact-mixture", reward=reward, prompts=["north", "south"], steps=STEPS)
    algorithm = build(name, env, 0)
    start = algorithm.policy.denoiser.means.detach().clone()
    algorithm.learn(ITERATIONS * IMAGES * STEPS)
    gain = (algorithm.policy.denoiser.means.detach() - start)[:, 0] / 0.3  # in stds of a component
    print(f"{name}: {gain.tolist()}")
    assert gain[0] > 1.5  # north
    assert gain[2] > 1.5  # south
    assert gain[[1, 3]].abs().max() < 0.05  # east and west were never asked for

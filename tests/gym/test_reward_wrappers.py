"""The terminal-reward wrappers install into the base environment, single and vectorised."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

import diffusion_gym
from diffusion_gym.rewards.wrappers import TerminalReward, VectorTerminalReward


def _seven(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return torch.full((len(prompts),), 7.0)


def test_single(exact: dict[str, Any]) -> None:
    env = TerminalReward(gymnasium.make(diffusion_gym.ENV_ID, **exact), _seven)
    env.reset(seed=0)
    rewards = [env.step(np.zeros((2, 1, 1), dtype=np.float32))[1] for _ in range(3)]
    assert rewards == [0.0, 0.0, 7.0]
    assert env.unwrapped.score(torch.zeros(2, 2, 1, 1), ["north", "east"]).rewards.tolist() == [7.0, 7.0]


def test_vector(exact: dict[str, Any]) -> None:
    env = VectorTerminalReward(gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=2, **exact), _seven)
    env.reset(seed=0)
    rewards = [env.step(np.zeros((2, 2, 1, 1), dtype=np.float32))[1].tolist() for _ in range(3)]
    assert rewards == [[0.0, 0.0], [0.0, 0.0], [7.0, 7.0]]
    assert env.unwrapped.score(torch.zeros(1, 2, 1, 1), ["north"]).rewards.tolist() == [7.0]


@pytest.mark.parametrize("spec", ["exact-quadratic", "exact-quadratic:1", {"exact-quadratic": 1.0}])
def test_every_spelling(exact: dict[str, Any], spec: Any) -> None:
    """The quadratic reward at the origin is -|0 - (1, 1)|^2 = -2, to the picture code's rounding."""
    env = TerminalReward(gymnasium.make(diffusion_gym.ENV_ID, **exact), spec)
    rewards = env.unwrapped.score(torch.zeros(1, 2, 1, 1), ["north"]).rewards
    assert rewards.tolist() == pytest.approx([-2.0], abs=1e-3)


def test_the_outer_of_two_rewards_counts(exact: dict[str, Any]) -> None:
    env = TerminalReward(TerminalReward(gymnasium.make(diffusion_gym.ENV_ID, **exact), "exact-quadratic"), _seven)
    assert env.unwrapped.score(torch.zeros(1, 2, 1, 1), ["north"]).rewards.tolist() == [7.0]


def test_wrapped_environment_is_made_again_from_its_spec(exact: dict[str, Any]) -> None:
    """With its wrapper and reward; Gymnasium refuses wrappers that do not record how they were made."""
    env = TerminalReward(gymnasium.make(diffusion_gym.ENV_ID, **exact), "exact-quadratic")
    assert env.spec is not None
    again = gymnasium.make(env.spec)
    assert again.unwrapped.score(torch.zeros(1, 2, 1, 1), ["north"]).rewards.tolist() == pytest.approx([-2.0], abs=1e-3)


def test_another_environment_is_refused() -> None:
    with pytest.raises(TypeError, match="wraps a DiffusionDenoise environment, got CartPoleEnv"):
        TerminalReward(gymnasium.make("CartPole-v1"), "exact-linear")
    with pytest.raises(TypeError, match="wraps a DiffusionDenoise environment, got CartPoleVectorEnv"):
        VectorTerminalReward(gymnasium.make_vec("CartPole-v1", num_envs=2), "exact-linear")


def test_unknown_reward_is_refused(exact: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="unknown reward 'beauty'; expected one of"):
        TerminalReward(gymnasium.make(diffusion_gym.ENV_ID, **exact), "beauty")

"""Potential-based rewards: by hand on the Gaussian, their sum, every autoreset, what they cost, and refusals."""

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3 import PPO
from torch import Tensor

import diffusion_gym
from algorithms import DDPO, DenoisingPolicy, PolicyConfig
from algorithms.sb3.actor_critic import DenoisingActorCritic, actor_critic_arguments
from diffusion_gym.models import load_model
from diffusion_gym.rewards.potential import PotentialReward, VectorPotentialReward

GAUSSIAN = {"model": "exact-gaussian", "reward": "exact-linear", "num_inference_steps": 4}


def eighths(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """The points' first coordinates in steps of 1/8, which float32 adds and subtracts exactly."""
    return (diffusion_gym.REWARDS["exact-linear"]()(images, prompts) * 8).round() / 8


def predicted(x: np.ndarray, step: int) -> float:
    """First coordinate of ``E[x_0 | x_t]`` for the mean 0.5 and std 0.5, before step 0 to 3; x_0 itself after them."""
    if step == 4:
        return float(x[0, 0, 0])
    a = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[999 - 250 * step]
    return float(0.5 + np.sqrt(a) * 0.25 / (a * 0.25 + 1 - a) * (x[0, 0, 0] - np.sqrt(a) * 0.5))


def actions(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(4, 2, 1, 1)).astype(np.float32)


def test_rewards_are_differences_of_the_predicted_images_rewards() -> None:
    env = PotentialReward(gymnasium.make(diffusion_gym.ENV_ID, **GAUSSIAN))
    observation, info = env.reset(seed=3)
    states, rewards, potentials = [observation["latent"]], list[float](), [info["potential"]]
    for action in actions():
        observation, reward, terminated, _, info = env.step(action)
        states.append(observation["latent"])
        rewards.append(float(reward))
        potentials.append(info["potential"])
    expected = [predicted(x, step) for step, x in enumerate(states)]
    assert terminated
    assert potentials == pytest.approx(expected, abs=2e-3)  # bytes of an image, and float32
    assert rewards == pytest.approx(np.diff(expected), abs=4e-3)
    assert env.reward_queries == 5
    env.reset()
    assert env.reward_queries == 6


def test_an_episodes_rewards_sum_to_the_terminal_reward_minus_the_first_potential() -> None:
    """Exactly, for a reward whose values float32 subtracts exactly; single, and vectorised with the same bits."""
    given = {**GAUSSIAN, "reward": eighths}
    plain = gymnasium.make(diffusion_gym.ENV_ID, **given)
    env = PotentialReward(gymnasium.make(diffusion_gym.ENV_ID, **given))
    vector = VectorPotentialReward(gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=2, **given))
    _, info = env.reset(seed=3)
    plain.reset(seed=3)
    vector.reset(seed=[3, 4])
    dense, sparse, both = [], [], []
    for action in actions():
        dense.append(env.step(action)[1])
        sparse.append(plain.step(action)[1])
        both.append(vector.step(np.stack([action, action]))[1])
    assert sum(dense) == sum(sparse) - info["potential"]
    assert [float(rewards[0]) for rewards in both] == dense
    assert len(set(dense)) > 1
    assert vector.reward_queries == 2 * 5


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_every_autoreset_begins_with_the_new_episodes_potential(mode: AutoresetMode, output: str) -> None:
    """Two episodes each; DISABLED restarts one environment after the other."""
    arguments = {**GAUSSIAN, "reward": eighths, "output": output, "autoreset_mode": mode}
    env = VectorPotentialReward(gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=2, **arguments))
    base = env.unwrapped
    observation, _ = env.reset(seed=0)

    def potential(observation: dict[str, Any]) -> Tensor:
        """Of a first state."""
        latents = torch.as_tensor(observation["latent"])
        values = torch.tensor([predicted(x.numpy(), 0) for x in latents])
        return (values * 8).round() / 8

    def episode() -> tuple[Any, Tensor]:
        total, end = torch.zeros(2), None
        for action in actions():
            both = np.stack([action, action])
            observation, rewards, ended, _, _ = env.step(both if output == "numpy" else torch.from_numpy(both))
            assert isinstance(rewards, np.ndarray if output == "numpy" else Tensor)
            total += torch.as_tensor(rewards)
            end = observation
        assert bool(torch.as_tensor(ended).all())
        return end, total

    terminal = base.score(torch.from_numpy(np.stack([actions()[-1]] * 2)), ["anywhere"] * 2).rewards
    for _ in range(2):
        first = potential(observation)
        observation, total = episode()
        assert torch.equal(total, terminal - first)
        if mode is AutoresetMode.NEXT_STEP:
            observation, rewards, _, _, _ = env.step(
                base.action_space.sample() if output == "numpy" else torch.zeros(2, 2, 1, 1)
            )
            assert torch.as_tensor(rewards).tolist() == [0.0, 0.0]
        elif mode is AutoresetMode.DISABLED:
            for row in range(2):
                observation, _ = env.reset(options={"reset_mask": np.arange(2) == row})


def test_a_policys_own_prediction_can_be_the_potential() -> None:
    """Its weights are those of each step; before training they are the model's."""
    policy = DenoisingPolicy(load_model("exact-gaussian"), 4, PolicyConfig(trainable="full"))

    def first(*model_output: Any) -> float:
        env = PotentialReward(gymnasium.make(diffusion_gym.ENV_ID, **GAUSSIAN), *model_output)
        return env.reset(seed=0)[1]["potential"]

    own = first(policy.model_output)
    assert own == first()
    with torch.no_grad():
        policy.denoiser.means.add_(1.0)
    assert first(policy.model_output) > own + 0.9  # little is known of x_0 at the first step but the mean


def test_stable_baselines3s_ppo_trains_on_it() -> None:
    """Two episodes, and the first state of a third."""
    env = PotentialReward(gymnasium.make(diffusion_gym.ENV_ID, **GAUSSIAN))
    given = actor_critic_arguments(env, trainable="full")
    ppo = PPO(DenoisingActorCritic, env, policy_kwargs=given, n_steps=8, batch_size=8, n_epochs=1, gamma=1.0)
    ppo.learn(8)
    assert env.reward_queries == 2 * 5 + 1
    assert bool((torch.as_tensor(ppo.rollout_buffer.rewards) != 0).all())


def test_other_environments_and_trainings_that_would_ignore_it_are_refused() -> None:
    with pytest.raises(TypeError, match="a potential reward wraps a DiffusionDenoise environment, got CartPoleEnv"):
        PotentialReward(gymnasium.make("CartPole-v1"))
    with pytest.raises(TypeError, match="got CartPoleVectorEnv"):
        VectorPotentialReward(gymnasium.make_vec("CartPole-v1", num_envs=2))
    with pytest.raises(ValueError, match="the wrapper PotentialReward would be ignored"):
        DDPO(PotentialReward(gymnasium.make(diffusion_gym.ENV_ID, **GAUSSIAN)))

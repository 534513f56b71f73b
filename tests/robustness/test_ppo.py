"""Stable-Baselines3's PPO on the environment: its actor is our Gaussian bit for bit, it learns, saves and loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecMonitor

import diffusion_gym
from algorithms import SB3PPO
from algorithms.sb3.actor_critic import DenoisingActorCritic, actor_critic_arguments
from algorithms.sb3.vec_env import DenoiseVecEnv, find_mdp
from diffusion_gym import LoRAConfig

STEPS, ENVS = 10, 64


@pytest.fixture
def make() -> Callable[..., PPO]:
    """``make(reward=..., **policy)``: PPO on 64 exact Gaussians side by side, an episode a rollout."""

    def build(reward: Any = "exact-linear", seed: int = 0, **policy: Any) -> PPO:
        env = gymnasium.make(diffusion_gym.ENV_ID, model="exact-gaussian", reward=reward, num_inference_steps=STEPS)
        vectorised = VecMonitor(DenoiseVecEnv(find_mdp(env), ENVS))
        return PPO(
            DenoisingActorCritic, vectorised, n_steps=STEPS, batch_size=320, n_epochs=2, gamma=1.0, learning_rate=0.03,
            policy_kwargs=actor_critic_arguments(env, **{"trainable": "full", "chunk_size": 256, **policy}),
            seed=seed, device="cpu",
        )  # fmt: skip

    return build


def mean_reward(ppo: PPO) -> float:
    assert ppo.env is not None
    return float(np.mean(evaluate_policy(ppo, ppo.env, 256, deterministic=False, return_episode_rewards=True)[0]))


@pytest.mark.parametrize("seed", [0, 1])
def test_it_learns(make: Callable[..., PPO], seed: int) -> None:
    """The linear reward starts at 0.5 with std 0.5; 1,280 images lift it by more than one of those."""
    ppo = make(seed=seed)
    before = mean_reward(ppo)
    ppo.learn(20 * ENVS * STEPS)
    after = mean_reward(ppo)
    print(f"PPO: {before:.2f} -> {after:.2f}")
    assert before == pytest.approx(0.5, abs=0.13)  # 4 standard errors
    assert after > before + 0.5


def test_the_ratio_before_the_first_update_is_exactly_1(make: Callable[..., PPO]) -> None:
    """PPO scores minibatches of mixed steps; what it stored while sampling comes out again bit for bit."""
    ppo = make(chunk_size=16)
    _, callback = ppo._setup_learn(1, None)
    ppo.collect_rollouts(ppo.env, callback, ppo.rollout_buffer, n_rollout_steps=STEPS)
    for batch in ppo.rollout_buffer.get(48):
        _, log_prob, _ = ppo.policy.evaluate_actions(batch.observations, batch.actions)
        assert torch.equal(log_prob, batch.old_log_prob)


def test_predict_is_not_padded(make: Callable[..., PPO]) -> None:
    """No ratio is taken of its actions: one environment costs one row; they are the rollout's to float32 rounding."""
    ppo = make(chunk_size=16)
    observation = {name: value[:1] for name, value in ppo.env.reset().items()}
    expected = ppo.policy.forward(ppo.policy.obs_to_tensor(observation)[0], deterministic=True)[0]
    rows: list[int] = []
    ppo.policy.denoising.denoiser.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    actions, _ = ppo.predict(observation, deterministic=True)
    assert rows == [1]
    np.testing.assert_allclose(actions, expected.detach().numpy(), rtol=0, atol=1e-6)


def test_the_log_probability_is_that_of_torch_distributions(make: Callable[..., PPO]) -> None:
    ppo = make()
    observation, _ = ppo.policy.obs_to_tensor(ppo.env.reset())
    actions, _, log_prob = ppo.policy(observation)
    gaussian = ppo.policy._gaussian(observation)
    normal = torch.distributions.Normal(gaussian.mean, gaussian.std.reshape(-1, 1, 1, 1).expand_as(gaussian.mean))
    torch.testing.assert_close(log_prob, normal.log_prob(actions).flatten(1).sum(1))
    _, again, entropy = ppo.policy.evaluate_actions(observation, actions)
    assert torch.equal(again, log_prob)
    constant = 2 * (0.5 + 0.5 * np.log(2 * np.pi))  # PPO's bonus leaves it out: it has no gradient
    torch.testing.assert_close(entropy + constant, normal.entropy().flatten(1).sum(1))


def test_steps_without_a_density_have_no_gradient(make: Callable[..., PPO]) -> None:
    """Ancestral DDPM's last step is deterministic: log-probability 0 there, and the weights stay finite."""
    ppo = make(sampler="ddpm")
    observation, _ = ppo.policy.obs_to_tensor(ppo.env.reset())
    grid = ppo.policy.denoising.transition.schedule.timesteps
    observation["timestep"] = grid[[-1, 0]].repeat(ENVS // 2).float()[:, None]
    _, _, log_prob = ppo.policy(observation)
    assert log_prob[::2].tolist() == [0.0] * (ENVS // 2)
    assert (log_prob[1::2] != 0).all()
    ppo.learn(ENVS * STEPS)
    assert all(bool(value.isfinite().all()) for value in ppo.policy.parameters())


def test_save_and_load(make: Callable[..., PPO], tmp_path: Path) -> None:
    """Stable-Baselines3's own format; the policy is rebuilt on its model, and goes on."""
    ppo = make().learn(2 * ENVS * STEPS, CheckpointCallback(STEPS, str(tmp_path)))
    ppo.save(tmp_path / "ppo")
    assert (tmp_path / f"rl_model_{ENVS * STEPS}_steps.zip").is_file()
    loaded = PPO.load(tmp_path / "ppo", ppo.env, device="cpu")
    observation = ppo.env.reset()
    actions = [one.predict(observation, deterministic=True)[0] for one in (ppo, loaded)]
    assert np.array_equal(*actions)
    assert loaded.num_timesteps == 2 * ENVS * STEPS
    loaded.learn(ENVS * STEPS, reset_num_timesteps=False)
    assert loaded.num_timesteps == 3 * ENVS * STEPS
    alone = DenoisingActorCritic.load(_policy_file(ppo, tmp_path), device="cpu")
    assert np.array_equal(alone.predict(observation, deterministic=True)[0], actions[0])


def _policy_file(ppo: PPO, folder: Path) -> Path:
    ppo.policy.save(str(folder / "policy"))
    return folder / "policy"


def test_adapters_of_a_pipeline_on_a_single_environment(tiny_sd: str) -> None:
    """PPO wraps the environment itself; the adapters and the critic move, the pretrained weights do not."""
    env = gymnasium.make(diffusion_gym.ENV_ID, model=tiny_sd, prompts=["cat", "dog"], num_inference_steps=2)
    arguments = actor_critic_arguments(env, lora=LoRAConfig(rank=2), chunk_size=4, guidance_scale=2.0)
    ppo = PPO(DenoisingActorCritic, env, n_steps=4, batch_size=4, n_epochs=1, policy_kwargs=arguments, device="cpu")
    before = {name: value.detach().clone() for name, value in ppo.policy.named_parameters()}
    ppo.learn(4)
    moved = {name for name, value in ppo.policy.named_parameters() if not torch.equal(value, before[name])}
    assert any("lora" in name for name in moved)
    assert any(name.startswith("value_net") for name in moved)
    assert all("lora" in name or name.startswith("value_net") for name in moved)


# -- as an algorithm of the registry -----------------------------------------------------------------------------------


def sb3_ppo(**config: Any) -> SB3PPO:
    """On the exact Gaussian, 16 images of three steps an iteration."""
    env = gymnasium.make(diffusion_gym.ENV_ID, model="exact-gaussian", reward="exact-linear", num_inference_steps=3)
    common = {"trainable": "full", "images_per_iteration": 16, "num_envs": 8, "chunk_size": 4, "learning_rate": 0.01}
    return SB3PPO(env, **{**common, "n_epochs": 1, "batch_size": 48, **config})


def test_the_registrys_ppo_is_stable_baselines3s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own ``train`` makes every update; sampled and trained rows are counted by hand: 16 x 3 x (1 + 2 x 3)."""
    calls, train = [], PPO.train
    monkeypatch.setattr(PPO, "train", lambda ppo: calls.append(type(ppo)) or train(ppo))
    algorithm = sb3_ppo(n_epochs=2, batch_size=24).learn(2 * 48)
    assert calls == [PPO, PPO]
    assert algorithm.costs["forward_equivalents"] == 2 * 16 * 3 * (1 + 2 * 3)
    assert algorithm._n_updates == 2 * 2 * 2
    assert algorithm.costs["reward_queries"] == 32


def test_the_first_update_starts_at_the_ratio_1() -> None:
    """One minibatch of all transitions, against what rollouts of eight and chunks of four stored.

    To rounding: Stable-Baselines3 shuffles the rows, and kernels round by a row's place in the batch.
    """
    algorithm, said = sb3_ppo(), []
    update = algorithm.update
    algorithm.update = lambda rollout: said.append(update(rollout)) or said[-1]  # type: ignore[method-assign]
    algorithm.learn(48)
    assert said[0]["train/approx_kl"] == pytest.approx(0, abs=1e-6)
    assert said[0]["train/clip_fraction"] == 0.0


def test_the_buffer_holds_whole_episodes_with_the_reward_at_their_end() -> None:
    """With lambda 1 the return of every step is the image's reward, and the advantage is that less the value."""
    algorithm = sb3_ppo(gae_lambda=1.0)
    rollout = algorithm.collect(algorithm._setup_learn(48, None)[1])
    assert rollout is not None
    buffer = algorithm.ppo.rollout_buffer
    algorithm._fill(buffer, rollout)
    rewards = rollout.rewards.numpy()
    assert buffer.full
    np.testing.assert_allclose(buffer.returns, np.broadcast_to(rewards, (3, 16)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(buffer.advantages, rewards - buffer.values, rtol=1e-5, atol=1e-6)
    assert buffer.rewards[:2].any() == np.False_
    assert np.array_equal(buffer.actions[:-1].reshape(2, 16, 2, 1, 1), buffer.observations["latent"][1:])
    assert buffer.episode_starts[0].all()
    assert not buffer.episode_starts[1:].any()


def test_the_critic_is_trained_and_saved(tmp_path: Path) -> None:
    """And what the run draws from NumPy's generator leaves the user's where it was."""
    algorithm = sb3_ppo()
    before = algorithm.get_parameters()["policy"]
    np.random.seed(7)
    algorithm.learn(48)
    assert np.random.rand() == np.random.RandomState(7).rand()
    after = algorithm.get_parameters()["policy"]
    assert {"critic/0.weight", "critic/2.bias"} <= set(after)
    assert not torch.equal(after["critic/0.weight"], before["critic/0.weight"])
    algorithm.save(tmp_path / "run")
    loaded = SB3PPO.load(tmp_path / "run").get_parameters()
    assert loaded["policy"].keys() == after.keys()
    assert all(torch.equal(loaded["policy"][name], after[name]) for name in after)
    assert "critic/0.weight/exp_avg" in loaded["optimizer"]


def test_the_average_and_the_export_are_of_the_policy_alone(tmp_path: Path) -> None:
    algorithm = sb3_ppo(ema_decay=0.5).learn(48)
    assert set(algorithm.get_parameters()["average"]) == set(algorithm.policy.trainable_parameters())
    algorithm.save(tmp_path / "run")
    assert SB3PPO.load(tmp_path / "run").average is not None


def test_what_cannot_work_is_refused(make: Callable[..., PPO]) -> None:
    env = gymnasium.make(diffusion_gym.ENV_ID, model="exact-gaussian", reward="exact-linear", num_inference_steps=3)
    with pytest.raises(ValueError, match=r"policy_kwargs=actor_critic_arguments\(env\)"):
        PPO(DenoisingActorCritic, env, device="cpu")
    with pytest.raises(ValueError, match="use_sde=True is not possible"):
        PPO(DenoisingActorCritic, env, policy_kwargs=actor_critic_arguments(env, trainable="full"), use_sde=True)
    with pytest.raises(ValueError, match=r"PPO needs a stochastic sampler.*eta > 0"):
        make(eta=0.0)
    with pytest.raises(TypeError, match="PolicyConfig has no field 'learning_rate'"):
        actor_critic_arguments(env, learning_rate=1.0)
    with pytest.raises(TypeError, match="expected a DiffusionDenoise environment"):
        actor_critic_arguments(gymnasium.make("CartPole-v1"))

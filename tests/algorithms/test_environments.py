"""The environment that an algorithm is given: its reward wherever it is set, its kinds, its device."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

import diffusion_gym
from algorithms import DDPO, DenoisingPolicy, PolicyConfig
from algorithms.evaluation import evaluate
from algorithms.sb3.vec_env import DenoiseVecEnv, find_mdp
from diffusion_gym import rewards
from diffusion_gym.rewards import Linear, Quadratic
from diffusion_gym.rewards.wrappers import TerminalReward, VectorTerminalReward

ARGUMENTS: dict[str, Any] = {"model": "exact-gaussian", "reward": "exact-quadratic", "num_inference_steps": 3}
N = 2
NEW = "exact-linear"


def one(**changes: Any) -> gymnasium.Env:
    return gymnasium.make(diffusion_gym.ENV_ID, **{**ARGUMENTS, **changes})


def batched(**how: Any) -> gymnasium.vector.VectorEnv:
    return gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=N, **how, **ARGUMENTS)


def dummy(**changes: Any) -> DummyVecEnv:
    return make_vec_env(diffusion_gym.ENV_ID, n_envs=N, env_kwargs={**ARGUMENTS, **changes})


def ddpo(env: Any, **changes: Any) -> DDPO:
    return DDPO(env, trainable="full", images_per_iteration=8, num_envs=4, images=4, **changes)


ROUTES: dict[str, tuple[Callable[[], Any], Callable[[Any, DDPO], object]]] = {
    "the environment": (one, lambda env, _: env.unwrapped.set_reward(NEW)),
    "a wrapper": (one, lambda env, _: TerminalReward(env, NEW)),
    "the vector environment": (batched, lambda env, _: env.unwrapped.set_reward(NEW)),
    "a vector wrapper": (batched, lambda env, _: VectorTerminalReward(env, NEW)),
    "get_env()": (one, lambda _, algorithm: algorithm.get_env().env_method("set_reward", NEW)),
    "the MDP": (one, lambda _, algorithm: algorithm.mdp.set_reward(NEW)),
    "the rollouts' environment": (one, lambda _, algorithm: algorithm.rollout_env.set_reward(NEW)),
    "DummyVecEnv": (dummy, lambda env, _: env.env_method("set_reward", NEW)),
    "SyncVectorEnv": (lambda: batched(vectorization_mode="sync"), lambda env, _: env.call("set_reward", NEW)),
}


@pytest.mark.parametrize("route", ROUTES)
def test_a_reward_that_is_set_later_is_everyones(route: str, sample: Callable, tmp_path: Path) -> None:
    """Rollouts, evaluation, ``get_env()`` and checkpoints follow, whoever was told; also after ``set_env``."""
    build, change = ROUTES[route]
    env = build()
    moved = ddpo(one())
    moved.set_env(env)
    for algorithm in (ddpo(env), moved):
        algorithm.mdp.set_reward("exact-quadratic")
        rollout = sample(algorithm, 4)
        assert torch.equal(rollout.rewards, Quadratic()(rollout.images, rollout.prompts))
        change(env, algorithm)
        rollout = sample(algorithm, 4)
        assert torch.equal(rollout.rewards, Linear()(rollout.images, rollout.prompts))
        evaluation = evaluate(algorithm.mdp, algorithm.policy, algorithm.config, 0)
        assert torch.equal(evaluation.rewards, Linear()(evaluation.images, evaluation.prompts))
        vec_env = algorithm.get_env()
        assert isinstance(vec_env, DenoiseVecEnv)
        vec_env.reset()
        for _ in range(3):
            _, given, _, infos = vec_env.step(np.zeros((4, 2, 1, 1), np.float32))
        images = torch.stack([torch.from_numpy(info["image"]).permute(2, 0, 1) for info in infos])
        assert given.tolist() == Linear()(images, ["anywhere"] * 4).tolist()
        algorithm.save(tmp_path / "run")
        assert DDPO.load(tmp_path / "run").mdp.reward_spec == NEW


def test_a_method_is_called_once_for_all_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward may load a model: 4 environments must not load it 4 times."""
    built: list[Linear] = []

    def build() -> Linear:
        built.append(Linear())
        return built[-1]

    monkeypatch.setitem(rewards.REWARDS, NEW, build)
    assert ddpo(one()).get_env().env_method("set_reward", NEW) == [None] * 4
    assert len(built) == 1


def test_a_reward_of_its_own_is_not_shared() -> None:
    mdp = find_mdp(one())
    assert mdp.twin(2, NEW).reward_spec == NEW
    assert mdp.reward_spec == "exact-quadratic"


@pytest.mark.parametrize(
    "build", [dummy, lambda: VecMonitor(DummyVecEnv([one] * N)), lambda: batched(vectorization_mode="sync")]
)
def test_environments_side_by_side_are_accepted(build: Callable, digest: Callable) -> None:
    """Their number is kept, and training is that on the single environment."""
    assert find_mdp(build()).num_envs == N
    assert DDPO._wrap_env(build()).num_envs == N
    assert digest(ddpo(build()).learn(24)) == digest(ddpo(one()).learn(24))


@pytest.mark.parametrize("reward", [Linear().__call__, {Linear(): 2.0}, "exact-linear:2"])
def test_rewards_of_every_kind_are_seen_to_be_alike(reward: Any) -> None:
    """A mapping becomes another object in each environment."""
    assert find_mdp(dummy(reward=reward)).num_envs == N


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "exact-flow-gaussian"},
        {"reward": NEW},
        {"reward": {Quadratic(): 2.0}},
        {"num_inference_steps": 4},
        {"prompts": ["centre"]},
    ],
)
def test_environments_that_differ_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(ValueError, match=f"side by side must be alike, but they differ in {name}: .*same arguments"):
        ddpo(DummyVecEnv([one, lambda: one(**changes)]))


@pytest.mark.parametrize("kind", [SubprocVecEnv, gymnasium.vector.AsyncVectorEnv])
def test_environments_in_other_processes_are_refused(kind: type) -> None:
    """With what to write instead; none is started for the test."""
    env = kind.__new__(kind)
    env.num_envs = 3
    with pytest.raises(TypeError, match=rf"{kind.__name__} keeps .* write gymnasium.make_vec\('Diff.*', num_envs=3, "):
        ddpo(env)


def test_an_id_is_made_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default stays the CPU; "auto" is CUDA where there is, as in Stable-Baselines3."""
    made: list[dict[str, Any]] = []

    env = one()

    def make(env_id: str, **given: Any) -> gymnasium.Env:
        made.append(given)
        return env

    monkeypatch.setattr("algorithms.sb3.vec_env.gymnasium.make", make)
    for device in (None, "cuda", torch.device("cuda:1")):
        find_mdp(diffusion_gym.ENV_ID, device=device)
    for there in (True, False):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        find_mdp(diffusion_gym.ENV_ID, device="auto")
    assert made == [{}, *({"device": device} for device in ("cuda", "cuda:1", "cuda")), {}]


def test_a_given_environment_keeps_its_device(tmp_path: Path) -> None:
    for device in (None, "auto", "cpu", "cpu:0", torch.device("cpu")):
        algorithm = ddpo(one(), device=device)
        assert algorithm.device == algorithm.mdp.model.device == torch.device("cpu")
    algorithm.save(tmp_path / "run")
    assert DDPO.load(tmp_path / "run", one(), device="cpu").device == torch.device("cpu")
    hint = r"is on 'cpu', not on 'cuda'; .*gymnasium\.make_vec\('DiffusionDenoise-v0', \.\.\., device='cuda'\)"
    for env in (one(), batched(), dummy()):
        with pytest.raises(ValueError, match=hint):
            ddpo(env, device="cuda")
    with pytest.raises(ValueError, match=hint):
        DDPO.load(tmp_path / "run", one(), device="cuda")


def test_an_unknown_device_and_another_environment_by_id_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown device 'tpu'; expected for example 'auto', 'cpu', 'cuda'"):
        ddpo(diffusion_gym.ENV_ID, device="tpu")
    with pytest.raises(ValueError, match=r"its id, as 'DiffusionDenoise-v0', got 'CartPole-v1', of which .* 'device'"):
        ddpo("CartPole-v1", device="cpu")


# -- a policy for stepping one ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [one, batched])
def test_a_policy_from_an_environment(build: Callable) -> None:
    """It has the environment's model and steps, what the model recommends, and the settings that are given."""
    env = build()
    policy = DenoisingPolicy.from_env(env, eta=0.0)
    assert policy.config == PolicyConfig(trainable="full", chunk_size=64, eta=0.0)
    observation, _ = env.reset(seed=0)
    for _ in range(ARGUMENTS["num_inference_steps"]):
        action, _ = policy.predict(observation)
        observation, rewards, terminated, *_ = env.step(action)
    assert np.all(terminated)
    assert np.isfinite(rewards).all()
    with pytest.raises(TypeError, match="reward belongs to the environment"):
        DenoisingPolicy.from_env(env, reward=NEW)

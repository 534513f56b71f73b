"""Wrappers around the environment that training is given: those that cannot matter pass, all others are refused."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import wrappers as single
from gymnasium.vector import VectorEnv, VectorWrapper
from gymnasium.wrappers import vector
from stable_baselines3.common import vec_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper, VecMonitor, VecNormalize

import diffusion_gym
from algorithms import DDPO, RWR
from algorithms.sb3.actor_critic import actor_critic_arguments
from algorithms.sb3.vec_env import find_mdp
from algorithms.sb3.wrappers import check_wrappers
from algorithms.sb3_ppo import SB3PPO
from diffusion_gym.envs.single import DenoiseEnv
from diffusion_gym.rewards.wrappers import TerminalReward, VectorTerminalReward

ARGUMENTS: dict[str, Any] = {"model": "exact-gaussian", "reward": "exact-linear", "num_inference_steps": 3}
SMALL: dict[str, Any] = {"trainable": "full", "images_per_iteration": 4, "num_envs": 4}
IGNORED = r"would be ignored.*leave it out, and give the reward itself: gymnasium\.make\('DiffusionDenoise-v0', reward="


def one(**changes: Any) -> gymnasium.Env:
    return gymnasium.make(diffusion_gym.ENV_ID, **{**ARGUMENTS, **changes})


def batched(**how: Any) -> VectorEnv:
    return gymnasium.make_vec(diffusion_gym.ENV_ID, num_envs=2, **how, **ARGUMENTS)


class Penalty(gymnasium.Wrapper):
    """A user's own: the reward becomes a cost."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, -float(reward), terminated, truncated, info


class LoudOrder(single.OrderEnforcing):
    """A subclass of a harmless wrapper, which is not."""

    def step(self, action: Any) -> Any:
        return super().step(2 * action)


class VectorPenalty(VectorWrapper):
    """The same for environments side by side."""

    def step(self, actions: Any) -> Any:
        observation, rewards, *rest = self.env.step(actions)
        return observation, -rewards, *rest


class VecPenalty(VecEnvWrapper):
    """The same in Stable-Baselines3's way."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        observation, rewards, dones, infos = self.venv.step_wait()
        return observation, -rewards, dones, infos


class CostlyEnv(DenoiseEnv):
    """A subclass of the environment itself."""

    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return observation, -reward, *rest


class RenamedEnv(DenoiseEnv):
    """A subclass that changes nothing but its arguments."""

    def __init__(self) -> None:
        super().__init__(**ARGUMENTS)


class LateDummy(DummyVecEnv):
    """A subclass of what holds environments."""

    def step_wait(self) -> Any:
        observation, rewards, dones, infos = super().step_wait()
        return observation, 0 * rewards, dones, infos


def patched() -> gymnasium.Env:
    """An environment whose step was replaced from outside."""
    env = one()
    step = env.unwrapped.step
    env.unwrapped.step = lambda action: step(action)  # type: ignore[method-assign]
    return env


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "TransformReward": (lambda: single.TransformReward(one(), lambda reward: -reward), "wrapper TransformReward"),
    "inside harmless ones": (lambda: Monitor(single.NormalizeReward(one())), "wrapper NormalizeReward"),
    "ClipReward": (lambda: single.ClipReward(one(), -1, 1), "wrapper ClipReward"),
    "FlattenObservation": (lambda: single.FlattenObservation(one()), "wrapper FlattenObservation"),
    "RescaleAction": (lambda: single.RescaleAction(one(), np.float32(-1), np.float32(1)), "wrapper RescaleAction"),
    "own": (lambda: Penalty(one()), "wrapper Penalty"),
    "a subclass of a harmless one": (lambda: LoudOrder(one()), "wrapper LoudOrder"),
    "vector TransformReward": (lambda: vector.TransformReward(batched(), lambda reward: -reward), "TransformReward"),
    "vector NormalizeReward": (lambda: vector.NormalizeReward(batched()), "wrapper NormalizeReward"),
    "own vector": (lambda: VectorPenalty(batched()), "wrapper VectorPenalty"),
    "VecNormalize": (lambda: VecNormalize(DummyVecEnv([one] * 2)), "wrapper VecNormalize"),
    "own VecEnvWrapper": (lambda: VecMonitor(VecPenalty(DummyVecEnv([one]))), "wrapper VecPenalty"),
    "around get_env()": (lambda: VecPenalty(DDPO(one(), **SMALL).get_env()), "wrapper VecPenalty"),
    "in a DummyVecEnv": (lambda: DummyVecEnv([one, lambda: Penalty(one())]), "wrapper Penalty"),
    "in make_vec_env": (
        lambda: make_vec_env(diffusion_gym.ENV_ID, 2, env_kwargs=ARGUMENTS, wrapper_class=Penalty), "wrapper Penalty",
    ),
    "in a SyncVectorEnv": (lambda: batched(vectorization_mode="sync", wrappers=[Penalty]), "wrapper Penalty"),
    "the environment's own step": (lambda: CostlyEnv(**ARGUMENTS), "method 'step' of CostlyEnv"),
    "the holder's own step": (lambda: LateDummy([one]), "method 'step_wait' of LateDummy"),
    "a step from outside": (patched, "method 'step' of DenoiseEnv"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_training_would_ignore_is_refused(name: str) -> None:
    build, what = REFUSED[name]
    with pytest.raises(ValueError, match=f"{what}.*{IGNORED}"):
        find_mdp(build())


@pytest.mark.parametrize("algorithm", [DDPO, RWR, SB3PPO])
def test_every_way_into_training_refuses(algorithm: Any, tmp_path: Path) -> None:
    """The constructor, ``set_env`` and ``load``; PPO itself steps what it is given, so there wrappers count."""
    settings = {**SMALL, **({"images_per_prompt": 4} if algorithm is RWR else {})}
    trained = algorithm(one(), **settings)
    trained.save(tmp_path / "run")
    for way in (
        lambda env: algorithm(env, **settings),
        trained.set_env,
        lambda env: algorithm.load(tmp_path / "run", env),
        algorithm._wrap_env,
    ):
        with pytest.raises(ValueError, match="the wrapper Penalty would be ignored"):
            way(Penalty(one()))
    assert actor_critic_arguments(Penalty(one()))["model"] == "exact-gaussian"


ACCEPTED: dict[str, Callable[[], Any]] = {
    "Autoreset": lambda: single.Autoreset(one()),
    "Monitor": lambda: Monitor(one()),
    "RecordEpisodeStatistics": lambda: single.RecordEpisodeStatistics(one()),
    "RenderCollection": lambda: single.RenderCollection(one(render_mode="rgb_array")),
    "noise on pictures": lambda: single.AddWhiteNoise(one(render_mode="rgb_array"), probability_of_noise_per_pixel=0.5),
    "TimeLimit": lambda: one(max_episode_steps=3),
    "TerminalReward": lambda: TerminalReward(one(reward="exact-quadratic"), "exact-linear"),
    "VectorTerminalReward": lambda: VectorTerminalReward(batched(), "exact-linear"),
    "vector RecordEpisodeStatistics": lambda: vector.RecordEpisodeStatistics(batched()),
    "DictInfoToList": lambda: vector.DictInfoToList(batched()),
    "VecMonitor and VecCheckNan": lambda: vec_env.VecCheckNan(VecMonitor(DummyVecEnv([one] * 2))),
    "make_vec_env": lambda: make_vec_env(diffusion_gym.ENV_ID, 2, env_kwargs=ARGUMENTS),
    "around get_env()": lambda: VecMonitor(DDPO(one(), **SMALL).get_env()),
    "a subclass that steps alike": RenamedEnv,
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_cannot_matter_passes(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mdp = find_mdp(ACCEPTED[name]())
    assert (mdp.reward_spec, mdp.num_inference_steps) == ("exact-linear", 3)


def test_a_time_limit_below_the_episode_is_refused() -> None:
    for env in (one(max_episode_steps=2), DummyVecEnv([lambda: single.TimeLimit(one(), 2)])):
        with pytest.raises(
            ValueError, match=r"TimeLimit\(2\) would end episodes of 3 steps early.*num_inference_steps=2"
        ):
            find_mdp(env)


def test_what_would_record_nothing_is_said(tmp_path: Path) -> None:
    """A video, or a Monitor's file."""
    recorder = vec_env.VecVideoRecorder.__new__(vec_env.VecVideoRecorder)  # which needs the package moviepy
    recorder.recorded_frames = []
    with pytest.warns(UserWarning, match="VecVideoRecorder records nothing of training"):
        check_wrappers([recorder], 3)
    with pytest.warns(UserWarning, match=r"Monitor records nothing of training.*get_env\(\)"):
        find_mdp(Monitor(one(), str(tmp_path / "log")))
    with pytest.warns(UserWarning, match="VecMonitor records nothing of training"):
        find_mdp(VecMonitor(DummyVecEnv([one]), str(tmp_path / "log")))


def test_what_only_looks_like_the_environment_is_refused() -> None:
    class Forwarding:
        """A wrapper that is no gymnasium.Wrapper."""

        def __init__(self, env: Any) -> None:
            self.env = env

        def __getattr__(self, name: str) -> Any:
            return getattr(self.env, name)

    with pytest.raises(TypeError, match=r"expected a DiffusionDenoise environment.*got Forwarding"):
        find_mdp(Forwarding(one().unwrapped))


#: Every wrapper of the libraries that was looked at and is refused, because it changes what training would take.
LOOKED_AT = {
    single: "AtariPreprocessing DelayObservation DtypeObservation DiscretizeObservation FilterObservation "
    "FlattenObservation FrameStackObservation GrayscaleObservation TransformObservation MaxAndSkipObservation "
    "NormalizeObservation AddRenderObservation ResizeObservation ReshapeObservation RescaleObservation "
    "TimeAwareObservation ClipAction DiscretizeAction TransformAction RescaleAction StickyAction RepeatAction "
    "ClipReward TransformReward NormalizeReward ArrayConversion JaxToNumpy JaxToTorch NumpyToTorch",
    vector: "VectorizeTransformObservation VectorizeTransformAction VectorizeTransformReward DtypeObservation "
    "FilterObservation FlattenObservation GrayscaleObservation TransformObservation NormalizeObservation "
    "ResizeObservation ReshapeObservation RescaleObservation ClipAction TransformAction RescaleAction ClipReward "
    "TransformReward NormalizeReward ArrayConversion JaxToNumpy JaxToTorch NumpyToTorch",
    vec_env: "VecExtractDictObs VecFrameStack VecNormalize VecTransposeImage VecEnvWrapper",
}


@pytest.mark.parametrize("library", LOOKED_AT, ids=lambda library: library.__name__)
def test_every_wrapper_of_the_libraries_was_looked_at(library: Any) -> None:
    """One that a new version brings fails here until it is put among those that pass or those that are refused."""
    from algorithms.sb3 import wrappers

    passes = {kind.__name__ for kind in wrappers._HARMLESS | wrappers._WATCHING} | {"TimeLimit", "vector"}
    names = {name for name in library.__all__ if library is not vec_env or name.startswith("Vec")} - {"VecEnv"}
    assert names - passes <= set(LOOKED_AT[library].split())

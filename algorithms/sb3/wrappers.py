"""Which wrappers an environment may have when algorithms train on its MDP directly, without stepping it."""

import warnings
from collections.abc import Sequence
from typing import Any

import gymnasium
from gymnasium import wrappers as single
from gymnasium.vector import VectorWrapper
from gymnasium.wrappers import vector
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecCheckNan, VecEnvWrapper, VecMonitor, VecVideoRecorder

from diffusion_gym import ENV_ID
from diffusion_gym.rewards.wrappers import TerminalReward, VectorTerminalReward

#: They change neither rewards, observations, actions nor the episode's length; a subclass may, so types are compared.
_HARMLESS: set[type] = {
    single.Autoreset, single.OrderEnforcing, single.PassiveEnvChecker, single.RecordEpisodeStatistics,
    single.RenderCollection, single.AddWhiteNoise, single.ObstructView, vector.RecordEpisodeStatistics,
    vector.DictInfoToList, Monitor, VecMonitor, VecCheckNan, TerminalReward, VectorTerminalReward,
}  # fmt: skip
#: Harmless as well, but they show or record steps, of which training takes none here.
_WATCHING: set[type] = {
    single.RecordVideo, single.HumanRendering, vector.RecordVideo, vector.HumanRendering, VecVideoRecorder,
}  # fmt: skip
_METHODS = ("step", "reset", "step_async", "step_wait", "reward", "score")


def layers(env: Any) -> tuple[list[Any], Any]:
    """Return an environment's wrappers, from the outside in, and what they wrap."""
    around = []
    while isinstance(env, gymnasium.Wrapper | VectorWrapper | VecEnvWrapper):
        around.append(env)
        env = env.venv if isinstance(env, VecEnvWrapper) else env.env
    return around, env


def check_methods(env: Any, base: type) -> None:
    """Refuse an environment that steps in another way than ``base``, its class in this library or one it is built on.

    Raises:
        ValueError: it has a method of its own that training would ignore.
    """
    changed = _changed(env, base)
    if changed:
        raise ValueError(_ignored(f"the method {changed[0]!r} of {type(env).__name__}"))


def check_wrappers(around: Sequence[Any], num_inference_steps: int) -> None:
    """Refuse wrappers that training would ignore; warn of those that would see nothing of it.

    Args:
        around: the wrappers.
        num_inference_steps: length of an episode.

    Raises:
        ValueError: one that may change rewards, observations or actions, or a time limit below the episode's length.
    """
    for wrapper in around:
        kind = type(wrapper)
        if kind is single.TimeLimit:
            check_methods(wrapper, kind)
            _check_limit(wrapper._max_episode_steps, num_inference_steps)
        elif kind in _HARMLESS | _WATCHING:
            check_methods(wrapper, kind)
            if kind in _WATCHING or vars(wrapper).get("results_writer") is not None:
                warnings.warn(
                    f"{kind.__name__} records nothing of training, which does not step this environment; put it around "
                    "the environment of an evaluation (EvalCallback), or around the algorithm's get_env().",
                    stacklevel=2,
                )
        else:
            raise ValueError(_ignored(f"the wrapper {kind.__name__}"))


def _check_limit(limit: int, num_inference_steps: int) -> None:
    if limit < num_inference_steps:
        raise ValueError(
            f"TimeLimit({limit}) would end episodes of {num_inference_steps} steps early, but training takes them "
            f"whole; leave the limit out, or make the environment with num_inference_steps={limit}."
        )


def _changed(env: Any, base: type) -> list[str]:
    """Names of the methods that are not the base's own."""
    return [
        name
        for name in _METHODS
        if name in vars(env) or getattr(type(env), name, None) is not getattr(base, name, None)
    ]


def _ignored(what: str) -> str:
    return (
        f"{what} would be ignored, because training takes latents, prompts and the terminal reward from inside the "
        f"environment; leave it out, and give the reward itself: gymnasium.make({ENV_ID!r}, reward=...), or "
        "diffusion_gym.rewards.wrappers.TerminalReward(env, ...)."
    )

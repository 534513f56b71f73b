"""The environment as Stable-Baselines3 sees it, a VecEnv in NumPy; and from an environment to its MDP and back."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from algorithms.sb3.wrappers import check_methods, check_wrappers, layers
from diffusion_gym import ENV_ID
from diffusion_gym.envs.config import DEFAULT_MODEL
from diffusion_gym.envs.mdp import DenoisingMDP
from diffusion_gym.envs.single import DenoiseEnv
from diffusion_gym.envs.vector import DenoiseVectorEnv
from diffusion_gym.models import DiffusionModel
from diffusion_gym.rewards import WeightedSum


class DenoiseVecEnv(VecEnv):
    """n denoising environments on a shared model, reward and prompt set.

    Rollouts do not pass through here: algorithms use :attr:`mdp` directly, in torch. A reward set here is theirs too.
    Nothing is allocated before it is used. Pictures of the present latents can always be had (``render``), whatever
    the render mode of the environment that the MDP came from.
    """

    def __init__(self, mdp: DenoisingMDP, num_envs: int) -> None:
        """Args: mdp: whose model, reward, prompts and steps are used."""
        self.mdp = mdp
        super().__init__(num_envs, mdp.observation_space(), mdp.action_space())
        self.metadata = dict(DenoiseVectorEnv.metadata)
        self._actions: np.ndarray | None = None

    @cached_property
    def venv(self) -> DenoiseVectorEnv:
        """The batched environment."""
        return DenoiseVectorEnv.sharing(self.mdp, self.num_envs, "numpy", AutoresetMode.SAME_STEP)

    def reset(self) -> VecEnvObs:
        """Start n episodes, with the seeds and options set before."""
        options = self._options[0] or None
        observation, info = self.venv.reset(
            seed=self._seeds if any(s is not None for s in self._seeds) else None, options=options
        )
        self.reset_infos = self._split(info)
        self._reset_seeds()
        self._reset_options()
        return observation

    def step_async(self, actions: np.ndarray) -> None:
        """Keep the actions for :meth:`step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Move all environments; those that end restart, their last observation in ``terminal_observation``."""
        observation, rewards, terminations, truncations, info = self.venv.step(self._actions)
        dones = terminations | truncations
        infos = self._split(info)
        for row in np.flatnonzero(dones):
            final = _at_row(info["final_info"], int(row))
            infos[row] = {**final, "terminal_observation": info["final_obs"][row], "TimeLimit.truncated": False}
        return observation, rewards.astype(np.float32), dones, infos

    def close(self) -> None:
        """Release nothing: the model is shared."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute of the environments, once per index."""
        value = "rgb_array" if attr_name == "render_mode" else getattr(self.venv, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of all environments at once."""
        setattr(self.venv, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the batched environment, once for all; return its result once per index."""
        result = getattr(self.venv, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each index: the batched environment has no wrappers."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Return the present latents decoded."""
        images = self.mdp.model.decode(self.venv.mdp.latents).permute(0, 2, 3, 1).cpu().numpy()
        return list(images)

    def _get_indices(self, indices: VecEnvIndices) -> Iterable[int]:
        return range(self.num_envs) if indices is None else ([indices] if isinstance(indices, int) else indices)

    def _split(self, info: dict[str, Any]) -> list[dict[str, Any]]:
        present = {name: value for name, value in info.items() if not name.startswith(("final", "_final"))}
        return [_at_row(present, row) for row in range(self.num_envs)]


def _at_row(info: Mapping[str, Any], row: int) -> dict[str, Any]:
    """Return a vector environment's info of one row, without masks."""
    return {
        name: _at_row(value, row) if isinstance(value, Mapping) else value[row]
        for name, value in info.items()
        if not (name.startswith("_") and name[1:] in info)  # a reward's own name may begin so
    }


_KNOWN = (DenoiseEnv, DenoiseVectorEnv, DenoiseVecEnv, DummyVecEnv, SyncVectorEnv)


def find_mdp(
    env: Any, prompt_tokens: bool = False, device: torch.device | str | None = None, *, stepped: bool = False
) -> DenoisingMDP:
    """Return the denoising MDP inside an environment, or of the environment that an id names.

    Args:
        env: an environment or its id. A DummyVecEnv or SyncVectorEnv gives a twin of its first environment's MDP, of
            as many episodes as it has environments.
        prompt_tokens: whether its observation must hold the prompt's tokens.
        device: where an id's environment is made, "auto" on CUDA where there is; a given one must be there already.
        stepped: whether the environment itself is stepped, so that its wrappers have their effect; else all that would
            be ignored is refused.

    Raises:
        TypeError: an environment of another kind, or environments in other processes.
        ValueError: an id that Gymnasium does not know, an observation that lacks the tokens, another device,
            environments that differ, or a wrapper that would be ignored.
    """
    if isinstance(env, str):
        env, device = _make(env, prompt_tokens, device), None
    around, inner = layers(env)
    if isinstance(inner, SubprocVecEnv | AsyncVectorEnv):
        raise TypeError(
            f"{type(inner).__name__} keeps its environments in other processes, out of reach of training; write "
            f"gymnasium.make_vec({ENV_ID!r}, num_envs={inner.num_envs}, ...), which denoises them in one batch."
        )
    if isinstance(inner, DummyVecEnv | SyncVectorEnv):
        mdp = _joined([find_mdp(one, prompt_tokens, device, stepped=stepped) for one in inner.envs])
    elif isinstance(inner, DenoiseEnv | DenoiseVectorEnv | DenoiseVecEnv):
        mdp = inner.mdp
    else:
        raise TypeError(
            f"expected a DiffusionDenoise environment (gymnasium.make or make_vec), got {type(inner).__name__}. Other "
            "environments have no denoising trajectory to train on."
        )
    if not stepped:
        check_wrappers(around, mdp.num_inference_steps)
        check_methods(inner, next(base for base in _KNOWN if isinstance(inner, base)))
    if prompt_tokens and not mdp.prompt_tokens:
        raise ValueError(
            "to train the text encoder, the policy must see the prompt's tokens, which this environment's observation "
            "lacks; make it with prompt_tokens=True, as in gymnasium.make('DiffusionDenoise-v0', prompt_tokens=True)."
        )
    here = mdp.model.device
    if device is not None and str(device) not in ("auto", here.type, f"{here.type}:{here.index or 0}"):
        raise ValueError(
            f"the environment's model is on {str(here)!r}, not on {str(device)!r}; a device is chosen where the "
            f"environment is made: gymnasium.make_vec({ENV_ID!r}, ..., device={str(device)!r})."
        )
    return mdp


def model_of(env: Any) -> str | DiffusionModel:
    """Return an environment's model, or that of an id's environment; raises as :func:`find_mdp`."""
    if not isinstance(env, str):
        return find_mdp(env).model
    model: str | DiffusionModel = _registered(env).get("model", DEFAULT_MODEL)
    return model


def _registered(env_id: str) -> Mapping[str, Any]:
    """Return the arguments that an id was registered with; empty if Gymnasium does not know it."""
    try:
        return gymnasium.spec(env_id).kwargs
    except gymnasium.error.Error:
        return {}


def _make(env_id: str, prompt_tokens: bool, device: torch.device | str | None) -> gymnasium.Env:
    given: dict[str, Any] = {"prompt_tokens": True} if prompt_tokens else {}
    if str(device) == "auto":  # the id's own device, or else a GPU where there is one
        device = "cuda" if "device" not in _registered(env_id) and torch.cuda.is_available() else None
    if device is not None:
        given["device"] = str(device)
    try:
        return gymnasium.make(env_id, **given)
    except (gymnasium.error.Error, TypeError) as error:  # TypeError: another environment has no such argument
        raise ValueError(
            f"expected an environment or its id, as {ENV_ID!r}, got {env_id!r}, of which Gymnasium makes none: {error}"
        ) from error


def _joined(mdps: Sequence[DenoisingMDP]) -> DenoisingMDP:
    """Return one MDP of as many episodes, which shares the first one's reward; raise ValueError if they differ."""
    first, *others = [{**describe_env(mdp), "reward": _comparable_reward(mdp)} for mdp in mdps]
    for other in others:
        for name, value in first.items():
            if other[name] != value:
                raise ValueError(
                    f"environments side by side must be alike, but they differ in {name}: {value!r} and "
                    f"{other[name]!r}; make all of them with the same arguments."
                )
    return mdps[0].twin(len(mdps))


def _comparable_reward(mdp: DenoisingMDP) -> Any:
    if mdp.reward_spec is not None:
        return mdp.reward_spec
    return mdp.reward.terms if isinstance(mdp.reward, WeightedSum) else mdp.reward


def describe_env(mdp: DenoisingMDP) -> dict[str, Any]:
    """Return what :func:`rebuild_env` needs, JSON-serialisable; the reward is None unless it was given by name."""
    return {
        "model": mdp.model.name,
        "reward": mdp.reward_spec,
        "prompts": mdp.prompt_set.describe(),
        "num_inference_steps": mdp.num_inference_steps,
        "device": str(mdp.model.device),
        "dtype": mdp.model.dtype,
        **dataclasses.asdict(mdp.model.settings),
        "prompt_tokens": mdp.prompt_tokens,
    }


def rebuild_env(description: Mapping[str, Any], device: torch.device | str) -> gymnasium.Env:
    """Make the environment that :func:`describe_env` described; device "auto" is its former device.

    Raises:
        ValueError: its reward was an object, which no description can hold.
    """
    if description["reward"] is None:
        raise ValueError("the checkpoint's reward was not given by name; pass the environment: load(path, env=env).")
    where = description["device"] if str(device) == "auto" else str(device)
    return gymnasium.make(ENV_ID, **{**description, "device": where})

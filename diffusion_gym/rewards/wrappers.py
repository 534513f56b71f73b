"""Wrappers that put a terminal reward into an environment, single or vectorised."""

import gymnasium
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import VectorEnv, VectorWrapper

from diffusion_gym.rewards import RewardSpec


class TerminalReward(gymnasium.Wrapper, RecordConstructorArgs):
    """``TerminalReward(env, "incompressibility")``: the base environment's last step gives this reward.

    The reward is installed into the base environment, so that ``step`` and ``env.unwrapped.score`` always agree.
    """

    def __init__(self, env: gymnasium.Env, reward: RewardSpec) -> None:
        """Args: reward: a name, a callable, or ``name:weight`` terms. Raises TypeError on another environment."""
        RecordConstructorArgs.__init__(self, reward=reward)
        super().__init__(env)
        _install(env, reward)


class VectorTerminalReward(VectorWrapper):
    """:class:`TerminalReward` for the environments of ``gymnasium.make_vec``."""

    def __init__(self, env: VectorEnv, reward: RewardSpec) -> None:
        """Args: reward: a name, a callable, or ``name:weight`` terms. Raises TypeError on another environment."""
        super().__init__(env)
        _install(env, reward)


def _install(env: gymnasium.Env | VectorEnv, reward: RewardSpec) -> None:
    setter = getattr(env.unwrapped, "set_reward", None)
    if setter is None:
        raise TypeError(f"a terminal reward wraps a DiffusionDenoise environment, got {type(env.unwrapped).__name__}.")
    setter(reward)

"""Before Stable-Baselines3 learns: arguments that it leaves unchecked, and an environment that it need not reset."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback


def check_learn_arguments(total_timesteps: object, callback: object, log_interval: object) -> None:
    """Refuse arguments of ``learn`` before anything is sampled.

    Raises:
        TypeError: a callback that is none.
        ValueError: a number of steps or an interval that is no integer in its range.
    """
    if not _is_integer(total_timesteps, 0):
        raise ValueError(
            f"total_timesteps must be an integer of at least 0, got {total_timesteps!r}; for 1e5 write 100_000."
        )
    if not _is_integer(log_interval, 1):
        raise ValueError(f"log_interval must be an integer of at least 1, got {log_interval!r}.")
    for one in callback if isinstance(callback, list) else [callback]:
        if isinstance(one, type):
            raise TypeError(f"the callback {one.__name__} is a class; give an instance of it: {one.__name__}(...).")
        if one is not None and not isinstance(one, BaseCallback) and (isinstance(callback, list) or not callable(one)):
            raise TypeError(
                "callback must be a Stable-Baselines3 callback, a list of them, or a function (locals, globals) -> "
                f"bool, got {type(one).__name__}{' in a list' if isinstance(callback, Sequence) else ''}."
            )


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


@contextlib.contextmanager
def unobserved(algorithm: BaseAlgorithm) -> Iterator[None]:
    """Keep Stable-Baselines3 from resetting the environment, whose observations nobody would look at."""
    env = algorithm.env
    algorithm.env = _Unobserved()  # type: ignore[assignment]
    try:
        yield
    finally:
        algorithm.env = env


class _Unobserved:
    num_envs = 0

    def reset(self) -> Any:
        return None

"""A user's own reward: a function in a file, ``path/to/file.py:function``, and what a callable is told at once."""

import hashlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path

from diffusion_gym.rewards.base import RewardFunction, reward_name
from diffusion_gym.rewards.spec import check_file


def load_function(path: Path, function: str) -> RewardFunction:
    """Run a Python file and return a function of it.

    Args:
        path: relative to the working directory, or absolute.
        function: its name; any callable ``(images, prompts) -> scores`` will do.

    Raises:
        ValueError: no such file, one that fails to run, or one without such a function; see :func:`check_callable`.
    """
    check_file(path)
    # Registered under a name of its own, as dataclasses and pickle in the file need; run anew each time.
    name = f"diffusion_gym_reward_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"the reward file {str(path)!r} does not run: {error!r}{_line(error, path)}.") from error
    if not hasattr(module, function):
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == name]
        raise ValueError(f"the reward file {str(path)!r} has no {function!r}; its functions are {sorted(known)}.")
    try:
        return check_callable(getattr(module, function))
    except TypeError as error:
        raise ValueError(f"'{path}:{function}': {error}") from error


def _line(error: Exception, path: Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
    return f" (line {lines[-1]})" if lines else ""


def check_callable(reward: object) -> RewardFunction:
    """Return a callable, refusing at once what could only fail at the first image.

    Raises:
        TypeError: a class in place of an instance, something that cannot be called, or called with other arguments.
    """
    if isinstance(reward, type):
        raise TypeError(
            f"the reward {reward.__name__!r} is a class; give an instance of it: reward={reward.__name__}(...), or in "
            f"a file: my_reward = {reward.__name__}(...)."
        )
    if not callable(reward):
        raise TypeError(
            f"reward must be a name, 'name:weight,...', 'path/to/file.py:function', a mapping to weights or a callable "
            f"(images, prompts) -> scores, got {type(reward).__name__}."
        )
    try:
        signature = inspect.signature(reward)
    except (TypeError, ValueError):  # some built-in callables do not tell
        return reward
    try:
        signature.bind(None, None)
    except TypeError:
        raise TypeError(
            f"the reward {reward_name(reward)!r} takes {signature}; expected (images, prompts), images (n, 3, H, W) "
            "uint8 and n texts, and a score for each."
        ) from None
    return reward

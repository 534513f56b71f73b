"""A user's own reward: a callable, or a function in a file, ``path/to/file.py:function``."""

import builtins
import hashlib
import importlib.util
import inspect
import sys
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from diffusion_gym.naming import did_you_mean
from diffusion_gym.rewards.base import RewardFunction, check_takes
from diffusion_gym.rewards.guard import settings_kept
from diffusion_gym.rewards.metadata import metadata_arguments
from diffusion_gym.rewards.spec import check_file


def load_function(path: Path, function: str) -> RewardFunction:
    """Return a function of a Python file, which is run.

    The file may import its neighbours, also while it scores: its folder is put last on ``sys.path``, where it hides
    nothing, and if another module has a neighbour's name, the file itself still gets its neighbour.

    Args:
        path: relative to the working directory, or absolute.
        function: its name; any callable ``(images, prompts) -> scores`` will do, also with metadata behind prompts.

    Raises:
        ValueError: no such file, one that fails to run, or one without such a function; see :func:`check_callable`.
    """
    check_file(path)
    file = path.resolve()
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        with settings_kept(f"the reward file {str(path)!r}"):
            module = run_file(file)
    except Exception as error:
        raise ValueError(f"the reward file {str(path)!r} does not run: {said(error)}{_line(error, path)}.") from error
    function = unicodedata.normalize("NFKC", function)  # as Python spells its names
    if not hasattr(module, function):
        own = module.__name__
        known = [key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == own]
        raise ValueError(
            f"the reward file {str(path)!r} has no {function!r}; its functions are {sorted(known)}."
            f"{did_you_mean(function, known)}"
        )
    try:
        return check_callable(getattr(module, function))
    except TypeError as error:
        raise ValueError(f"'{path}:{function}': {error}") from error


def said(error: Exception) -> str:
    """Return an error for a message; of one in the file's syntax its place, too."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} in line {error.lineno}, {(error.text or '').strip()!r}"
    return repr(error)


def run_file(file: Path) -> ModuleType:
    """Run a file as a registered module, which dataclasses and pickle in it need, and return it.

    Its name is the one by which other processes can import it too, if that is free, or else a private one.
    """
    name = file.stem if file.stem not in sys.modules and _is_found(file.stem, file) else _private_name(file)
    folders = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import_of(file)}
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _private_name(file: Path) -> str:
    return f"diffusion_gym_reward_{hashlib.sha256(str(file).encode()).hexdigest()[:16]}"


def _import_of(file: Path) -> Callable[..., Any]:
    """Return ``__import__`` for one file: a neighbour comes before another module of its name, but not before Python's.

    Such a neighbour is run under a private name, so that other modules do not get it in place of theirs.
    """

    def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:  # noqa: A002
        top, dot, rest = name.partition(".")
        neighbour = None if level or top in sys.stdlib_module_names else _neighbour(file, top)
        if neighbour is not None and not _is_found(top, neighbour):
            private = _private_name(neighbour)
            name = (private if private in sys.modules else run_file(neighbour).__name__) + dot + rest
        return builtins.__import__(name, globals, locals, fromlist, level)

    return import_


def _neighbour(file: Path, name: str) -> Path | None:
    """Return the module or package of that name beside a file; a file is no neighbour of itself."""
    beside = (file.parent / f"{name}.py", file.parent / name / "__init__.py")
    return next((other for other in beside if other != file and other.is_file()), None)


def _is_found(name: str, file: Path) -> bool:
    """Return whether Python's own import of a name leads to the file."""
    loaded = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if loaded is None else getattr(loaded, "__spec__", None)
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == file


def _line(error: Exception, path: Path) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == path.resolve()]
    return f" (line {lines[-1]})" if lines else ""


def check_callable(reward: object) -> RewardFunction:
    """Return a reward that was given as a callable.

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
    more, named = metadata_arguments(reward, 0, None)
    check_takes(
        reward,
        ([None, None, *more], named),
        "(images, prompts) or (images, prompts, metadata), images (n, 3, H, W) uint8, n texts and n mappings, and a "
        "score for each; diffusion_gym.rewards.from_trl adapts a function of trl's",
    )
    return reward

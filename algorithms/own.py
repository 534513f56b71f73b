"""A user's own algorithms: a Python file that registers them, or defines their classes."""

import inspect
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from algorithms import ALGORITHMS, AlgorithmEntry
from algorithms.base import DiffusionAlgorithm
from diffusion_gym.naming import file_name
from diffusion_gym.rewards.own import run_file, said

_EXAMPLE = "docs/your-own-algorithm.md has an example"
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|_+")


@dataclass(frozen=True)
class OwnFile:
    """A file that was run, and what it has registered."""

    path: Path
    entries: Mapping[str, AlgorithmEntry]

    @property
    def names(self) -> list[str]:
        """The names of its algorithms."""
        return list(self.entries)

    @property
    def is_registered(self) -> bool:
        """Whether the registry has its algorithms, and not others in their place."""
        return all(ALGORITHMS.get(name) is entry for name, entry in self.entries.items())


#: Resolved path -> what was loaded from it in this process, in that order.
_LOADED: dict[Path, OwnFile] = {}


def loaded_files() -> tuple[Path, ...]:
    """Return the files whose algorithms this process knows: a process that it starts has to load them, too."""
    return tuple(path for path, file in _LOADED.items() if file.is_registered)


def load_algorithms(path: Path) -> OwnFile:
    """Run a Python file and register its algorithms, unless this process has done so; the registry lists them then.

    Algorithms are what the file adds to :data:`ALGORITHMS`. If that is nothing, they are the algorithm classes that the
    file defines, each with its default configuration and its class's name in lower case: ``MyMethod`` is ``my-method``.

    Raises:
        ValueError: there is no such file, it does not run, it has no algorithm, or a name is taken or is no name of a
            folder. The registry is then as it was.
    """
    if not path.is_file() or path.suffix != ".py":
        what = "is not a Python file" if path.exists() else "does not exist"
        raise ValueError(f"{str(path)!r} {what}; expected a Python file with an algorithm, such as my_algorithm.py.")
    file = path.resolve()
    known = _LOADED.get(file)
    if known is not None and known.is_registered:
        return known
    main = getattr(sys.modules["__main__"], "__file__", None)
    if main is not None and Path(main).resolve() == file:
        raise ValueError(f"{str(path)!r} is the program itself; call it as: diffusion-gym compare {path}")
    before = dict(ALGORITHMS)
    try:
        found = OwnFile(file, _registered(path, _module(path, file), before))
    except BaseException:
        ALGORITHMS.clear()
        ALGORITHMS.update(before)
        raise
    _LOADED[file] = found
    return found


def _module(path: Path, file: Path) -> ModuleType:
    """Run the file as a module."""
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    try:
        return run_file(file)
    except SystemExit as error:
        raise ValueError(
            f"{str(path)!r} ends the program when it is imported; put what is to run only as a program under "
            "if __name__ == '__main__'."
        ) from error
    except Exception as error:
        raise ValueError(f"{str(path)!r} does not run: {said(error)}.") from error


def _registered(path: Path, module: ModuleType, before: Mapping[str, AlgorithmEntry]) -> Mapping[str, AlgorithmEntry]:
    """Return what the file has registered; if that is nothing, register its classes."""
    changed = {name: entry for name, entry in ALGORITHMS.items() if before.get(name) is not entry}
    found = changed or {_name_of(cls): _entry(cls) for cls in _classes(module)}
    if not found:
        raise ValueError(
            f"{str(path)!r} has no algorithm: expected a subclass of DiffusionAlgorithm with its config_class, or a "
            f"line ALGORITHMS['name'] = AlgorithmEntry(...); {_EXAMPLE}."
        )
    taken = sorted(set(found) & set(before))
    if taken:
        raise ValueError(
            f"{str(path)!r} has an algorithm {taken[0]!r}, and there is one of that name; name it otherwise."
        )
    for name, entry in found.items():
        if file_name(name) != name:
            raise ValueError(
                f"{str(path)!r} has an algorithm {name!r}; expected a name of lower-case letters, digits and hyphens, "
                "because it names folders."
            )
        if not issubclass(entry.cls, DiffusionAlgorithm) or not isinstance(entry.config, entry.cls.config_class):
            raise ValueError(
                f"{str(path)!r} registers {name!r} with {entry.cls.__name__} and a {type(entry.config).__name__}; "
                "expected a subclass of DiffusionAlgorithm and a configuration of its config_class."
            )
    ALGORITHMS.update(found)
    return found


def _classes(module: ModuleType) -> list[type[DiffusionAlgorithm[Any]]]:
    """Return the algorithm classes that the module defines itself."""
    return [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and issubclass(value, DiffusionAlgorithm)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
        and hasattr(value, "config_class")
    ]


def _name_of(cls: type) -> str:
    return "-".join(word for word in _WORDS.split(cls.__name__) if word).lower()


def _entry(cls: type[DiffusionAlgorithm[Any]]) -> AlgorithmEntry:
    return AlgorithmEntry(cls, cls.config_class(), (inspect.getdoc(cls) or cls.__name__).splitlines()[0])

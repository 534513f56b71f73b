"""Lazy imports of a package's public names: torch alone takes a second of processor time."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any


def found(where: str) -> Any:
    """Return what ``package.module:name`` names."""
    module, _, name = where.partition(":")
    return getattr(importlib.import_module(module), name)


def attributes(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: its name.
        where: public name -> module that defines it. The package's modules are found as well.
    """

    def __getattr__(name: str) -> Any:  # noqa: N807 - as PEP 562 calls it
        if name in where:
            value = found(f"{where[name]}:{name}")
            setattr(sys.modules[package], name, value)
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *where})

    return __getattr__, __dir__


class Registry(dict[str, Any]):
    """A plain dict, except that a value may be written as ``package.module:name``, imported when it is asked for."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return found(value) if isinstance(value, str) else value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or the default."""
        return self[key] if key in self else default  # noqa: SIM401 - this is get

    def values(self) -> Any:
        """Return all values."""
        return [self[key] for key in self]

    def items(self) -> Any:
        """Return all keys with their values."""
        return [(key, self[key]) for key in self]

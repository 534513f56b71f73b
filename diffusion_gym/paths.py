"""Paths as users write them: ``~`` and ``~name`` are home folders; an unknown name stays as it is."""

import os
from pathlib import Path


def expanded(path: str | os.PathLike[str]) -> str:
    """Return the path as text: a Path would shorten ``./owner/model`` to a hub id."""
    return os.path.expanduser(os.fspath(path))  # noqa: PTH111 - Path's raises for a name that nobody has


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return the path as a Path."""
    return Path(expanded(path))

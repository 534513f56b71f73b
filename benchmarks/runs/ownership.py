"""Whose a folder is: made and held before any work is done, and refused where it holds somebody else's files."""

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from algorithms.checkpoints.published import RECORD, UNFINISHED, listed, made
from diffusion_gym.errors import warn_once


@contextlib.contextmanager
def claimed(folder: Path, is_ours: Callable[[Path], bool], what: str) -> Iterator[None]:
    """Make a folder where there is none, and hold it for this process.

    One that was made here and stays empty is taken away again.

    Args:
        folder: to write in.
        is_ours: whether a folder with files in it may be resumed.
        what: such a folder holds, for the message.

    Raises:
        ValueError: it holds other files, or another process works in it.
        OSError: it cannot be written in.
    """
    with made(folder), locked(folder):
        if not is_ours(folder):
            _check_empty(folder, what)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only", str(folder))
        yield


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, which is made; the system lets go of it when the process ends, however it ends.

    Raises:
        ValueError: another process works in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError as error:
        _say_unlocked(error)
        yield
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {str(folder)!r}. Wait until it is done, stop it, or choose another "
                "folder."
            ) from None
        except OSError as error:
            _say_unlocked(error)
        if not folder.exists() or not os.path.samestat(os.fstat(handle), folder.stat()):
            raise ValueError(f"another process has just taken {str(folder)!r} away. Run the command again.")
        yield
    finally:
        os.close(handle)


def _say_unlocked(error: OSError) -> None:
    warn_once(
        f"this file system refuses to lock a folder ({error.strerror}): nothing keeps a second process from working in "
        "the same one."
    )


def _check_empty(folder: Path, what: str) -> None:
    """Raise ValueError where a folder holds files; folders without any, and what a killed process left, are none."""
    names = [
        path.name + ("/" if path.is_dir() else "")
        for path in sorted(folder.iterdir())
        if path.name != RECORD and not path.name.startswith(UNFINISHED) and _holds_a_file(path)
    ]
    if names:
        raise ValueError(
            f"{str(folder)!r} is not empty and holds no {what}: there is {listed(names)}. Choose a new or an empty "
            "folder."
        )


def _holds_a_file(path: Path) -> bool:
    return not path.is_dir() or any(not inner.is_dir() for inner in path.rglob("*"))

"""Who may write in a folder: one process at a time, and only where no other files are."""

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from algorithms.checkpoints.published import RECORD, UNFINISHED, listed, made
from diffusion_gym.errors import warn_once


@contextlib.contextmanager
def claimed(folder: Path, is_ours: Callable[[Path], bool], what: str) -> Iterator[None]:
    """Make a folder if it is missing, and lock it for this process; a new folder that stays empty is removed again.

    Raises:
        ValueError: the folder holds files that are not ours, i.e. no ``what``, or another process works in it.
        OSError: the folder is not writable.
    """
    with made(folder), locked(folder):
        others = [] if is_ours(folder) else _files(folder)
        if others:
            raise ValueError(
                f"{str(folder)!r} is not empty and holds no {what}: there is {listed(others)}. Choose a new or an "
                "empty folder."
            )
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only", str(folder))
        yield


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder, made if it is missing; raise ValueError if another process works in it.

    The system releases the lock however the process ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with contextlib.ExitStack() as stack:
        try:
            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_there = folder.exists() and os.path.samestat(os.fstat(handle), folder.stat())
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {str(folder)!r}. Wait until it is done, stop it, or choose another "
                "folder."
            ) from None
        except OSError as error:
            is_there = True
            warn_once(
                f"this file system refuses to lock a folder ({error.strerror}): nothing keeps a second process from "
                "working in the same one."
            )
        if not is_there:  # the other process ended without writing anything, and removed the folder that it had made
            raise ValueError(f"another process has just removed {str(folder)!r}. Run the command again.")
        yield


def _files(folder: Path) -> list[str]:
    """Return the names of files and of folders with files; what a killed process left does not count."""
    return [
        path.name + ("/" if path.is_dir() else "")
        for path in sorted(folder.iterdir())
        if path.name != RECORD and not path.name.startswith(UNFINISHED) and _holds_a_file(path)
    ]


def _holds_a_file(path: Path) -> bool:
    return not path.is_dir() or any(not inner.is_dir() for inner in path.rglob("*"))

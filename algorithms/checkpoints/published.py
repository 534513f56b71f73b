"""Writing files atomically, with usual permissions, and without replacing files that this package did not write.

What a user may well keep under the same name (a README, a picture, weights) is written through :func:`published`, which
notes in the folder's ``.diffusion-gym.json`` what it wrote, and replaces only what is still as it was written.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from diffusion_gym.errors import warn_once

#: What the names of files begin with that are still being written; a process that was killed leaves them behind.
UNFINISHED = ".unfinished-"
#: In each folder that :func:`published` wrote to: the SHA-256 of every file that it wrote there.
RECORD = ".diffusion-gym.json"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: Of what fsync says: the data are lost. Anything else says that the file system has no such call.
_LOST = (*FULL, errno.EIO, errno.EROFS)
_CHUNK = 1 << 24


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write a file beside its name, flush it to the disk, and rename it into place.

    Args:
        path: of the file; its folder is made.
        content: the bytes, or what writes them to an open file, for what is too large to be held in memory twice.

    Raises:
        OSError: the disk is full or not writable; what was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{UNFINISHED}{path.name[:50]}-{secrets.token_hex(4)}")
    # Not tempfile's, which only the owner may read: like this the file has the permissions that any other has.
    handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content) if isinstance(content, bytes) else content(file)
            file.flush()
            _flush_to_disk(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _flush_names(path.parent)


@contextlib.contextmanager
def published(folder: Path) -> Iterator[Path]:
    """Yield an empty folder, whose files are moved into ``folder`` when the block ends without an error.

    ``folder`` is made before the block, so that work whose result cannot be written is not done; where it stays empty,
    it is taken away again.

    Raises:
        ValueError: a file in the way that was not written here, or was changed since; nothing is replaced then.
        OSError: the disk is full or not writable; each file is the old one or the new one.
    """
    with made(folder):
        fresh = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            yield fresh
            _publish(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Make a folder and its parents; at the end remove those that were made here and are empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with contextlib.suppress(OSError):  # the first that holds something
            for path in missing:
                path.rmdir()


def _publish(fresh: Path, folder: Path) -> None:
    digests = {file.relative_to(fresh).as_posix(): _digest(file) for file in sorted(fresh.rglob("*")) if file.is_file()}
    check_replaceable(folder, digests, digests)
    # Noted before, beside what is there now: wherever a process is killed, the file is one of the two.
    noted = {name: sorted({_digest(folder / name), new} - {""}) for name, new in digests.items()}
    write_atomically(folder / RECORD, json.dumps({**_record(folder), **noted}, indent=1).encode())
    share_as(folder / RECORD, (fresh / name for name in digests))
    for name in digests:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with (fresh / name).open("rb") as file:
            _flush_to_disk(file.fileno())
        os.replace(fresh / name, target)
    for parent in {(folder / name).parent for name in digests}:
        _flush_names(parent)


def check_replaceable(folder: Path, names: Iterable[str], contents: Mapping[str, str] | None = None) -> None:
    """Raise ValueError where a file to be written would replace one that this package did not write.

    Args:
        folder: where.
        names: of the files, relative to it; those that are not there are free.
        contents: name -> SHA-256 of what is to be written, where it is known: an equal file may be replaced.

    Raises:
        ValueError: files that were not written by :func:`published`, or were changed since.
    """
    record = _record(folder)
    found = {name: _digest(folder / name) for name in names if os.path.lexists(folder / name)}
    others = [
        name for name, digest in found.items() if digest not in (*record.get(name, ()), (contents or {}).get(name))
    ]
    if others:
        raise ValueError(
            f"{str(folder)!r} holds {listed(others)}, which Diffusion Gym did not write there, or which was changed "
            "since, and which would be replaced. Move it away, or choose another place."
        )


def check_output(path: Path) -> None:
    """Check, before any work, that a file can be written and may replace what is there.

    Raises:
        ValueError: there is a folder, or a file of somebody else's.
    """
    if path.is_dir():
        raise ValueError(f"expected a file's name, got {str(path)!r}, which is a folder.")
    check_replaceable(path.parent, [path.name])


def listed(names: Iterable[str]) -> str:
    """Return the first three names, and how many more there are, for a message."""
    shown = [repr(name) for name in names]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def share_as(example: Path, files: Iterable[Path]) -> None:
    """Give files the usual permissions of a new file; safetensors makes them readable for the owner alone."""
    mode = example.stat().st_mode & 0o666
    for file in files:
        with contextlib.suppress(OSError):  # a file system without permissions
            file.chmod(mode)


def _record(folder: Path) -> dict[str, list[str]]:
    """Return name -> digests of what was written there; empty if the record is missing or damaged."""
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _digest(file: Path) -> str:
    """Return a file's SHA-256, hexadecimal; "" if it is missing or not a file."""
    if not file.is_file():
        return ""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _flush_to_disk(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        _tolerate(error)


def _flush_names(folder: Path) -> None:
    """Flush a folder's renames to the disk."""
    if os.name != "posix":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        _tolerate(error)
        return
    try:
        _flush_to_disk(handle)
    finally:
        os.close(handle)


def _tolerate(error: OSError) -> None:
    if error.errno in _LOST:
        raise error
    warn_once(
        f"this file system refuses fsync ({error.strerror}); files are still written whole, but what was "
        "written last may be missing after a power cut."
    )

"""Checkpoints: one zip file of safetensors and JSON, replaced atomically; loading one never executes code."""

import contextlib
import io
import json
import os
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

FORMAT = 1
_STATE, _TENSORS = "state.json", "tensors.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

    Attributes:
        state: JSON: format, algorithm, configuration, environment, counters, statistics.
        tensors: name -> tensor: trained weights and optimizer moments.
    """

    state: dict[str, Any]
    tensors: dict[str, Tensor]


#: Where a checkpoint lies: a path, or a binary file that is open, as io.BytesIO.
Place = str | os.PathLike[str] | BinaryIO


def check_place(place: object, mode: Literal["readable", "writable"]) -> None:
    """Raise TypeError unless it is a path, or an open binary file of this mode."""
    if isinstance(place, str | os.PathLike):
        return
    if isinstance(place, io.TextIOBase) or not getattr(place, mode, bool)():
        what = "a file opened as text" if isinstance(place, io.TextIOBase) else type(place).__name__
        kind = "'rb'" if mode == "readable" else "'wb'"
        raise TypeError(
            f"expected a checkpoint's path, or a {mode} binary file, as io.BytesIO() or open(path, {kind}), got {what}."
        )


def name_of(place: Place) -> str:
    """What errors call a checkpoint: its path, quoted, or the kind of file."""
    return repr(str(place)) if isinstance(place, str | os.PathLike) else type(place).__name__


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Return the path with Stable-Baselines3's ``.zip`` ending."""
    given = Path(path)
    return given if given.suffix == ".zip" else given.with_name(given.name + ".zip")


def write_checkpoint(path: Path | BinaryIO, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint so that at every moment either the old file or the whole new one is there.

    To a file that is open already it is written where that stands.

    Raises:
        OSError: the disk is full or not writable; what was there before is untouched.
    """
    content = save_tensors({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(_STATE, json.dumps({"format": FORMAT, **state}, indent=1, sort_keys=True))
        archive.writestr(_TENSORS, content)
    if isinstance(path, Path):
        write_atomically(path, buffer.getvalue())
    else:
        path.write(buffer.getvalue())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file beside its name, flush it to the disk, and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            Path(temporary).chmod(0o666 & ~_umask())  # mkstemp's 0600 would shut out the rest of a group
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":  # the rename itself must reach the disk
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_checkpoint(place: Place) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        TypeError: neither a path nor an open binary file.
        ValueError: the file is missing, unreadable, truncated, altered, or not a checkpoint of this library.
    """
    check_place(place, "readable")
    if isinstance(place, str | os.PathLike):
        place = Path(place) if Path(place).is_file() else checkpoint_path(place)
    name = name_of(place)
    if isinstance(place, Path):
        if place.is_dir():
            raise ValueError(f"expected a checkpoint file at {name}, found a folder. Move it away.")
        if not place.is_file():
            raise ValueError(f"no checkpoint at {name}.")
    try:
        content = place.read_bytes() if isinstance(place, Path) else _everything(place)
    except OSError as error:
        raise ValueError(f"cannot read the checkpoint {name}: {error.strerror}.") from error
    try:
        state, tensors = _parse(content)
    except _ForeignError as error:
        raise ValueError(f"{name} is not a checkpoint of Diffusion Gym: {error}.") from error
    except Exception as error:  # a damaged zip, JSON or safetensors file fails in many ways; all mean the same
        raise ValueError(
            f"the checkpoint {name} is truncated or altered: {error!r}. Put a copy back, or delete it."
        ) from error
    if state.get("format") != FORMAT:
        raise ValueError(f"the checkpoint {name} has format {state.get('format')!r}; this version reads {FORMAT}.")
    return Checkpoint(state, tensors)


def _everything(file: BinaryIO) -> bytes:
    """All of an open file, which may stand at its end, because it was just written."""
    if file.seekable():
        file.seek(0)
    return file.read()


class _ForeignError(Exception):
    """A sound zip file of somebody else's."""


def _parse(content: bytes) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        names = archive.namelist()
        if set(names) != {_STATE, _TENSORS}:
            raise _ForeignError(f"it holds {sorted(names)}")
        # ZipFile checks each member's CRC while it reads.
        state = json.loads(archive.read(_STATE))
        if not isinstance(state, dict):
            raise _ForeignError(f"its {_STATE} is no mapping")
        return state, load_tensors(archive.read(_TENSORS))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Checkpoints: one zip file of safetensors and JSON, replaced atomically; loading one never executes code."""

import io
import json
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from algorithms.checkpoints.published import write_atomically
from diffusion_gym.paths import user_path

FORMAT = 1
_STATE, _TENSORS = "state.json", "tensors.safetensors"
_MEMBERS = {_STATE, _TENSORS}
_CHUNK = 1 << 24  # bytes a write
#: As safetensors names them.
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        state: JSON: format, algorithm, configuration, environment, counters, statistics.
        tensors: name -> tensor: trained weights and optimizer moments.
    """

    state: dict[str, Any]
    tensors: dict[str, Tensor]


#: Path of a checkpoint, or an open binary file such as io.BytesIO.
Place = str | os.PathLike[str] | BinaryIO


def check_place(place: object, mode: Literal["readable", "writable"]) -> None:
    """Raise TypeError unless the place is a path, or an open binary file of this mode."""
    if isinstance(place, str | os.PathLike):
        return
    if isinstance(place, io.TextIOBase) or not getattr(place, mode, bool)():
        what = "a file opened as text" if isinstance(place, io.TextIOBase) else type(place).__name__
        kind = "'rb'" if mode == "readable" else "'wb'"
        raise TypeError(
            f"expected a checkpoint's path, or a {mode} binary file, as io.BytesIO() or open(path, {kind}), got {what}."
        )


def name_of(place: Place) -> str:
    """Return a checkpoint's name for errors: its path, quoted, or the kind of file."""
    return repr(str(place)) if isinstance(place, str | os.PathLike) else type(place).__name__


def checkpoint_path(path: str | os.PathLike[str]) -> Path:
    """Return the path with Stable-Baselines3's ``.zip`` ending, and ``~`` expanded."""
    given = user_path(path)
    return given if given.suffix == ".zip" else given.with_name(given.name + ".zip")


def write_checkpoint(path: Path | BinaryIO, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint atomically: at every moment the file is the old one or the whole new one.

    To a file that is open already it is written at its present position. Tensors go to the file one by one, so they are
    not held in memory a second time.

    Raises:
        ValueError: the file there is not a checkpoint, and would be lost.
        OSError: the disk is full or not writable; what was there before is untouched.
    """

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(_STATE, json.dumps({"format": FORMAT, **state}, indent=1, sort_keys=True))
            with archive.open(zipfile.ZipInfo(_TENSORS), "w", force_zip64=True) as member:
                _write_tensors(member, tensors)

    if not isinstance(path, Path):
        write(path)
        return
    if path.is_dir() or (path.exists() and path.stat().st_size and not _is_checkpoint(path)):
        raise ValueError(
            f"{str(path)!r} is not a checkpoint of Diffusion Gym, and is not replaced by one. Move it away, or choose "
            "another name."
        )
    write_atomically(path, write)


def _write_tensors(file: IO[bytes], tensors: Mapping[str, Tensor]) -> None:
    """Write safetensors' format (header length, header, values) without the copy of all values that safetensors makes.

    As there, wide types come first, so that every value is aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        value = tensors[name]
        start, end = end, end + value.nbytes
        header[name] = {"dtype": _DTYPES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        content = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(content), _CHUNK):
            file.write(content[start : start + _CHUNK].data)


def read_checkpoint(place: Place) -> Checkpoint:
    """Read a checkpoint.

    Raises:
        TypeError: neither a path nor an open binary file.
        ValueError: the file is missing, unreadable, truncated, altered, or not a checkpoint of this library.
    """
    check_place(place, "readable")
    if isinstance(place, str | os.PathLike):
        place = user_path(place) if user_path(place).is_file() else checkpoint_path(place)
    name = name_of(place)
    if isinstance(place, Path):
        if place.is_dir():
            raise ValueError(f"expected a checkpoint file at {name}, found a folder. Move it away.")
        if not place.is_file():
            raise ValueError(f"no checkpoint at {name}.")
    try:
        state, tensors = _parse(place if isinstance(place, Path) else _everything(place))
    except OSError as error:
        raise ValueError(f"cannot read the checkpoint {name}: {error.strerror}.") from error
    except _ForeignError as error:
        raise ValueError(f"{name} is not a checkpoint of Diffusion Gym: {error}.") from error
    except Exception as error:  # a damaged zip, JSON or safetensors file fails in many ways; all mean the same
        raise ValueError(
            f"the checkpoint {name} is truncated or altered: {error!r}. Put a copy back, or delete it."
        ) from error
    if state.get("format") != FORMAT:
        raise ValueError(f"the checkpoint {name} has format {state.get('format')!r}; this version reads {FORMAT}.")
    return Checkpoint(state, tensors)


def _everything(file: BinaryIO) -> BinaryIO:
    """Return all bytes of an open file, from its begin, also right after it was written."""
    if file.seekable():
        file.seek(0)
    return io.BytesIO(file.read())


class _ForeignError(Exception):
    """Return whether a file is a sound zip file that is not a checkpoint."""


def _parse(file: Path | BinaryIO) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if set(names) != _MEMBERS:
            raise _ForeignError(f"it holds {sorted(names)}")
        # ZipFile checks each member's CRC while it reads.
        state = json.loads(archive.read(_STATE))
        if not isinstance(state, dict):
            raise _ForeignError(f"its {_STATE} is no mapping")
        return state, load_tensors(archive.read(_TENSORS))


def _is_checkpoint(file: Path) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            return set(archive.namelist()) == _MEMBERS
    except zipfile.BadZipFile:
        return False


def read_iteration(file: Path) -> int:
    """Return a checkpoint's iteration, without reading its tensors.

    Raises:
        ValueError: the file cannot be read, or is none.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return int(json.loads(archive.read(_STATE))["iteration"])
    except (OSError, zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(file)!r} is not a checkpoint of a run, or is damaged: {error!r}.") from error

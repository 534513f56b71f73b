"""A run's folder: its files, whose it is, and what stays whole in it when a process or the disk gives up."""

import contextlib
import errno
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from algorithms.checkpoint import read_checkpoint, write_atomically
from benchmarks.jsonlines import read_lines
from benchmarks.provenance import DECIDES, provenance
from benchmarks.settings import RunSpec

RUN, CHECKPOINT, METRICS, EVALUATIONS = "run.json", "checkpoint.zip", "metrics.jsonl", "evaluations.jsonl"
#: The checkpoint of the best evaluation, where it is wanted.
BEST = "best.zip"
#: Of a log, what counts its lines' iterations.
_KEYS = {METRICS: "time/iterations", EVALUATIONS: "iteration"}
IMAGES, CHECKPOINTS = "images", "checkpoints"
#: What a write that was killed leaves behind: see ``write_atomically``.
_UNFINISHED = (*(f".{name}.*" for name in (RUN, CHECKPOINT, BEST, METRICS, EVALUATIONS)), f"{IMAGES}/.*.png.*")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFullError(RuntimeError):
    """Nothing more could be written; what was there before is whole."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        ValueError: another process trains in it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is training in {str(folder)!r}. Wait until it is done, stop it, or choose another "
                "folder."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


@contextlib.contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Turn what a full disk raises into an error that says what is left.

    Raises:
        DiskFullError: the disk, or the user's share of it, is full.
    """
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in _FULL
        if not full and os.strerror(errno.ENOSPC) not in str(error):  # safetensors and others have errors of their own
            raise
        left = "It has no checkpoint yet"
        with contextlib.suppress(ValueError, OSError):
            iteration = read_checkpoint(folder / CHECKPOINT).state["iteration"]
            left = f"Its last checkpoint, of iteration {iteration}, is whole: {folder / CHECKPOINT}"
        raise DiskFullError(
            f"the disk is full: {error}. The run in {str(folder)!r} stopped. {left}. Make space; the same command then "
            "resumes there."
        ) from error


def begin(spec: RunSpec, folder: Path, facts: dict[str, Any], iteration: int) -> None:
    """Write ``run.json`` of a new run; in one that goes on, note with what it goes on, if that has changed.

    Args:
        spec: what is run.
        folder: where.
        facts: of the model and the evaluation, and the device, which belongs to the provenance.
        iteration: of the checkpoint.
    """
    for pattern in (*_UNFINISHED, f"{CHECKPOINTS}/.*.zip.*"):
        for file in folder.glob(pattern):
            file.unlink()
    facts = dict(facts)
    now = {**provenance(), "device": facts.pop("device")}
    if not (folder / RUN).is_file():
        write_json(folder / RUN, {"spec": spec.to_json(), "complete": False, **facts, "provenance": now})
        return
    data = read_json(folder / RUN)
    later: list[dict[str, Any]] = data.get("resumed_with", [])
    latest = later[-1]["provenance"] if later else data["provenance"]
    moved = latest.get("device", now["device"]) != now["device"]  # older runs do not tell
    if not data["complete"] and (moved or any(latest.get(name) != now[name] for name in DECIDES)):
        later.append({"from_iteration": iteration, "provenance": now})
        write_json(folder / RUN, {**data, "resumed_with": later})


def rewind(folder: Path, iteration: int) -> None:
    """Drop what was logged after the checkpoint: a resumed run writes it again."""

    def logged_before(line: dict[str, Any]) -> bool:
        # An evaluation at the checkpoint's own iteration is made again; the update before it is not.
        return bool(line[_KEYS[METRICS]] < iteration + ("eval/reward_mean" not in line))

    wanted = {METRICS: logged_before, EVALUATIONS: lambda line: line[_KEYS[EVALUATIONS]] < iteration}
    kept = {name: [line for line in log_lines(folder, name) if wanted[name](line)] for name in wanted}
    for name, lines in kept.items():  # once both were read: a damaged one leaves the other as it is
        if (folder / name).is_file():
            write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines).encode())


def log_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl`` or ``evaluations.jsonl``, a mapping a line; empty where none was written yet.

    Raises:
        ValueError: a damaged line.
    """
    return read_lines(folder / name, _KEYS[name])


def keep_checkpoint(folder: Path, iteration: int, count: int) -> None:
    """Keep the present checkpoint beside the ``count - 1`` before it; older ones go once it is there.

    The copies are hard links where the file system has them, so the latest takes no space of its own.
    """
    if count < 2:
        return
    kept = folder / CHECKPOINTS
    kept.mkdir(exist_ok=True)
    target = kept / f"{iteration:06d}.zip"
    target.unlink(missing_ok=True)
    try:
        os.link(folder / CHECKPOINT, target)
    except OSError as error:
        if error.errno in _FULL:
            raise
        shutil.copyfile(folder / CHECKPOINT, target)
    older = sorted(file for file in kept.glob("[0-9]*.zip") if int(file.stem) <= iteration)
    for file in older[:-count]:
        file.unlink()


def replace_by_link(source: Path, target: Path) -> None:
    """Let ``target`` be what ``source`` is now: at every moment the old file or the whole new one is there.

    It is a hard link where the file system has them, and takes no space until ``source`` is replaced.
    """
    temporary = target.with_name(f".{target.name}.link")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno in _FULL:
            raise
        write_atomically(target, source.read_bytes())
    else:
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # POSIX does nothing where both are links to one file already


def check_same(spec: RunSpec, folder: Path) -> None:
    """Refuse a folder in which another run was begun.

    Raises:
        ValueError: naming what differs.
    """
    if not (folder / RUN).is_file():
        return
    # Read back, so that fields which the folder's version did not have yet have their defaults.
    different = differences(read_spec(folder).to_json(), spec.to_json())
    if different:
        raise ValueError(f"{str(folder)!r} holds another run ({different}). Choose another folder, or delete this one.")


def differences(there: dict[str, Any], wanted: dict[str, Any], whose: str = "asked for") -> str:
    """Return what differs between two specifications as JSON: names and both values of the first three; "" if nothing.

    Args:
        there: one that a file holds.
        wanted: the other.
        whose: words behind the other's values.
    """
    found, asked, missing = _flat(there), _flat(wanted), object()
    lines = [
        f"{key} {found.get(key, 'unset')!r} there, {asked.get(key, 'unset')!r} {whose}"
        for key in [*asked, *(key for key in found if key not in asked)]
        if found.get(key, missing) != asked.get(key, missing)
    ]
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def read_spec(folder: Path) -> RunSpec:
    """Return what a folder's run is.

    Raises:
        ValueError: a damaged ``run.json``, or one of something else.
    """
    data = read_json(folder / RUN)
    try:
        return RunSpec.from_json(data["spec"])
    except (KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{str(folder / RUN)!r} is not a run as written by train or compare: {why}") from error


def record_reward_files(folder: Path, digests: dict[str, str], iteration: int) -> None:
    """Note the SHA-256 of the reward's files; one that changed since is told, and noted with where it begins.

    It is not refused: a reward that failed must be mended before its run can go on.
    """
    data = read_json(folder / RUN)
    versions: list[dict[str, Any]] = data.get("reward_files", [])
    latest = {version["path"]: version["sha256"] for version in versions}
    new = [path for path, digest in digests.items() if latest.get(path) != digest]
    for path in new:
        versions.append({"path": path, "sha256": digests[path], "from_iteration": iteration})
        if path in latest:
            warnings.warn(
                f"the reward file {path!r} changed since this run began; from iteration {iteration} on it trains "
                f"toward the new one. Both are noted in {folder / RUN}.",
                stacklevel=3,
            )
    if new:
        write_json(folder / RUN, {**data, "reward_files": versions})


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping.

    Raises:
        ValueError: the file is damaged, or cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({error}). Delete the folder and run again, or put a copy of the file back."
        ) from error
    if not isinstance(data, dict):
        raise ValueError(f"{str(path)!r} holds a {type(data).__name__}; expected a mapping as train writes it.")
    return data


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a mapping, atomically."""
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat

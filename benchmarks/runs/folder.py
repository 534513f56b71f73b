"""A run's folder: its files, whose it is, and what stays whole in it when a process or the disk gives up."""

import contextlib
import errno
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from algorithms.checkpoints.file import read_iteration
from algorithms.checkpoints.published import FULL, UNFINISHED, check_replaceable, write_atomically
from benchmarks.provenance import DECIDES, provenance
from benchmarks.runs.jsonlines import read_lines
from benchmarks.runs.spec import RunSpec

RUN, CHECKPOINT, METRICS, EVALUATIONS = "run.json", "checkpoint.zip", "metrics.jsonl", "evaluations.jsonl"
#: The checkpoint of the best evaluation, where it is wanted.
BEST = "best.zip"
#: Of a log, what counts its lines' iterations.
_KEYS = {METRICS: "time/iterations", EVALUATIONS: "iteration"}
IMAGES, CHECKPOINTS = "images", "checkpoints"
_IMAGE = re.compile(r"(\d{6,})(-held-out)?\.png")
#: Where a model card goes where the user has a README of their own.
CARD_BESIDE = "model-card"


class WriteError(RuntimeError):
    """Nothing more could be written; what was there before is whole."""


class DiskFullError(WriteError):
    """The disk, or the user's share of it, is full."""


def holds_run(folder: Path) -> bool:
    """Return whether a run was begun in a folder."""
    return (folder / RUN).is_file()


def is_finished(spec: RunSpec, folder: Path) -> bool:
    """Return whether a folder's run, which must be this one, has nothing left to do."""
    return holds_run(folder) and read_json(folder / RUN).get("complete") is True and not _is_longer(spec, folder)


@contextlib.contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Turn what a full or a broken disk raises into an error that says what is left.

    Raises:
        DiskFullError: the disk, or the user's share of it, is full.
        WriteError: the system refuses to write for another reason.
    """
    try:
        yield
    except Exception as error:
        # Before there is a run there is nothing to tell of it.
        refused = isinstance(error, OSError) and error.errno not in (None, errno.EPIPE) and holds_run(folder)
        # safetensors and others have errors of their own
        full = os.strerror(errno.ENOSPC) in str(error) or (isinstance(error, OSError) and error.errno in FULL)
        if not refused and not full:
            raise
        left = "It has no checkpoint yet"
        with contextlib.suppress(ValueError):
            iteration = read_iteration(folder / CHECKPOINT)
            left = f"Its last checkpoint, of iteration {iteration}, is whole: {folder / CHECKPOINT}"
        kind, what, remedy = (
            (DiskFullError, "the disk is full", "Make space")
            if full
            else (WriteError, "the system refused to write or read", "Put it right")
        )
        raise kind(
            f"{what}: {error}. The run in {str(folder)!r} stopped. {left}. {remedy}; the same command then resumes "
            "there."
        ) from error


def prepare(spec: RunSpec, folder: Path) -> None:
    """Before anything is loaded: take away what killed writes left, and what a run left that never got anywhere.

    Raises:
        ValueError: the folder holds another run, or weights that no run wrote.
    """
    for left in folder.rglob(f"{UNFINISHED}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    check_same(spec, folder)
    check_replaceable(folder, ["pytorch_lora_weights.safetensors"])
    pipeline = folder / "pipeline"
    check_replaceable(pipeline, [file.relative_to(pipeline).as_posix() for file in pipeline.rglob("*.safetensors")])
    if holds_run(folder) and not _has_begun(folder) and _is_another(spec, folder):
        logs = [folder / name for name in (CHECKPOINT, BEST, METRICS, EVALUATIONS)]
        kept = [*folder.glob(f"{CHECKPOINTS}/[0-9]*.zip"), *_images_from(0, folder)]
        for file in [*logs, *kept, *folder.glob("tensorboard/events.out.tfevents.*")]:
            file.unlink(missing_ok=True)


def begin(spec: RunSpec, folder: Path, facts: dict[str, Any], iteration: int) -> None:
    """Write ``run.json`` of a new run; in one that resumes, note with what, and how long it is now, if that changed.

    Args:
        spec: what is run.
        folder: where, prepared.
        facts: of the model and the evaluation, and the device, which belongs to the provenance.
        iteration: of the checkpoint.
    """
    facts = dict(facts)
    now = {**provenance(), "device": facts.pop("device")}
    if not holds_run(folder) or (not _has_begun(folder) and _is_another(spec, folder)):
        write_json(folder / RUN, {"spec": spec.to_json(), "complete": False, **facts, "provenance": now})
        return
    data = read_json(folder / RUN)
    longer = _is_longer(spec, folder)
    if longer:
        data |= {"spec": spec.to_json(), "complete": False}
    later: list[dict[str, Any]] = data.get("resumed_with", [])
    latest = later[-1]["provenance"] if later else data["provenance"]
    moved = latest.get("device", now["device"]) != now["device"]  # older runs do not tell
    other = not data["complete"] and (moved or any(latest.get(name) != now[name] for name in DECIDES))
    if other:
        data["resumed_with"] = [*later, {"from_iteration": iteration, "provenance": now}]
    if longer or other:
        write_json(folder / RUN, data)


def rewind(folder: Path, iteration: int) -> None:
    """Drop what was logged after the checkpoint: a resumed run writes it again."""

    def logged_before(line: dict[str, Any]) -> bool:
        # An evaluation at the checkpoint's own iteration is made again; the update before it is not.
        return bool(line[_KEYS[METRICS]] < iteration + ("eval/reward_mean" not in line))

    wanted = {METRICS: logged_before, EVALUATIONS: lambda line: line[_KEYS[EVALUATIONS]] < iteration}
    kept = {name: [line for line in log_lines(folder, name) if wanted[name](line)] for name in wanted}
    for file in _images_from(iteration, folder):
        file.unlink()
    for name, lines in kept.items():  # once both were read: a damaged one leaves the other as it is
        if (folder / name).is_file():
            write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _images_from(iteration: int, folder: Path) -> list[Path]:
    """Return the grids of evaluations at an iteration and after it."""
    found = [(_IMAGE.fullmatch(file.name), file) for file in folder.glob(f"{IMAGES}/*.png")]
    return [file for match, file in found if match and int(match[1]) >= iteration]


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
        if error.errno in FULL:
            raise
        shutil.copyfile(folder / CHECKPOINT, target)
    older = sorted(file for file in kept.glob("[0-9]*.zip") if int(file.stem) <= iteration)
    for file in older[:-count]:
        file.unlink()


def replace_by_link(source: Path, target: Path) -> None:
    """Let ``target`` be what ``source`` is now: at every moment the old file or the whole new one is there.

    It is a hard link where the file system has them, and takes no space until ``source`` is replaced.
    """
    temporary = target.with_name(f"{UNFINISHED}{target.name}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError as error:
        if error.errno in FULL:
            raise
        write_atomically(target, source.read_bytes())
    else:
        os.replace(temporary, target)
        temporary.unlink(missing_ok=True)  # POSIX does nothing where both are links to one file already


def check_same(spec: RunSpec, folder: Path) -> None:
    """Refuse a folder in which another run has got anywhere; the same one may be made longer.

    Raises:
        ValueError: naming what differs.
    """
    if not holds_run(folder) or not _has_begun(folder):
        return
    # Read back, so that fields which the folder's version did not have yet have their defaults.
    held = read_spec(folder)
    different = differences(replace(held, reward_queries=spec.reward_queries).to_json(), spec.to_json())
    if different:
        raise ValueError(f"{str(folder)!r} holds another run ({different}). Choose another folder, or delete this one.")
    if spec.total_queries < held.total_queries:
        raise ValueError(
            f"{str(folder)!r} holds a run of {held.total_queries} reward queries, and {spec.total_queries} were asked "
            "for: a run can be made longer, not shorter. Ask for more, or choose another folder."
        )
    reason = read_json(folder / RUN).get("stopped_early")
    if reason is not None and spec.total_queries > held.total_queries:
        raise ValueError(
            f"the run in {str(folder)!r} was stopped by its safeguards, not by its reward queries ({reason}), so more "
            "of them do not make it longer. Choose another folder, and other safeguards."
        )


def _is_longer(spec: RunSpec, folder: Path) -> bool:
    """Whether more reward queries are asked for than the folder's run, otherwise the same, was begun with."""
    return spec.total_queries > read_spec(folder).total_queries


def _is_another(spec: RunSpec, folder: Path) -> bool:
    try:
        return read_spec(folder) != spec
    except ValueError:  # of a reward, say, whose file is gone
        return True


def _has_begun(folder: Path) -> bool:
    """Whether a folder's run has completed an iteration."""
    if read_json(folder / RUN).get("complete") or any(line[_KEYS[METRICS]] for line in log_lines(folder, METRICS)):
        return True
    try:
        return (folder / CHECKPOINT).exists() and read_iteration(folder / CHECKPOINT) > 0
    except ValueError:  # damaged: what it was is not known
        return True


def differences(there: dict[str, Any], wanted: dict[str, Any], whose: str = "asked for") -> str:
    """Return what differs between two specifications as JSON: names and both values of the first three; "" if nothing.

    Args:
        there: one that a file holds.
        wanted: the other.
        whose: words behind the other's values.
    """
    found = changes(there, wanted)
    lines = [f"{key} {before!r} there, {after!r} {whose}" for key, (before, after) in found.items()]
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def changes(there: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return name -> both values of what differs between two specifications as JSON; 'unset' where one has none."""
    found, asked = _flat(json.loads(json.dumps(there))), _flat(json.loads(json.dumps(wanted)))
    names = [*asked, *(key for key in found if key not in asked)]
    pairs = {name: (found.get(name, "unset"), asked.get(name, "unset")) for name in names}
    return {name: (before, after) for name, (before, after) in pairs.items() if before != after}


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
            f"{str(path)!r} is damaged ({error}). Put a copy of the file back, or choose another folder."
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

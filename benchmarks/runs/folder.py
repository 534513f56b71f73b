"""The files of a run's folder: their names, how they are read and written, and the error of a disk that refuses."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from algorithms.checkpoints.file import read_iteration
from algorithms.checkpoints.published import FULL, UNFINISHED, write_atomically
from benchmarks.runs.record import Evaluation
from benchmarks.runs.spec import RunSpec
from diffusion_gym.jsonlines import read_lines

RUN, CHECKPOINT, METRICS, EVALUATIONS = "run.json", "checkpoint.zip", "metrics.jsonl", "evaluations.jsonl"
#: The checkpoint of the best evaluation, with --keep-best.
BEST = "best.zip"
IMAGES, CHECKPOINTS = "images", "checkpoints"
#: Where the model card goes if the user has a README of their own.
CARD_BESIDE = "model-card"
#: Log -> what its lines call their iteration.
ITERATION_KEYS = {METRICS: "time/iterations", EVALUATIONS: "iteration"}


class WriteError(RuntimeError):
    """Nothing more could be written; what was there before is whole."""


@contextlib.contextmanager
def write_errors_explained(folder: Path) -> Iterator[None]:
    """Turn what a full or a broken disk raises into a WriteError that says what is left of the run."""
    try:
        yield
    except Exception as error:
        refused = isinstance(error, OSError) and error.errno not in (None, errno.EPIPE) and holds_run(folder)
        # safetensors and others have errors of their own
        full = os.strerror(errno.ENOSPC) in str(error) or (isinstance(error, OSError) and error.errno in FULL)
        if not refused and not full:
            raise
        left = "It has no checkpoint yet"
        with contextlib.suppress(ValueError):
            iteration = read_iteration(folder / CHECKPOINT)
            left = f"Its last checkpoint, of iteration {iteration}, is whole: {folder / CHECKPOINT}"
        what, remedy = (
            ("the disk is full", "Make space") if full else ("the system refused to write or read", "Correct the cause")
        )
        raise WriteError(
            f"{what}: {error}. The run in {str(folder)!r} stopped. {left}. {remedy}; the same command then resumes "
            "there."
        ) from error


def holds_run(folder: Path) -> bool:
    """Return whether a run was begun in a folder."""
    return (folder / RUN).is_file()


def read_spec(folder: Path) -> RunSpec:
    """Return the specification of a folder's run; raise ValueError for a damaged ``run.json``."""
    data = read_json(folder / RUN)
    try:
        return RunSpec.from_json(data["spec"])
    except (KeyError, TypeError, ValueError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{str(folder / RUN)!r} is not a run as written by train or compare: {why}") from error


def log_lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl`` or ``evaluations.jsonl``, one mapping per line; raise ValueError for a damaged line."""
    lines = read_lines(folder / name, ITERATION_KEYS[name])
    for number, line in enumerate(lines if name == EVALUATIONS else (), 1):
        try:
            _check_numbers(Evaluation.from_json(line))
        except (KeyError, TypeError, AttributeError) as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else error
            raise ValueError(
                f"line {number} of {str(folder / name)!r} is not an evaluation as a run writes it: {why}. Put a copy "
                "of the file back, or delete the line."
            ) from error
    return lines


def _check_numbers(line: Evaluation) -> None:
    """Raise KeyError or TypeError for an evaluation without its cost, or with anything but numbers."""
    rewards, queries = line.rewards, line.costs["reward_queries"]
    if not rewards or any(type(value) not in (int, float) for value in [queries, *rewards, *line.metrics.values()]):
        raise TypeError("its rewards, metrics and reward_queries must be numbers")


def read_json(path: Path) -> dict[str, Any]:
    """Read a mapping; raise ValueError for a damaged file."""
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


def keep_checkpoint(folder: Path, iteration: int, count: int) -> None:
    """Keep the present checkpoint beside the ``count - 1`` before it; older ones are deleted afterwards."""
    if count < 2:
        return
    kept = folder / CHECKPOINTS
    kept.mkdir(exist_ok=True)
    replace_by_link(folder / CHECKPOINT, kept / f"{iteration:06d}.zip")
    older = sorted(file for file in kept.glob("[0-9]*.zip") if int(file.stem) <= iteration)
    for file in older[:-count]:
        file.unlink()


def replace_by_link(source: Path, target: Path) -> None:
    """Make ``target`` what ``source`` is now, atomically, with a hard link if the file system has them."""
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

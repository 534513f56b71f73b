"""Which run a folder may begin or resume, and what is put right there before it does."""

import json
import re
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from algorithms.checkpoints.file import read_iteration
from algorithms.checkpoints.published import UNFINISHED, check_replaceable, write_atomically
from benchmarks.provenance import DECIDES, provenance
from benchmarks.runs.folder import (
    BEST,
    CHECKPOINT,
    CHECKPOINTS,
    EVALUATIONS,
    IMAGES,
    ITERATION_KEYS,
    METRICS,
    RUN,
    holds_run,
    log_lines,
    read_json,
    read_spec,
    write_json,
)
from benchmarks.runs.spec import RunSpec

_IMAGE = re.compile(r"(\d{6,})(-deployed)?(-held-out)?\.png")


def check_same(spec: RunSpec, folder: Path) -> None:
    """Raise ValueError for a folder in which another run has completed an iteration; a run may be made longer."""
    if not holds_run(folder) or not _has_begun(folder):
        return
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


def is_finished(spec: RunSpec, folder: Path) -> bool:
    """Return whether a folder's run, which must be this one, is complete and not to be made longer."""
    return holds_run(folder) and read_json(folder / RUN).get("complete") is True and not _is_longer(spec, folder)


def prepare(spec: RunSpec, folder: Path) -> None:
    """Delete what killed writes left, and the files of another run that completed no iteration.

    Raise ValueError if the folder holds another run, or weights that no run wrote.
    """
    for left in folder.rglob(f"{UNFINISHED}*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    check_same(spec, folder)
    check_replaceable(folder, ["pytorch_lora_weights.safetensors"])
    pipeline = folder / "pipeline"
    check_replaceable(pipeline, [file.relative_to(pipeline).as_posix() for file in pipeline.rglob("*.safetensors")])
    if _is_to_be_replaced(spec, folder):
        write_json(folder / RUN, {**read_json(folder / RUN), "chunk_size": None})  # where memory ran out
        logs = [folder / name for name in (CHECKPOINT, BEST, METRICS, EVALUATIONS)]
        kept = [*folder.glob(f"{CHECKPOINTS}/[0-9]*.zip"), *_images_from(0, folder)]
        for file in [*logs, *kept, *folder.glob("tensorboard/events.out.tfevents.*")]:
            file.unlink(missing_ok=True)


def begin(spec: RunSpec, folder: Path, facts: dict[str, Any], iteration: int) -> None:
    """Write ``run.json`` of a new run; in a resumed one, note a new length, versions or hardware.

    ``facts``: of the model and the evaluation, and the device; ``iteration``: of the checkpoint.
    """
    facts = dict(facts)
    now = {**provenance(), "device": facts.pop("device")}
    if not holds_run(folder) or _is_to_be_replaced(spec, folder):
        write_json(folder / RUN, {"spec": spec.to_json(), "complete": False, **facts, "provenance": now})
        return
    before = read_json(folder / RUN)
    data = before | ({"spec": spec.to_json(), "complete": False} if _is_longer(spec, folder) else {})
    later: list[dict[str, Any]] = data.get("resumed_with", [])
    latest = later[-1]["provenance"] if later else data["provenance"]
    if not data["complete"] and any(latest.get(name) != now[name] for name in (*DECIDES, "device")):
        data["resumed_with"] = [*later, {"from_iteration": iteration, "provenance": now}]
    if data != before:
        write_json(folder / RUN, data)


def rewind(folder: Path, iteration: int) -> None:
    """Drop what was logged after the checkpoint: a resumed run writes it again."""

    def logged_before(line: dict[str, Any]) -> bool:
        # An evaluation at the checkpoint's own iteration is made again; the update before it is not.
        return bool(line[ITERATION_KEYS[METRICS]] < iteration + ("eval/reward_mean" not in line))

    wanted = {METRICS: logged_before, EVALUATIONS: lambda line: line[ITERATION_KEYS[EVALUATIONS]] < iteration}
    kept = {name: [line for line in log_lines(folder, name) if wanted[name](line)] for name in wanted}
    for file in _images_from(iteration, folder):
        file.unlink()
    for name, lines in kept.items():  # once both were read: a damaged one leaves the other as it is
        if (folder / name).is_file():
            write_atomically(folder / name, "".join(json.dumps(line) + "\n" for line in lines).encode())


def record_reward_files(folder: Path, digests: dict[str, str], iteration: int) -> None:
    """Note the SHA-256 of the reward's files, and from which iteration on a changed one is used, with a warning.

    A change is not refused: a reward that failed must be corrected before its run can resume.
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


def differences(there: dict[str, Any], wanted: dict[str, Any], source: str = "asked for") -> str:
    """Return the first three differences between two specifications as JSON, in words; "" if there are none."""
    lines = [f"{key} {before!r} there, {after!r} {source}" for key, (before, after) in changes(there, wanted).items()]
    return "; ".join(lines[:3]) + (f"; and {len(lines) - 3} more" if len(lines) > 3 else "")


def changes(there: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return name -> both values of what differs between two specifications as JSON; 'unset' for a missing value."""
    found, asked = _flat(json.loads(json.dumps(there))), _flat(json.loads(json.dumps(wanted)))
    names = [*asked, *(key for key in found if key not in asked)]
    pairs = {name: (found.get(name, "unset"), asked.get(name, "unset")) for name in names}
    return {name: (before, after) for name, (before, after) in pairs.items() if before != after}


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in data.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _images_from(iteration: int, folder: Path) -> list[Path]:
    """Return the grids of evaluations at an iteration and after it."""
    found = [(_IMAGE.fullmatch(file.name), file) for file in folder.glob(f"{IMAGES}/*.png")]
    return [file for match, file in found if match and int(match[1]) >= iteration]


def _is_longer(spec: RunSpec, folder: Path) -> bool:
    """Return whether more reward queries are asked for than the folder's run has."""
    return spec.total_queries > read_spec(folder).total_queries


def _is_to_be_replaced(spec: RunSpec, folder: Path) -> bool:
    """Return whether a folder holds another run, which completed no iteration."""
    if not holds_run(folder) or _has_begun(folder):
        return False
    try:
        return read_spec(folder) != spec
    except ValueError:  # of a reward, say, whose file is gone
        return True


def _has_begun(folder: Path) -> bool:
    """Return whether a folder's run has completed an iteration."""
    lines = log_lines(folder, METRICS)
    if read_json(folder / RUN).get("complete") or any(line[ITERATION_KEYS[METRICS]] for line in lines):
        return True
    try:
        return (folder / CHECKPOINT).exists() and read_iteration(folder / CHECKPOINT) > 0
    except ValueError:  # damaged: its iteration is not known
        return True

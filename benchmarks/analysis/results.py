"""A comparison's raw results as one JSON file, put together run by run, also from other days and machines."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from algorithms.checkpoints.published import write_atomically
from benchmarks.provenance import provenance
from benchmarks.runs.run import RunRecord
from benchmarks.runs.spec import RunSpec

#: One run as the file holds it: folder, task, variant, complete, spec, costs, evaluations, provenance and more.
Run = Mapping[str, Any]


def collect_results(
    records: Sequence[RunRecord], root: Path, made_by: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Gather every run's specification and evaluations, JSON-serialisable.

    Args:
        records: the runs, finished or not.
        root: the folder that their folders are named from.
        made_by: provenance of the whole; by default this process's.
    """
    return {
        "provenance": provenance() if made_by is None else made_by,
        "runs": [as_json(record, root) for record in records],
    }


def as_json(record: RunRecord, root: Path) -> dict[str, Any]:
    """Return one run, JSON-serialisable; its folder is named from ``root``."""
    folder = record.folder.relative_to(root)
    spec = record.spec.to_json()
    # compare's folders are TASK/VARIANT/seed-N; a run of train stands for itself.
    named = folder.parts[:2] if len(folder.parts) == 3 else (spec["task"]["reward"], spec["algorithm"])
    return {
        "folder": folder.as_posix(),
        "task": named[0],
        "variant": named[1],
        "complete": record.complete,
        "spec": spec,
        "image_shape": record.image_shape,
        "prompts": record.prompts,
        "costs": record.costs,
        "evaluations": record.evaluations,
        "provenance": record.provenance,
    }


def task_of(run: Run) -> str:
    """Return the name of a run's task; in files of version 0.1.0 its reward."""
    return run.get("task") or run["spec"]["task"]["reward"]


def variant_of(run: Run) -> str:
    """Return what is compared on the task: an algorithm, or one of its settings with a name of its own."""
    return run.get("variant") or run["spec"]["algorithm"]


def seed_of(run: Run) -> int:
    """Return a run's seed."""
    return run["spec"]["config"]["seed"]


def name_of(run: Run) -> str:
    """Return TASK/VARIANT/seed-N: what a run is compared as, wherever it was made."""
    return f"{task_of(run)}/{variant_of(run)}/seed-{seed_of(run)}"


def full_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a specification as JSON in which fields that its version did not have yet have their defaults.

    One that this version cannot read is returned as it is.
    """
    return json.loads(spec_key(spec))


def spec_key(spec: Mapping[str, Any]) -> str:
    """Return a specification as text that is equal for equal runs."""
    return _key(json.dumps(spec))


@lru_cache(maxsize=4096)  # a table asks for the same runs again and again, and each is checked field by field
def _key(text: str) -> str:
    spec = json.loads(text)
    with suppress(KeyError, TypeError, ValueError):
        spec = RunSpec.from_json(spec).to_json()
    return json.dumps(spec, sort_keys=True)


def write_results(results: Mapping[str, Any], path: Path) -> None:
    """Write the results, a run a line, atomically."""
    head = json.dumps({**results, "runs": []}, indent=1)
    runs = ",\n".join(json.dumps(run) for run in results["runs"])
    write_atomically(path, head.replace('"runs": []', f'"runs": [\n{runs}\n]').encode() + b"\n")


def read_results(path: Path) -> dict[str, Any]:
    """Read what :func:`write_results` wrote.

    Raises:
        ValueError: the file is missing or is no results file.
    """
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        results["runs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is not a results file as written by compare: {error!r}.") from error
    return results

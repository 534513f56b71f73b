"""A comparison's raw results as one JSON file, put together run by run, also from other days and machines."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algorithms.checkpoints.published import write_atomically
from benchmarks.runs.record import Run


@dataclass(frozen=True)
class Results:
    """The runs of a comparison, and what made them.

    Attributes:
        runs: in the order in which they are shown.
        provenance: command, versions and hardware of the whole.
        failures: TASK/VARIANT/seed-N -> last line of the error, of runs that failed.
    """

    runs: list[Run]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the results as JSON."""
        data = {"provenance": self.provenance, "runs": [run.to_json() for run in self.runs]}
        return {**data, "failures": self.failures} if self.failures else data


def write_results(results: Results, path: Path) -> None:
    """Write the results, one run per line, atomically."""
    data = results.to_json()
    head = json.dumps({**data, "runs": []}, indent=1)
    runs = ",\n".join(json.dumps(run) for run in data["runs"])
    write_atomically(path, head.replace('"runs": []', f'"runs": [\n{runs}\n]').encode() + b"\n")


def read_results(path: Path) -> Results:
    """Read what :func:`write_results` wrote.

    Raises:
        ValueError: the file is missing or is not a results file.
    """
    place = ""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        runs = []
        for index, run in enumerate(data["runs"]):
            place = f"runs[{index}]: "
            runs.append(Run.from_json(run))
        return Results(runs, data["provenance"], data.get("failures", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is not a results file as written by compare: {place}{error!r}.") from error

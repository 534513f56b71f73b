"""What a report is made from: the results of a folder's runs, and one run's log."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from algorithms import ALGORITHMS
from benchmarks.analysis.results import Run, collect_results, name_of, read_results
from benchmarks.report.command import NEITHER
from benchmarks.runs.run import RunRecord, read_log, read_run

_LOGGED = 500  # lines of a run's log on a page; longer logs are thinned evenly


@dataclass(frozen=True)
class Source:
    """What to report.

    Attributes:
        folder: where the page goes, and where the runs' folders lie.
        results: as :func:`benchmarks.analysis.results.collect_results` gathers them.
        log: lines of ``metrics.jsonl`` if the folder is one run's, else empty.
    """

    folder: Path
    results: Mapping[str, Any]
    log: list[dict[str, Any]]


def read_source(folder: Path) -> Source:
    """Read a folder as it stands: one run's, a comparison's with its runs, or ``results.json`` alone.

    Raises:
        ValueError: the folder is none of these.
    """
    if (folder / "run.json").is_file():
        record = read_run(folder)
        return Source(folder, collect_results([record], folder, record.provenance), _thinned(read_log(folder)))
    records = [read_run(path.parent) for path in folder.glob("*/*/seed-*/run.json")]
    file = folder / "results.json"
    if not records and not file.is_file():
        raise ValueError(f"{str(folder)!r} {NEITHER}")
    records.sort(key=_place)
    # The command that made them all: compare's own record, and until it is written its first run's.
    kept: dict[str, Any] = read_results(file) if file.is_file() else {"provenance": records[0].provenance, "runs": []}
    made = collect_results(records, folder, kept["provenance"])
    return Source(folder, {**kept, "runs": _together(made["runs"], kept["runs"])}, [])


def _together(made: Sequence[Run], kept: Sequence[Run]) -> list[Run]:
    """Return the runs whose folders are here, and those that results.json alone holds, in its order where it has one.

    Those were made on another day or machine, or stand for another run with the same settings.
    """
    by_name = {name_of(run): run for run in made}
    order = {name: index for index, name in enumerate([*map(name_of, kept), *by_name])}
    return sorted({**{name_of(run): run for run in kept}, **by_name}.values(), key=lambda run: order[name_of(run)])


def _place(record: RunRecord) -> tuple[int, str, int, str]:
    """Order runs as compare does: by seed, task and algorithm."""
    algorithm = list(ALGORITHMS).index(record.spec.algorithm)
    return record.spec.config.seed, record.spec.task.reward, algorithm, record.folder.parent.name


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return lines[:: max(1, -(-len(lines) // _LOGGED))]

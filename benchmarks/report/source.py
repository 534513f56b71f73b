"""What a report is made from: the results of a folder's runs, and one run's log."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from algorithms import ALGORITHMS
from benchmarks.analysis.results import Results, read_results
from benchmarks.report.command import NEITHER
from benchmarks.runs.record import Run
from benchmarks.runs.run import read_log, read_run

_LOGGED = 500  # lines of a run's log on a page; longer logs are thinned evenly


@dataclass(frozen=True)
class Source:
    """What to report.

    Attributes:
        folder: where the page goes, and where the runs' folders lie.
        results: of the runs.
        log: lines of ``metrics.jsonl`` if the folder is one run's, else empty.
    """

    folder: Path
    results: Results
    log: list[dict[str, Any]] = field(default_factory=list)


def read_source(folder: Path) -> Source:
    """Read a folder in whatever state it is: one run's, a comparison's with its runs, or ``results.json`` alone.

    Raises:
        ValueError: the folder is none of these.
    """
    if (folder / "run.json").is_file():
        run, log = read_run(folder), read_log(folder)
        return Source(folder, Results([run], run.provenance), log[:: max(1, -(-len(log) // _LOGGED))])
    runs = [read_run(path.parent, folder) for path in folder.glob("*/*/seed-*/run.json")]
    file = folder / "results.json"
    if not runs and not file.is_file():
        raise ValueError(f"{str(folder)!r} {NEITHER}")
    runs.sort(key=_place)
    # The command that made them all: the comparison's own record, and until it is written that of the first run.
    kept = read_results(file) if file.is_file() else Results([], runs[0].provenance)
    return Source(folder, replace(kept, runs=_together(runs, kept.runs)))


def _together(here: Sequence[Run], kept: Sequence[Run]) -> list[Run]:
    """Return the runs whose folders are here, and those that results.json alone holds, in its order if it has one.

    Those were made on another day or machine, or stand for another run with the same settings.
    """
    by_name = {run.name: run for run in [*kept, *here]}  # in the order of results.json; what is here is newer
    return list(by_name.values())


def _place(run: Run) -> tuple[int, str, int, str]:
    """Order runs as compare does: by seed, task and algorithm."""
    return run.seed, run.spec.task.reward, list(ALGORITHMS).index(run.spec.algorithm), run.variant

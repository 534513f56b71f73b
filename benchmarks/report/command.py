"""``report``: renders a comparison's or a run's folder, also while it is being written."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.runs.pictures import check_picture_file

#: Of a folder that cannot be reported on.
NEITHER = (
    "holds neither a run nor a comparison; expected a folder written by train (with a run.json) or by compare (with "
    "TASK/ALGORITHM/seed-N/run.json or a results.json)."
)


@dataclass(frozen=True)
class Report:
    """Write a run or a comparison, finished or not, as one HTML page that opens offline."""

    folder: Annotated[Path, tyro.conf.Positional]
    """A folder written by train or compare; the page becomes its report.html."""
    picture: Annotated[Path | None, tyro.conf.arg(metavar="PATH", help_behavior_hint="(default: none)")] = None
    """For a run on geneval, also write this picture: prompts, and images before and after, marked right or wrong."""

    def __post_init__(self) -> None:
        """Refuse a file that is no picture before anything is read."""
        if self.picture is not None:
            check_picture_file(self.picture)


def report(options: Report) -> int:
    """Write the page and print its path; returns the exit status."""
    if not options.folder.is_dir():  # before what takes a moment to import
        raise ValueError(f"{str(options.folder)!r} {NEITHER}")
    from benchmarks.report.page import write_report
    from benchmarks.report.source import read_source

    source = read_source(options.folder)
    if options.picture is not None:
        from benchmarks.report.picture import write_picture

        write_picture(source, options.picture)
        print(f"picture: {options.picture}")
    page = write_report(source)
    runs = source.results.runs
    unfinished = sum(not run.complete for run in runs)
    if unfinished:
        print(f"{unfinished} of {len(runs)} runs not finished; the page shows them so far.")
    print(f"report: {page}")
    return 0

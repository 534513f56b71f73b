"""The report: one self-contained HTML page of a comparison or of one run, finished or not, and its figures as files.

``source`` reads the folder, ``charts`` and ``gallery`` say what to show, ``figures`` draws files, ``page`` renders.
"""

from typing import TYPE_CHECKING

from benchmarks.report.command import Report, report
from diffusion_gym import _lazy

if TYPE_CHECKING:
    from benchmarks.report.page import PAGE, write_report
    from benchmarks.report.source import Source, read_source

__all__ = ["PAGE", "Report", "Source", "read_source", "report", "write_report"]

__getattr__, __dir__ = _lazy.attributes(
    __name__,
    {
        "PAGE": "benchmarks.report.page",
        "Source": "benchmarks.report.source",
        "read_source": "benchmarks.report.source",
        "write_report": "benchmarks.report.page",
    },
)

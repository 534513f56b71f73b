"""The report: one self-contained HTML page of a comparison or of one run, finished or not, and its figures as files.

``source`` reads the folder, ``charts`` and ``gallery`` say what to show, ``figures`` draws files, ``page`` renders.
"""

from benchmarks.report.command import Report, report
from benchmarks.report.page import PAGE, write_report
from benchmarks.report.source import Source, read_source

__all__ = ["PAGE", "Report", "Source", "read_source", "report", "write_report"]

"""The progress bar of train and compare: images, images per second, time left, reward; sparse lines off a terminal."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0
_VALUES = "{n_fmt}/{total_fmt} images [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_BAR, _LINE = "{l_bar}{bar}| " + _VALUES, "{percentage:3.0f} % | " + _VALUES


class ProgressBar:
    """Counts images over one or more runs; appears with the first progress, so that an earlier error stands alone.

    On a terminal it is a bar; elsewhere, as in a log of CI, a line at most every ten seconds. The rate is the average
    since the start, because an iteration's sampling and updates go at different speeds; what was done before a
    resumed run counts for the bar but not for the rate.
    """

    def __init__(self, total: int, already: float = 0.0) -> None:
        """Begin with ``already`` of ``total`` images done by runs that are not run again."""
        self._total, self._finished = total, already
        self._started_at: dict[str, float] = {}
        self._done: dict[str, float] = {}
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, images: Mapping[str, float], rewards: Mapping[str, float | None], prefix: str = "") -> None:
        """Draw the bar, if it is time to.

        Args:
            images: run -> images done.
            rewards: name -> latest value; None is left out.
            prefix: before the values, such as the run's name.
        """
        self._done.update(images)
        self._started_at = {**images, **self._started_at}
        already = int(self._finished + sum(self._started_at.values()))
        if self._bar is None:
            self._bar = _make_bar(self._total, already)
        self._bar.initial = already
        self._bar.n = int(self._finished + sum(self._done.values()))
        values = [f"{key}={value:.3f}" for key, value in rewards.items() if value is not None]
        self._bar.set_postfix_str(prefix + ", ".join(values), refresh=False)
        self._bar.update(0)

    def write(self, text: str) -> None:
        """Print a line above the bar."""
        tqdm.write(text)


def _make_bar(total: int, already: int) -> "tqdm[Any]":
    options: dict[str, Any] = {"total": total, "initial": already, "unit": "img", "smoothing": 0, "miniters": 0}
    if sys.stderr.isatty():
        return tqdm(**options, dynamic_ncols=True, bar_format=_BAR)
    between = {"mininterval": _SECONDS_BETWEEN_LINES, "maxinterval": _SECONDS_BETWEEN_LINES}
    return tqdm(**options, **between, file=_Lines(sys.stderr), bar_format=_LINE)


class _Lines:
    """A file for tqdm that makes a line of its own of each redrawing, instead of a carriage return."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        """Write the line, without the padding that overwrites a longer one on a terminal."""
        line = text.replace("\r", "").strip()
        if line:
            self._file.write(line + "\n")

    def flush(self) -> None:
        """Flush the file."""
        self._file.flush()

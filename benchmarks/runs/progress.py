"""The progress bar of train and compare: images, images per second, time left, reward; sparse lines off a terminal."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0
_VALUES = "{n_fmt}/{total_fmt} images [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
_BAR, _LINE = "{l_bar}{bar}| " + _VALUES, "{percentage:3.0f} % | " + _VALUES


class ProgressBar:
    """Count images over one or more runs; the bar appears with the first progress.

    Off a terminal, as in a log of CI, it is a line at most every ten seconds. The rate is the average since the start,
    because sampling and updates differ in speed; what a resumed run had done before counts for the bar only.
    """

    def __init__(self, total: int, already: float = 0.0) -> None:
        """Begin with ``already`` of ``total`` images, of runs that are complete."""
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
    """A file for tqdm in which each redrawing is a line of its own, without carriage return or padding."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, text: str) -> None:
        line = text.replace("\r", "").strip()
        if line:
            self._file.write(line + "\n")

    def flush(self) -> None:
        self._file.flush()

"""Ctrl-C, SIGTERM and SIGHUP: the first lets the work under way be saved, the second ends it without a traceback.

SIGTERM is how a cluster takes a machine back and how a container is stopped, SIGHUP how a terminal is closed.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def quiet_ctrl_c() -> None:
    """Let Ctrl-C end the process without a traceback where no command is at work: while it starts, and while it ends.

    What hears it already, or what a shell has hidden from it, stays.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class Stopped(Exception):  # noqa: N818 - the user's wish, not an error
    """The user stopped a command; the message says how to go on."""

    def __init__(self, message: str, status: int = 130) -> None:
        """Args: message: for the user; status: to exit with."""
        super().__init__(message)
        self.status = status


class AtOnce(KeyboardInterrupt):
    """A signal that ends what is under way."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        """Args: number: of the signal."""
        super().__init__()
        self.status = 128 + number


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of a process that was interrupted: 130 after Ctrl-C, 143 after SIGTERM."""
    return interrupt.status if isinstance(interrupt, AtOnce) else 130


class StopSignal:
    """In a ``with`` block: true once a signal came. A second one raises AtOnce, a third ends the process."""

    def __init__(self, what: str) -> None:
        """Args: what: is done after the first signal, for the user."""
        self._what = what
        self._heard: list[int] = []
        self._handling: contextlib.AbstractContextManager[None] = contextlib.nullcontext()

    def __enter__(self) -> "StopSignal":
        self._handling = _handled(self._hear)
        self._handling.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._handling.__exit__(*raised)

    def __call__(self) -> bool:
        """Whether to stop."""
        return bool(self._heard)

    @property
    def status(self) -> int:
        """The exit status that tells of the first signal."""
        return 128 + self._heard[0]

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard.append(number)
        if len(self._heard) == 1:
            # Not print, which the signal may have come in the middle of; and a terminal may be closed.
            with contextlib.suppress(OSError):
                os.write(2, f"\nstopping: {self._what} (again: at once) ...\n".encode())
        elif os.environ.get("WORLD_SIZE", "1") == "1":  # a launcher repeats the terminal's signal to its ranks
            _end(len(self._heard) - 1, number)


@contextlib.contextmanager
def ended_at_once() -> Iterator[None]:
    """In this block a signal, SIGTERM as well as Ctrl-C, raises AtOnce; a second one ends the process."""
    heard: list[int] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        _end(len(heard), number)

    with _handled(hear):
        yield


def _end(times: int, number: int) -> None:
    if times > 1:
        os._exit(128 + number)
    raise AtOnce(number)


@contextlib.contextmanager
def _handled(hear: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Let a function hear the signals; the main thread alone can. What nohup has hidden stays hidden."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in _SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

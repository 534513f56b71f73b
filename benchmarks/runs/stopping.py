"""Ctrl-C, SIGTERM and SIGHUP: the first lets the work under way be saved, the second ends it without a traceback.

A cluster that takes a machine back, or a container that is stopped, sends SIGTERM; a closed terminal sends SIGHUP.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Stopped(Exception):  # noqa: N818 - the user's wish, not an error
    """The user stopped a command; the message says how to resume."""

    def __init__(self, message: str, status: int = 130) -> None:
        """Args: message: for the user; status: to exit with."""
        super().__init__(message)
        self.status = status


class AtOnce(KeyboardInterrupt):
    """A signal that ends the work under way."""

    def __init__(self, number: int) -> None:
        """Args: number: of the signal."""
        super().__init__()
        self.status = 128 + number


def status_of(interrupt: KeyboardInterrupt) -> int:
    """Return the exit status of an interrupted process: 130 after Ctrl-C, 143 after SIGTERM."""
    return interrupt.status if isinstance(interrupt, AtOnce) else 130


def launched_ranks() -> int:
    """Return the number of processes that a launcher (torchrun, accelerate launch) started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def quiet_ctrl_c() -> None:
    """Let Ctrl-C end the process without a traceback while no command runs; a handler of somebody else's stays."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class StopSignal:
    """In a ``with`` block: True once a signal came. A second signal raises AtOnce, a third ends the process."""

    def __init__(self, what: str) -> None:
        """Args: what: happens after the first signal, for the user."""
        self._what = what
        self._heard: list[int] = []
        self._block = contextlib.ExitStack()

    def __enter__(self) -> "StopSignal":
        self._block.enter_context(_handled(self._hear))
        return self

    def __exit__(self, *raised: Any) -> None:
        self._block.close()

    def __call__(self) -> bool:
        """Return whether to stop."""
        return bool(self._heard)

    @property
    def status(self) -> int:
        """The exit status that names the first signal."""
        return 128 + self._heard[0]

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard.append(number)
        if len(self._heard) == 1:
            # Not print, in whose middle the signal may have come; and the terminal may be closed.
            with contextlib.suppress(OSError):
                os.write(2, f"\nstopping: {self._what} (again: at once) ...\n".encode())
        elif launched_ranks() == 1:  # a launcher repeats the terminal's signal to its ranks
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
    """Handle the signals with a function, in the main thread, which alone can; nohup's SIGHUP stays ignored."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        heard = [number for number in _SIGNALS if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN]
        before = {number: signal.signal(number, hear) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

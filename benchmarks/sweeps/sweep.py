"""Many training runs as one job: complete ones are skipped, a failed one is retried once, one progress bar.

A pool runs them: local processes (``local_pool``) or a Ray cluster (``ray_pool``).
"""

import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from benchmarks.runs.folder import holds_run
from benchmarks.runs.progress import ProgressBar
from benchmarks.runs.run import read_run
from benchmarks.runs.spec import RunSpec
from benchmarks.runs.stopping import Stopped, StopSignal, status_of

_ATTEMPTS = 2


@dataclass(frozen=True)
class Message:
    """A run's progress: images sampled and trained on, and its latest rollout's mean reward."""

    run: str
    images: float
    reward: float | None


class Pool(Protocol):
    """A place for runs. Used in a ``with`` statement."""

    def __enter__(self) -> "Pool": ...

    def __exit__(self, *raised: object) -> None:
        """Wait for the runs; after a KeyboardInterrupt end them at once."""

    def submit(self, name: str, spec: RunSpec, folder: Path) -> "Future[None]":
        """Run ``spec`` in ``folder`` as soon as there is room, from its checkpoint if it has one."""

    def messages(self) -> list[Message]:
        """Return the runs' messages since the last call."""

    def stop(self) -> None:
        """Ask every run to write its checkpoint and end."""


def run_all(
    specs: Mapping[str, RunSpec],
    root: Path,
    pool: Pool,
    on_finished: Callable[[str], object] = lambda name: None,
) -> dict[str, str]:
    """Run every specification in ``root / name``; complete runs are skipped, others resumed.

    Args:
        specs: name -> run.
        root: parent of the runs' folders.
        pool: where they run.
        on_finished: called with the name of each run that has just been completed.

    Returns:
        name -> error text of the runs that failed twice.

    Raises:
        Stopped: after Ctrl-C or SIGTERM.
    """
    sweep = _Sweep(specs, root, pool, on_finished)
    with StopSignal("every run writes its checkpoint") as stop:
        try:
            with pool, ProgressBar(sweep.queries(specs), sweep.queries(specs) - sweep.queries(sweep.todo)) as bar:
                sweep.run(bar, stop)
        except KeyboardInterrupt as interrupt:
            raise Stopped(
                "stopped at once; the same command resumes every run from its last checkpoint.", status_of(interrupt)
            ) from None
    if sweep.stopping:
        raise Stopped("stopped; the same command resumes.", stop.status)
    return sweep.failures


def is_complete(spec: RunSpec, folder: Path) -> bool:
    """Return whether a folder holds this run, complete."""
    record = read_run(folder) if holds_run(folder) else None
    return record is not None and record.complete and record.spec == spec


def last_line(error: BaseException) -> str:
    """Return an error's class and last line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[-1]


class _Sweep:
    """The runs that are not complete, on their way through a pool."""

    def __init__(
        self, specs: Mapping[str, RunSpec], root: Path, pool: Pool, on_finished: Callable[[str], object]
    ) -> None:
        self.root, self.pool, self.on_finished = root, pool, on_finished
        self.todo = {name: spec for name, spec in specs.items() if not is_complete(spec, root / name)}
        self.total, self.finished = len(specs), len(specs) - len(self.todo)
        self.pending: dict[Future[None], str] = {}
        self.attempts = dict.fromkeys(self.todo, 0)
        self.failures: dict[str, str] = {}
        self.stopping = False

    @staticmethod
    def queries(specs: Mapping[str, RunSpec]) -> int:
        """Return the reward queries of all."""
        return sum(spec.total_queries for spec in specs.values())

    def run(self, bar: ProgressBar, stop: Callable[[], bool]) -> None:
        """Submit every run, and wait for all; once ``stop()`` is true, stop them."""
        for name in self.todo:
            self._submit(name)
        while self.pending:
            if stop() and not self.stopping:
                self.stopping = True
                self.pool.stop()
                for future in self.pending:
                    future.cancel()
            done, _ = wait(self.pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                name = self.pending.pop(future)
                if not future.cancelled() and not self.stopping:
                    self._settle(name, future.exception(), bar)
            self._show(bar)
        self._show(bar)

    def _submit(self, name: str) -> None:
        self.attempts[name] += 1
        self.pending[self.pool.submit(name, self.todo[name], self.root / name)] = name

    def _settle(self, name: str, error: BaseException | None, bar: ProgressBar) -> None:
        if error is None:
            self.finished += 1
            self.on_finished(name)
        elif self.attempts[name] < _ATTEMPTS:
            bar.write(f"run {name} failed ({last_line(error)}); it is retried.")
            self._submit(name)
        else:
            bar.write(f"run {name} failed again ({last_line(error)}); the others continue.")
            self.failures[name] = "".join(traceback.format_exception(error)).strip()

    def _show(self, bar: ProgressBar) -> None:
        messages = self.pool.messages()
        if messages:
            latest, failed = messages[-1], f", {len(self.failures)} failed" if self.failures else ""
            images = {message.run: message.images for message in messages}
            state = f"{self.finished}/{self.total} runs{failed}; {latest.run}: "
            bar.show(images, {"reward": latest.reward}, state)

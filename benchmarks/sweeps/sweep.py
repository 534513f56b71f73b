"""Many training runs as one job: what is complete is skipped, a failed run is tried once more, one progress bar.

Where the runs go is the pool's matter: local processes (``pool``) or a Ray cluster (``ray_pool``).
"""

import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

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
    """Where runs go. Used in a ``with`` statement."""

    def __enter__(self) -> "Pool": ...

    def __exit__(self, *raised: object) -> None:
        """Wait for the runs; after a KeyboardInterrupt end them at once."""

    def submit(self, name: str, spec: RunSpec, folder: Path) -> "Future[None]":
        """Run ``spec`` in ``folder`` as soon as there is room, from its checkpoint if it has one."""

    def messages(self) -> list[Message]:
        """Return what the runs told since the last call."""

    def stop(self) -> None:
        """Ask every run to write its checkpoint and end."""


@dataclass
class _Sweep:
    """What is under way."""

    pending: dict["Future[None]", str] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    finished: int = 0


def run_all(
    specs: Mapping[str, RunSpec],
    root: Path,
    pool: Pool,
    on_finished: Callable[[str], object] = lambda name: None,
) -> dict[str, str]:
    """Run every specification in ``root / name``, skipping what is complete and resuming what is not.

    Args:
        specs: name -> run.
        root: parent of the runs' folders.
        pool: where they run.
        on_finished: called with the name of each run that has just been completed.

    Returns:
        name -> error text of the runs that failed twice; the others are complete.

    Raises:
        Stopped: after Ctrl-C or SIGTERM.
    """
    with StopSignal("every run writes its checkpoint") as stop:
        try:
            return _run_all(specs, root, pool, on_finished, stop)
        except KeyboardInterrupt as interrupt:
            raise Stopped(
                "stopped at once; the same command resumes every run from its last checkpoint.", status_of(interrupt)
            ) from None


def _run_all(
    specs: Mapping[str, RunSpec],
    root: Path,
    pool: Pool,
    on_finished: Callable[[str], object],
    stop: StopSignal,
) -> dict[str, str]:
    todo = {name: spec for name, spec in specs.items() if not is_complete(spec, root / name)}
    total = sum(spec.total_queries for spec in specs.values())
    already = total - sum(spec.total_queries for spec in todo.values())
    sweep, stopping = _Sweep(finished=len(specs) - len(todo)), False
    with pool, ProgressBar(total, already) as bar:
        for name in todo:
            _submit(sweep, pool, name, todo[name], root)
        while sweep.pending:
            if stop() and not stopping:
                stopping = True
                pool.stop()
                for future in sweep.pending:
                    future.cancel()
            done, _ = wait(sweep.pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                name = sweep.pending.pop(future)
                if future.cancelled() or stopping:
                    continue
                error = future.exception()
                if error is None:
                    sweep.finished += 1
                    on_finished(name)
                elif sweep.attempts[name] < _ATTEMPTS:
                    bar.write(f"run {name} failed ({last_line(error)}); it is tried once more.")
                    _submit(sweep, pool, name, todo[name], root)
                else:
                    bar.write(f"run {name} failed again ({last_line(error)}); the others go on.")
                    sweep.failures[name] = "".join(traceback.format_exception(error)).strip()
            _show(bar, pool.messages(), sweep, len(specs))
        _show(bar, pool.messages(), sweep, len(specs))
    if stopping:
        raise Stopped("stopped; the same command resumes.", stop.status)
    return sweep.failures


def is_complete(spec: RunSpec, folder: Path) -> bool:
    """Return whether a folder holds this run, finished."""
    if not (folder / "run.json").is_file():
        return False
    record = read_run(folder)
    return record.complete and record.spec == spec


def _submit(sweep: _Sweep, pool: Pool, name: str, spec: RunSpec, root: Path) -> None:
    sweep.attempts[name] = sweep.attempts.get(name, 0) + 1
    sweep.pending[pool.submit(name, spec, root / name)] = name


def last_line(error: BaseException) -> str:
    """Return what an error comes down to, in one line."""
    return f"{type(error).__name__}: {error}".strip().splitlines()[-1]


def _show(bar: ProgressBar, messages: list[Message], sweep: _Sweep, total: int) -> None:
    if not messages:
        return
    latest = messages[-1]
    state = f"{sweep.finished}/{total} runs" + (f", {len(sweep.failures)} failed" if sweep.failures else "")
    bar.show(
        {message.run: message.images for message in messages}, {"reward": latest.reward}, f"{state}; {latest.run}: "
    )

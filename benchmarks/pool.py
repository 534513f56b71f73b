"""Runs many training runs in local processes, one thread each, with one progress bar; stops and resumes cleanly."""

import multiprocessing
import queue
import signal
import traceback
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import Any

from benchmarks.progress import ProgressBar
from benchmarks.runs import Progress, read_run, run
from benchmarks.settings import RunSpec


class Stopped(Exception):  # noqa: N818 - the user's wish, not an error
    """The user pressed Ctrl-C; every run has left its checkpoint."""


def run_all(specs: Mapping[str, RunSpec], root: Path, processes: int, threads: int) -> dict[str, str]:
    """Run every specification in ``root / name``, skipping what is complete and resuming what is not.

    Args:
        specs: name -> run.
        root: parent of the runs' folders.
        processes: at the same time.
        threads: of torch, in each process.

    Returns:
        name -> error text of the runs that failed; the others are complete.

    Raises:
        Stopped: after Ctrl-C.
    """
    todo = {name: spec for name, spec in specs.items() if not _is_complete(spec, root / name)}
    total = sum(spec.total_queries for spec in specs.values())
    already = total - sum(spec.total_queries for spec in todo.values())
    failures: dict[str, str] = {}
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        assert isinstance(manager, SyncManager)
        messages, stop = manager.Queue(), manager.Event()
        # Only this process hears Ctrl-C; it asks the others to checkpoint and end.
        with ProcessPoolExecutor(processes, context, _ignore_interrupt) as executor:
            futures: dict[Future[None], str] = {
                executor.submit(_worker, name, spec, root / name, threads, messages, stop): name
                for name, spec in todo.items()
            }
            pending = set(futures)
            with ProgressBar(total, already) as bar:
                while pending:
                    try:
                        finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                        for future in finished:
                            error = None if future.cancelled() else future.exception()
                            if error is not None:
                                failures[futures[future]] = "".join(traceback.format_exception(error)).strip()
                        _show(bar, messages)
                    except KeyboardInterrupt:
                        if stop.is_set():
                            raise
                        bar.write("stopping: every run writes its checkpoint (Ctrl-C again: at once) ...")
                        stop.set()
                        for future in pending:
                            future.cancel()
                _show(bar, messages)
            if stop.is_set():
                raise Stopped
    return failures


def _is_complete(spec: RunSpec, folder: Path) -> bool:
    if not (folder / "run.json").is_file():
        return False
    record = read_run(folder)
    return record.complete and record.spec == spec


def _ignore_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _worker(name: str, spec: RunSpec, folder: Path, threads: int, messages: Any, stop: Any) -> None:
    import torch

    if stop.is_set():  # the executor hands out one run more than there are processes
        return
    torch.set_num_threads(threads)

    def tell(progress: Progress) -> None:
        messages.put((name, progress.images, progress.reward))

    run(spec, folder, on_progress=tell, should_stop=stop.is_set)


def _show(bar: ProgressBar, messages: Any) -> None:
    images: dict[str, float] = {}
    latest: tuple[str, float | None] | None = None
    while True:
        try:
            name, done, reward = messages.get_nowait()
        except queue.Empty:
            break
        images[name] = done
        latest = (name, reward)
    if latest is not None:
        bar.show(images, {"reward": latest[1]}, f"{latest[0]}: ")

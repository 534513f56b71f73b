"""Runs many training runs in local processes, one thread each, with one progress bar; stops and resumes cleanly."""

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from benchmarks.progress import ProgressBar
from benchmarks.recorder import Progress
from benchmarks.runs import read_run, run
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
    messages, stop = context.Queue(), context.Event()
    # Only this process hears Ctrl-C; it asks the others to checkpoint and end.
    with ProcessPoolExecutor(processes, context, _start_worker, (messages, stop)) as executor:
        futures: dict[Future[None], str] = {
            executor.submit(_worker, name, spec, root / name, threads): name for name, spec in todo.items()
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


_channel: tuple[Any, Any]
"""In a worker: the queue of its messages, and the event that asks it to stop."""
_running = threading.Lock()
"""In a worker: held while it has a run."""


def _start_worker(messages: Any, stop: Any) -> None:
    global _channel
    _channel = messages, stop
    messages.cancel_join_thread()  # progress that nobody reads any more keeps no process alive
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker after its parent was killed, once the run it has, if any, has written its checkpoint."""
    _parent().join()
    with _running:
        os._exit(1)


def _parent() -> Any:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker has a parent"
    return parent


def _worker(name: str, spec: RunSpec, folder: Path, threads: int) -> None:
    import torch

    messages, stop = _channel
    if stop.is_set():  # the executor hands out one run more than there are processes
        return
    torch.set_num_threads(threads)
    parent = _parent()

    def tell(progress: Progress) -> None:
        messages.put((name, progress.images, progress.reward))

    with _running:
        run(spec, folder, on_progress=tell, should_stop=lambda: stop.is_set() or not parent.is_alive())


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

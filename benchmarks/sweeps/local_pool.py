"""Runs in local processes, one after the other in each; a process that dies ends no run but its own."""

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from algorithms.own import load_algorithms, loaded_files
from benchmarks.machine import available_cores, available_gpus, available_memory
from benchmarks.runs.recorder import Progress
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec
from benchmarks.sweeps.sweep import Message
from diffusion_gym.models import check_device

#: The most main memory of a run on the CPU; on the embedded model, without a reward model, it is 0.4 to 0.7 GB.
_BYTES_PER_RUN = 1_500_000_000
_GPUS = "CUDA_VISIBLE_DEVICES"


def local_pool(specs: Collection[RunSpec], processes: int, threads: int) -> "LocalPool":
    """Return a pool for runs on this machine; 0 ``processes`` takes one per GPU, or what cores and memory hold.

    If a run's device is "cuda", each process sees one of the visible GPUs, in turn. A device such as "cuda:1" names its
    GPU itself.
    """
    devices = {check_device("auto").type if spec.task.device == "auto" else spec.task.device for spec in specs}
    gpus = available_gpus() if "cuda" in devices and devices <= {"cpu", "cuda"} else ()
    held = processes_held(threads, available_cores(), available_memory()) if devices <= {"cpu"} else max(1, len(gpus))
    return LocalPool(processes or held, threads, gpus)


def processes_held(threads: int, cores: int, memory: int) -> int:
    """Return how many runs on the CPU a machine holds, at least one; ``memory`` in bytes."""
    return max(1, min(cores // threads, memory // _BYTES_PER_RUN))


class LocalPool:
    """A fixed number of processes, each with its own channel, and a thread that waits for each of them.

    Only this process handles Ctrl-C and SIGTERM; it asks the others to checkpoint and end. They also end, with a
    checkpoint, if this process is killed.
    """

    def __init__(self, processes: int, threads: int, gpus: Sequence[str] = ()) -> None:
        """Start no process yet; ``gpus``: as CUDA_VISIBLE_DEVICES names them; if empty, every process sees all."""
        self.processes, self.gpus = processes, tuple(gpus)
        self._threads = threads
        self._next_gpu = itertools.cycle(self.gpus or (None,))
        self._waiting = ThreadPoolExecutor(processes)
        self._workers: dict[int, _Worker] = {}  # by the thread that waits for it
        self._stopping = False

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *raised: object) -> None:
        if isinstance(raised[1], KeyboardInterrupt):
            self._stopping = True
            for worker in list(self._workers.values()):
                worker.kill()
        self._waiting.shutdown(cancel_futures=True)
        for worker in list(self._workers.values()):
            worker.executor.shutdown()

    def submit(self, name: str, spec: RunSpec, folder: Path) -> "Future[None]":
        """Run in the first process that is free."""
        return self._waiting.submit(self._run, name, spec, folder)

    def messages(self) -> list[Message]:
        """Return the runs' messages since the last call."""
        return [message for worker in list(self._workers.values()) for message in worker.received()]

    def stop(self) -> None:
        """Ask every run to write its checkpoint and end."""
        self._stopping = True
        for worker in list(self._workers.values()):
            worker.stop.set()

    def _run(self, name: str, spec: RunSpec, folder: Path) -> None:
        """Wait, in one of the threads, for a run in that thread's process."""
        if self._stopping:
            return
        me = threading.get_ident()
        if me not in self._workers:
            self._workers[me] = _Worker(next(self._next_gpu))
        worker = self._workers[me]
        try:
            worker.executor.submit(_work, name, spec, folder, self._threads).result()
        except BrokenProcessPool as error:
            self._workers[me] = _Worker(worker.gpu)  # its channel may be broken too
            raise RuntimeError(f"the process of run {name} ended without a word; was it killed for memory?") from error


class _Worker:
    """One process, its messages, and the event that asks it to stop."""

    _starting = threading.Lock()  # the environment that a new process inherits is one for all threads

    def __init__(self, gpu: str | None) -> None:
        """Args: gpu: that it sees; None: all that this process sees."""
        self.gpu = gpu
        context = multiprocessing.get_context("spawn")
        self.queue, self.stop = context.Queue(), context.Event()
        started_with = (self.queue, self.stop, loaded_files())
        self.executor = ProcessPoolExecutor(1, context, _start_worker, started_with)
        with self._starting:
            before = os.environ.get(_GPUS)
            if gpu is not None:
                os.environ[_GPUS] = gpu  # before it starts: one of its imports may initialise CUDA
            self._pid = self.executor.submit(os.getpid)
            if gpu is not None:
                os.environ.pop(_GPUS)
                os.environ.update({} if before is None else {_GPUS: before})

    def kill(self) -> None:
        """End the process at once; its run's last checkpoint stays."""
        with contextlib.suppress(OSError, BrokenProcessPool):
            os.kill(self._pid.result(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def received(self) -> list[Message]:
        """Return the messages that have come."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self.queue.get_nowait())
        return found


#: In a worker: the queue of its messages, the event that asks it to stop, and a lock that is held while a run runs.
_messages: Any
_stop: Any
_running = threading.Lock()


def _start_worker(messages: Any, stop: Any, own: Sequence[Path]) -> None:
    """Prepare this process; ``own``: files whose algorithms runs may have."""
    global _messages, _stop
    _messages, _stop = messages, stop
    messages.cancel_join_thread()  # unread progress keeps no process alive
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a terminal or a cluster sends them to all: the parent passes them on
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for file in own:
        load_algorithms(file)


def _end_with_parent() -> None:
    """End this worker after its parent was killed, once its run, if it has one, has written its checkpoint."""
    _parent().join()
    with _running:
        os._exit(1)


def _parent() -> Any:
    parent = multiprocessing.parent_process()
    assert parent is not None, "only a worker has a parent"
    return parent


def _work(name: str, spec: RunSpec, folder: Path, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    parent = _parent()

    def report(progress: Progress) -> None:
        _messages.put(Message(name, progress.images, progress.reward))

    with _running:
        run(spec, folder, on_progress=report, should_stop=lambda: _stop.is_set() or not parent.is_alive())

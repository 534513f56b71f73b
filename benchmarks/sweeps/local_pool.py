"""Runs in local processes, one after the other in each; a process that dies takes down no run but its own."""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from benchmarks.machine import available_cores, available_gpus, available_memory
from benchmarks.runs.recorder import Progress
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec
from benchmarks.sweeps.sweep import Message
from diffusion_gym.models import check_device

#: Main memory that a run on the CPU may come to; on the embedded model, without a reward model, it is 0.4 to 0.7 GB.
_BYTES_OF_A_RUN = 1_500_000_000


def local_pool(specs: Collection[RunSpec], processes: int, threads: int) -> "LocalPool":
    """Return a pool for runs on this machine.

    Where a device is "cuda", each process has one of the visible GPUs for itself, or shares it if there are more
    processes than GPUs. Where one is a GPU by its number, that number says which.

    Args:
        specs: the runs.
        processes: at the same time; 0 takes one a GPU, and on the CPU as many as cores and memory hold.
        threads: of torch, in each.
    """
    devices = {check_device("auto").type if spec.task.device == "auto" else spec.task.device for spec in specs}
    gpus = available_gpus() if "cuda" in devices and devices <= {"cpu", "cuda"} else ()
    held = processes_held(threads, available_cores(), available_memory()) if devices <= {"cpu"} else max(1, len(gpus))
    return LocalPool(processes or held, threads, gpus)


def processes_held(threads: int, cores: int, memory: int) -> int:
    """Return how many runs on the CPU a machine holds, at least one; ``memory`` in bytes."""
    return max(1, min(cores // threads, memory // _BYTES_OF_A_RUN))


class LocalPool:
    """A fixed number of processes, each with its own channel, and a thread that waits for each of them.

    Only this process hears Ctrl-C and SIGTERM; it asks the others to checkpoint and end. They also end, with a
    checkpoint, when this process is gone.
    """

    def __init__(self, processes: int, threads: int, gpus: Sequence[str] = ()) -> None:
        """Start no process yet.

        Args:
            processes: at the same time.
            threads: of torch, in each.
            gpus: as CUDA_VISIBLE_DEVICES names them; each process sees one, in turn. Without, all see what this one
                does.
        """
        self.processes, self.gpus = processes, tuple(gpus)
        self._threads = threads
        self._gpu_of: dict[int, str | None] = {}
        self._waiting = ThreadPoolExecutor(processes)
        self._slots: dict[int, _Slot] = {}
        self._stopping = False

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *raised: object) -> None:
        if isinstance(raised[1], KeyboardInterrupt):
            self._stopping = True
            for slot in list(self._slots.values()):
                slot.kill()
        self._waiting.shutdown(cancel_futures=True)
        for slot in list(self._slots.values()):
            slot.executor.shutdown()

    def submit(self, name: str, spec: RunSpec, folder: Path) -> "Future[None]":
        """Run in the first process that is free."""
        return self._waiting.submit(self._run, name, spec, folder)

    def messages(self) -> list[Message]:
        """Return what the runs told since the last call."""
        return [message for slot in list(self._slots.values()) for message in slot.received()]

    def stop(self) -> None:
        """Ask every run to write its checkpoint and end."""
        self._stopping = True
        for slot in list(self._slots.values()):
            slot.stop.set()

    def _run(self, name: str, spec: RunSpec, folder: Path) -> None:
        """Wait, in one of the threads, for a run in that thread's process."""
        if self._stopping:
            return
        me = threading.get_ident()
        if me not in self._slots:
            self._slots[me] = _Slot(self._gpu(me))
        try:
            self._slots[me].executor.submit(_work, name, spec, folder, self._threads).result()
        except BrokenProcessPool as error:
            del self._slots[me]  # its channel may be broken too: the thread's next run gets a new process
            raise RuntimeError(f"the process of run {name} ended without a word; was it killed for memory?") from error

    def _gpu(self, thread: int) -> str | None:
        """Return the GPU of a thread's processes: the next in turn, and for a new process of its own the same."""
        with _starting:
            if thread not in self._gpu_of:
                self._gpu_of[thread] = self.gpus[len(self._gpu_of) % len(self.gpus)] if self.gpus else None
            return self._gpu_of[thread]


class _Slot:
    """One process, its messages, and the event that asks it to stop; it sees one GPU, or None: what this one sees."""

    def __init__(self, gpu: str | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.queue, self.stop = context.Queue(), context.Event()
        self.executor = ProcessPoolExecutor(1, context, _start_worker, (self.queue, self.stop))
        # It starts here and with this environment: later, something that it imports may have asked CUDA already.
        with _environment({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}):
            self._pid = self.executor.submit(os.getpid)

    def kill(self) -> None:
        """End the process at once; its run's last checkpoint stays."""
        with contextlib.suppress(OSError, BrokenProcessPool):
            os.kill(self._pid.result(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)

    def received(self) -> list[Message]:
        """Return the messages that have come."""
        found = []
        while True:
            try:
                found.append(self.queue.get_nowait())
            except queue.Empty:
                return found


_starting = threading.Lock()
"""Held while a process starts: the environment that it inherits is one for all threads."""


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables for the processes that start meanwhile."""
    with _starting:
        before = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value


_channel: tuple[Any, Any]
"""In a worker: the queue of its messages, and the event that asks it to stop."""
_running = threading.Lock()
"""In a worker: held while it has a run."""


def _start_worker(messages: Any, stop: Any) -> None:
    global _channel
    _channel = messages, stop
    messages.cancel_join_thread()  # progress that nobody reads any more keeps no process alive
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # which a terminal or a cluster sends to all: the parent passes it on
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
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


def _work(name: str, spec: RunSpec, folder: Path, threads: int) -> None:
    import torch

    messages, stop = _channel
    torch.set_num_threads(threads)
    parent = _parent()

    def tell(progress: Progress) -> None:
        messages.put(Message(name, progress.images, progress.reward))

    with _running:
        run(spec, folder, on_progress=tell, should_stop=lambda: stop.is_set() or not parent.is_alive())

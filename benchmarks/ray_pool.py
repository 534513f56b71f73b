"""Runs on a Ray cluster, one task a run; the same sweep as with local processes."""

import contextlib
import os
import socket
import time
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

from benchmarks.recorder import Progress
from benchmarks.runs import run
from benchmarks.settings import RunSpec
from benchmarks.sweep import Message

_STOP_POLL_SECONDS = 2.0
_CONNECT_SECONDS = 5.0


class RayPool:
    """One Ray task a run, with ``threads`` CPUs, and a GPU where its task's device is one.

    The runs' folders must lie on a file system that this machine and the workers share; a run whose folder does not
    appear here counts as failed. Runs end with a checkpoint when they are asked to; when this process is killed, Ray
    ends them, and the next sweep goes on from their latest checkpoints.
    """

    def __init__(self, address: str, threads: int) -> None:
        """Connect.

        Args:
            address: of the cluster's head, ``auto`` for the one that this machine belongs to, ``local`` for one that
                is started on this machine and ends with this process.
            threads: of torch, and CPUs, for each run.

        Raises:
            ValueError: Ray is not installed, or there is no cluster at the address.
        """
        _check_reachable(address)
        try:
            import ray
        except ImportError as error:
            raise ValueError(
                "--ray-address needs the package ray: pip install 'diffusion-denoise-gym[ray]'; without it runs go to "
                "local processes."
            ) from error
        self._ray: Any = ray  # whose types depend on its version
        self._threads = threads
        try:
            ray.init(address=address, log_to_driver=False, runtime_env={"env_vars": _environment(threads)})
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise _no_cluster(address, error) from error
        self._channel: Any = ray.remote(num_cpus=0)(_Channel).remote()
        self._futures: dict[str, Future[None]] = {}

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def submit(self, name: str, spec: RunSpec, folder: Path) -> "Future[None]":
        """Run on the first node with the resources."""
        gpus = 0 if spec.task.device == "cpu" else 1
        task = self._ray.remote(num_cpus=self._threads, num_gpus=gpus, max_retries=0)(_work)
        # The specification travels as JSON, so that a worker reads it with its own version of the package.
        reference = task.remote(name, spec.to_json(), str(folder.resolve()), self._threads, self._channel)
        self._futures[name] = _checked(reference.future(), folder)
        return self._futures[name]

    def messages(self) -> list[Message]:
        """Return what the runs told since the last call."""
        return self._ray.get(self._channel.take.remote())

    def stop(self) -> None:
        """Ask every run to write its checkpoint and end; those that have not begun can be cancelled."""
        begun = self._ray.get(self._channel.stop.remote())
        for name in begun & set(self._futures):
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._futures[name].set_running_or_notify_cancel()


class _Channel:
    """An actor that holds the latest message of each run, and whether they are asked to stop."""

    def __init__(self) -> None:
        self._latest: dict[str, Message] = {}
        self._begun: set[str] = set()
        self._stopping = False

    def begin(self, run: str) -> bool:
        """Note that a run begins; returns whether it should not."""
        if not self._stopping:
            self._begun.add(run)
        return self._stopping

    def tell(self, message: Message) -> bool:
        """Keep a run's message; returns whether it is asked to stop."""
        self._latest[message.run] = message
        return self._stopping

    def take(self) -> list[Message]:
        """Return the messages that have come since the last call."""
        found, self._latest = list(self._latest.values()), {}
        return found

    def stop(self) -> set[str]:
        """Answer every message from now on with the wish to stop; returns the runs that have begun."""
        self._stopping = True
        return self._begun


def _check_reachable(address: str) -> None:
    """Try the head's port first: Ray itself tries for minutes before it says that nobody is there."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> ValueError:
    return ValueError(f"no Ray cluster at {address!r}: {error}. Expected HOST:PORT of a running head, auto, or local.")


def _environment(threads: int) -> dict[str, str]:
    """Variables of the workers: this package where it is imported from, and no more threads than were asked for."""
    here = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def _checked(future: "Future[None]", folder: Path) -> "Future[None]":
    """Return a future that fails where the finished run's folder cannot be seen from here."""
    checked: Future[None] = Future()

    def settle(done: "Future[None]") -> None:
        error = done.exception()
        if error is None and not (folder / "run.json").is_file():
            error = RuntimeError(
                f"the run ended, but {str(folder)!r} does not exist on this machine; give --folder a place on a file "
                "system that all nodes share."
            )
        with contextlib.suppress(InvalidStateError):  # it was cancelled before it began
            checked.set_exception(error) if error else checked.set_result(None)

    future.add_done_callback(settle)
    return checked


def _work(name: str, spec: dict[str, Any], folder: str, threads: int, channel: Any) -> None:
    """In a Ray worker: run, telling progress and hearing the wish to stop at most every two seconds."""
    import ray
    import torch

    if ray.get(channel.begin.remote(name)):
        return
    torch.set_num_threads(threads)
    asked, told = False, 0.0

    def tell(progress: Progress) -> None:
        nonlocal asked, told
        if time.monotonic() - told >= _STOP_POLL_SECONDS:
            asked = ray.get(channel.tell.remote(Message(name, progress.images, progress.reward)))
            told = time.monotonic()

    run(RunSpec.from_json(spec), Path(folder), on_progress=tell, should_stop=lambda: asked)

"""Runs on a Ray cluster, one task per run; the same sweep as with local processes."""

import contextlib
import os
import time
from collections.abc import Collection, Sequence
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

from algorithms.own import load_algorithms, loaded_files
from benchmarks.runs.folder import holds_run
from benchmarks.runs.recorder import Progress
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec
from benchmarks.sweeps.ray_checks import check_folder, check_reachable, check_resources, no_cluster, resources
from benchmarks.sweeps.sweep import Message

_STOP_POLL_SECONDS = 2.0


class RayPool:
    """One Ray task per run, with ``threads`` CPUs, and a GPU if its device is one.

    The runs' folders must be on a file system that this machine and the workers share. Runs that are asked to stop end
    with a checkpoint; if this process is killed, Ray ends them, and the next sweep resumes from their latest ones. A
    lost node's runs count as failed.
    """

    def __init__(self, address: str, threads: int, folder: Path, specs: Collection[RunSpec]) -> None:
        """Connect, and check that the cluster can make the runs.

        Args:
            address: of the cluster's head; ``auto`` for the one that this machine belongs to; ``local`` for one that
                starts on this machine and ends with this process.
            threads: of torch, and CPUs, for each run.
            folder: parent of the runs' folders, made if it is missing.
            specs: the runs.

        Raises:
            ValueError: Ray is not installed, there is no cluster at the address, or none of its nodes can make a run.
        """
        check_reachable(address)
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
            raise no_cluster(address, error) from error
        try:
            check_folder(ray, folder, check_resources(specs, threads, ray.nodes()))
        except BaseException:
            ray.shutdown()
            raise
        self._channel: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Channel).remote()
        self._futures: dict[str, Future[None]] = {}
        self._begun: set[str] = set()
        self._stopping = False

    def __enter__(self) -> "RayPool":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def submit(self, name: str, spec: RunSpec, folder: Path) -> "Future[None]":
        """Run on the first node with the resources."""
        asked = resources(spec, self._threads)
        task = self._ray.remote(num_cpus=asked["CPU"], num_gpus=asked["GPU"], max_retries=0)(_work)
        # The specification is sent as JSON, so that a worker reads it with its own version of the package.
        own = [str(file) for file in loaded_files()]
        reference = task.remote(name, spec.to_json(), str(folder.resolve()), self._threads, self._channel, own)
        self._futures[name] = _checked(reference.future(), folder)
        return self._futures[name]

    def messages(self) -> list[Message]:
        """Return the runs' messages since the last call; none if the actor that held them was lost."""
        try:
            messages, begun = self._ray.get(self._channel.take.remote(self._stopping))
        except self._ray.exceptions.RayActorError:  # another begins, on another node
            return []
        self._begun |= begun
        return messages

    def stop(self) -> None:
        """Ask every run to write its checkpoint and end; those that have not begun can be cancelled."""
        self._stopping = True
        self.messages()
        for name in self._begun & set(self._futures):
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._futures[name].set_running_or_notify_cancel()


class _Channel:
    """An actor with the latest message of each run, and whether they are to stop; Ray restarts a lost one, empty."""

    def __init__(self) -> None:
        self._latest: dict[str, Message] = {}
        self._begun: set[str] = set()
        self._stopping = False

    def begin(self, run: str) -> bool:
        """Note that a run begins; return whether it should not."""
        if not self._stopping:
            self._begun.add(run)
        return self._stopping

    def tell(self, message: Message) -> bool:
        """Keep a run's message; return whether it is to stop."""
        self._begun.add(message.run)  # also a run that began before this actor replaced a lost one
        self._latest[message.run] = message
        return self._stopping

    def take(self, stopping: bool) -> tuple[list[Message], set[str]]:
        """Return the messages since the last call, and the runs that have begun; with ``stopping`` all are to stop."""
        self._stopping |= stopping
        found, self._latest = list(self._latest.values()), {}
        return found, self._begun


def _environment(threads: int) -> dict[str, str]:
    """Return the workers' variables: this package from where it is imported here, and the number of threads."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(part for part in (here, os.environ.get("PYTHONPATH", "")) if part)
    return {"PYTHONPATH": path, "OMP_NUM_THREADS": str(threads)}


def _checked(future: "Future[None]", folder: Path) -> "Future[None]":
    """Return a future that fails if the finished run's folder cannot be seen from here."""
    checked: Future[None] = Future()

    def settle(done: "Future[None]") -> None:
        error = done.exception()
        if error is None and not holds_run(folder):
            error = RuntimeError(
                f"the run ended, but {str(folder)!r} does not exist on this machine; give --folder a place on a file "
                "system that all nodes share."
            )
        with contextlib.suppress(InvalidStateError):  # it was cancelled before it began
            checked.set_exception(error) if error else checked.set_result(None)

    future.add_done_callback(settle)
    return checked


def _work(name: str, spec: dict[str, Any], folder: str, threads: int, channel: Any, own: Sequence[str]) -> None:
    """Run in a Ray worker; report progress, and ask whether to stop, at most every two seconds.

    ``own``: files whose algorithms the run may have, on a file system that all nodes share.
    """
    import ray
    import torch

    is_to_stop, reported = False, 0.0

    def hear(answer: Any) -> None:
        nonlocal is_to_stop
        with contextlib.suppress(ray.exceptions.RayActorError):  # a lost channel is no reason to lose the run
            is_to_stop = ray.get(answer)

    def report(progress: Progress) -> None:
        nonlocal reported
        if time.monotonic() - reported >= _STOP_POLL_SECONDS:
            hear(channel.tell.remote(Message(name, progress.images, progress.reward)))
            reported = time.monotonic()

    hear(channel.begin.remote(name))
    if not is_to_stop:
        torch.set_num_threads(threads)
        for file in own:
            load_algorithms(Path(file))
        run(RunSpec.from_json(spec), Path(folder), on_progress=report, should_stop=lambda: is_to_stop)

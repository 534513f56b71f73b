"""Runs on a Ray cluster, one task a run; the same sweep as with local processes."""

import contextlib
import os
import time
from collections.abc import Collection
from concurrent.futures import Future, InvalidStateError
from pathlib import Path
from typing import Any

from benchmarks.runs.recorder import Progress
from benchmarks.runs.run import run
from benchmarks.runs.spec import RunSpec
from benchmarks.sweeps.ray_checks import check_folder, check_reachable, check_resources, no_cluster, resources
from benchmarks.sweeps.sweep import Message

_STOP_POLL_SECONDS = 2.0


class RayPool:
    """One Ray task a run, with ``threads`` CPUs, and a GPU where its task's device is one.

    The runs' folders must lie on a file system that this machine and the workers share. Runs end with a checkpoint when
    they are asked to; when this process is killed, Ray ends them, and the next sweep goes on from their latest
    checkpoints. A node that is lost takes its own runs with it, which count as failed; where it held the runs' progress
    messages, those are lost.
    """

    def __init__(self, address: str, threads: int, folder: Path, specs: Collection[RunSpec]) -> None:
        """Connect, and check that the runs can be made there.

        Args:
            address: of the cluster's head, ``auto`` for the one that this machine belongs to, ``local`` for one that
                is started on this machine and ends with this process.
            threads: of torch, and CPUs, for each run.
            folder: parent of the runs' folders; it is made where it is not there.
            specs: the runs.

        Raises:
            ValueError: Ray is not installed, there is no cluster at the address, none of its nodes has what a run asks
                for, or one that has cannot begin it or does not see the folder.
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
        # The specification travels as JSON, so that a worker reads it with its own version of the package.
        reference = task.remote(name, spec.to_json(), str(folder.resolve()), self._threads, self._channel)
        self._futures[name] = _checked(reference.future(), folder)
        return self._futures[name]

    def messages(self) -> list[Message]:
        """Return what the runs told since the last call; nothing where the actor that held it was lost."""
        try:
            told, begun = self._ray.get(self._channel.take.remote(self._stopping))
        except self._ray.exceptions.RayActorError:  # another begins, on another node
            return []
        self._begun |= begun
        return told

    def stop(self) -> None:
        """Ask every run to write its checkpoint and end; those that have not begun can be cancelled."""
        self._stopping = True
        with contextlib.suppress(self._ray.exceptions.RayActorError):  # then the next that begins is told
            self._begun |= self._ray.get(self._channel.stop.remote())
        for name in self._begun & set(self._futures):
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
        self._begun.add(message.run)  # also of one that began before this actor, in the place of one that was lost
        self._latest[message.run] = message
        return self._stopping

    def take(self, stopping: bool) -> tuple[list[Message], set[str]]:
        """Return the messages that have come since the last call, and the runs that have begun.

        Args:
            stopping: whether all are to stop, which an actor in the place of a lost one has not heard.
        """
        self._stopping |= stopping
        found, self._latest = list(self._latest.values()), {}
        return found, self._begun

    def stop(self) -> set[str]:
        """Answer every message from now on with the wish to stop; returns the runs that have begun."""
        self._stopping = True
        return self._begun


def _environment(threads: int) -> dict[str, str]:
    """Variables of the workers: this package where it is imported from, and no more threads than were asked for."""
    here = str(Path(__file__).resolve().parents[2])
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

    asked, told = False, 0.0

    def hear(answer: Any) -> None:
        nonlocal asked
        with contextlib.suppress(ray.exceptions.RayActorError):  # the channel was lost: no reason to lose the run
            asked = ray.get(answer)

    hear(channel.begin.remote(name))
    if asked:
        return
    torch.set_num_threads(threads)

    def tell(progress: Progress) -> None:
        nonlocal told
        if time.monotonic() - told >= _STOP_POLL_SECONDS:
            hear(channel.tell.remote(Message(name, progress.images, progress.reward)))
            told = time.monotonic()

    run(RunSpec.from_json(spec), Path(folder), on_progress=tell, should_stop=lambda: asked)

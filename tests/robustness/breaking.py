"""Breaks training runs in every way that time and disks know, resumes them, and compares with runs left in peace.

    python tests/robustness/breaking.py kills --count 30      # SIGKILL at random moments
    python tests/robustness/breaking.py calls                 # SIGKILL before each call that touches the disk
    python tests/robustness/breaking.py full                  # no space left, at each of these calls and writes in turn
    python tests/robustness/breaking.py mount                 # a real file system of 256 KiB (needs root)

Each prints a line a run, and at the end what it counted, as JSON. Runs are forked from this process, which has
imported everything and trained nothing, so that one costs a second. ``--every N`` tries each Nth place alone.
"""

import argparse
import ctypes
import errno
import io
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import gymnasium
import torch

import diffusion_gym
from algorithms import ALGORITHMS, EvaluationConfig
from algorithms.checkpoints.file import read_checkpoint
from algorithms.checkpoints.published import UNFINISHED
from algorithms.config.base import override
from benchmarks.runs.folder import WriteError, log_lines
from benchmarks.runs.run import run
from benchmarks.runs.safeguards import Safeguards
from benchmarks.runs.spec import RunSpec, TaskConfig, Writing

ITERATIONS, IMAGES = 6, 16
#: Exit statuses of a forked run.
FINISHED, TOLD, FAILED = 0, 3, 1
WALL_CLOCK = {"clock", "cost/seconds", "seconds"}


def spec_of(algorithm: str) -> RunSpec:
    """A run with all that has a state: a normalised reward, statistics, averages, evaluations, metrics, a best."""
    changes: dict[str, Any] = {"images_per_iteration": IMAGES, "num_envs": 8, "images_per_prompt": 8, "chunk_size": 8}
    if algorithm.endswith("rwr"):
        changes |= {"updates_per_iteration": 2, "batch_size": 16}
    evaluation = EvaluationConfig(images=8, every=2)
    changes |= {"evaluation": evaluation, "trainable": "full", "ema_decay": 0.9}
    config = override(ALGORITHMS[algorithm].config, **changes)
    reward = "exact-linear:normalise,exact-quadratic:0.5"
    task = TaskConfig("exact-mixture", reward, num_inference_steps=4, metrics=("diversity",))
    return RunSpec(algorithm, config, task, ITERATIONS * IMAGES, Safeguards(keep_best="reward"))


def warm_up() -> None:
    """Load here what a run imports late, so that a forked one does not."""
    task = spec_of("ddpo-is").task
    gymnasium.make(diffusion_gym.ENV_ID, model=task.model, reward=task.reward)


def fork(spec: RunSpec, folder: Path, prepare: Callable[[], None] = lambda: None, said: Path | None = None) -> int:
    """Train in a process of its own, with a checkpoint each iteration and two kept; return its id.

    Args:
        spec: what to run.
        folder: where.
        prepare: called in the new process first.
        said: where the message of a full disk goes.
    """
    pid = os.fork()
    if pid:
        return pid
    status = FAILED
    try:
        torch.set_num_threads(1)
        prepare()
        run(spec, folder, Writing(checkpoint_every=1, keep_checkpoints=2))
        status = FINISHED
    except WriteError as error:
        status = TOLD
        if said is not None:
            said.write_text(str(error), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def status_of(pid: int) -> int:
    """Wait for a process; its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_peace(spec: RunSpec, folder: Path) -> None:
    """Train to the end, in a process of its own."""
    assert status_of(fork(spec, folder)) == FINISHED, f"the run in {folder} failed"


def contents(folder: Path) -> dict[str, Any]:
    """All that a finished run's folder holds, but for the wall clock and what names the machine."""
    checkpoints = {name: read_checkpoint(folder / name) for name in ("checkpoint.zip", "best.zip")}
    said = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {
        "states": {name: _timeless(checkpoint.state) for name, checkpoint in checkpoints.items()},
        "tensors": {
            (file, name): value.numpy().tobytes()
            for file, checkpoint in checkpoints.items()
            for name, value in checkpoint.tensors.items()
        },
        "metrics": _timeless(log_lines(folder, "metrics.jsonl")),
        "evaluations": _timeless(log_lines(folder, "evaluations.jsonl")),
        "complete": said["complete"],
        "best": said["best"],
        "kept": [file.name for file in sorted((folder / "checkpoints").iterdir())],
    }
    for file in [*folder.glob("images/*"), *folder.glob("pipeline/*")]:
        found[str(file.relative_to(folder))] = file.read_bytes()
    for name in ("metrics", "evaluations"):
        steps = [
            (line.get("time/iterations", line.get("iteration")), "eval/reward_mean" in line) for line in found[name]
        ]
        assert len(set(steps)) == len(steps), f"{name}: a step is logged twice: {steps}"
    return found


def _timeless(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _timeless(value) for key, value in data.items() if key not in WALL_CLOCK}
    return [_timeless(value) for value in data] if isinstance(data, list) else data


def compare(folder: Path, expected: dict[str, Any]) -> None:
    """Fail unless a resumed run's folder equals that of one never stopped, and nothing unfinished lies in it."""
    found = contents(folder)
    different = [name for name in expected.keys() | found.keys() if found.get(name) != expected.get(name)]
    assert not different, f"{folder}: {different} differ from a run that was never stopped"
    left = unfinished(folder)
    assert not left, f"{folder}: {left} were left behind"


def unfinished(folder: Path) -> list[str]:
    """Temporary files of writes that never ended."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob(f"{UNFINISHED}*"))


def iteration_of(folder: Path) -> int | None:
    """The checkpoint's iteration, None where there is none yet; fails where it cannot be loaded."""
    file = folder / "checkpoint.zip"
    return int(read_checkpoint(file).state["iteration"]) if file.exists() else None


# -- kills -------------------------------------------------------------------------------------------------------------


def kills(root: Path, count: int, seed: int, algorithms: list[str]) -> dict[str, Any]:
    """Kill runs at random moments, ``count`` times in all, in turn over the algorithms."""
    rng, survived, compared, left, torn = random.Random(seed), 0, 0, 0, 0
    expected, seconds = {}, {}
    for name in algorithms:
        started = time.monotonic()
        in_peace(spec_of(name), root / f"whole-{name}")
        seconds[name] = time.monotonic() - started
        expected[name] = contents(root / f"whole-{name}")
    while survived < count:
        name = algorithms[compared % len(algorithms)]
        folder = root / f"killed-{compared}"
        while True:
            pid = fork(spec_of(name), folder)
            time.sleep(rng.uniform(0, 0.7) * seconds[name])
            os.kill(pid, signal.SIGKILL)
            status = status_of(pid)
            if status == FINISHED:
                break
            assert status == -signal.SIGKILL, f"a resumed run failed in {folder}"
            survived += 1
            left += bool(unfinished(folder)) if folder.exists() else 0
            log = folder / "metrics.jsonl"
            torn += log.exists() and not log.read_bytes().endswith(b"\n") and log.stat().st_size > 0
            print(f"kill {survived} of {name}, checkpoint of iteration {iteration_of(folder)}", flush=True)
        compare(folder, expected[name])
        compared += 1
    return {"survived": survived, "runs_compared": compared, "left_unfinished_files": left, "tore_a_line": torn}


# -- calls that touch the disk -----------------------------------------------------------------------------------------

_OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR
_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.link", "os.chmod", "os.truncate"}


class Calls:
    """Counts a process's calls that change files in a folder, and does something before (of a write: in) the nth."""

    def __init__(self, folder: Path, writes: bool, at: int, act: Callable[[], None]) -> None:
        """Watch from now on; ``writes``: count each write too."""
        self.count, self.at, self.act, self.root = 0, at, act, str(folder)
        sys.addaudithook(self._hear)
        ordinary = os.fsync

        def fsync(handle: int) -> None:
            self.call()
            ordinary(handle)

        os.fsync = fsync
        if writes:
            self._watch_writes()

    def call(self) -> None:
        """Count one."""
        self.count += 1
        if self.count - 1 == self.at:
            self.act()

    def _hear(self, event: str, given: tuple[Any, ...]) -> None:
        changes = event in _EVENTS or (event == "open" and isinstance(given[2], int) and given[2] & _OPENED_TO_WRITE)
        if changes and any(isinstance(arg, str | os.PathLike) and str(arg).startswith(self.root) for arg in given):
            self.call()

    def _watch_writes(self) -> None:
        calls, ordinary = self, Path.open

        class Counted(io.FileIO):
            def write(self, content: Any) -> int:
                before = calls.count
                try:
                    calls.call()
                except OSError:  # a disk fills in the middle of a write
                    super().write(bytes(content)[: len(content) // 2])
                    raise
                assert calls.count == before + 1
                return super().write(content)

        def opened(path: Path, mode: str = "r", buffering: int = -1, *args: Any, **kwargs: Any) -> Any:
            return (
                Counted(path, mode.replace("b", ""))
                if buffering == 0
                else ordinary(path, mode, buffering, *args, **kwargs)
            )

        Path.open = opened  # type: ignore[method-assign,assignment]
        os.fdopen = lambda handle, mode: io.BufferedWriter(Counted(handle, mode.replace("b", "")))  # type: ignore[assignment]


def count_calls(spec: RunSpec, folder: Path, writes: bool) -> int:
    """Number of a whole run's calls that change files."""
    kept: list[Calls] = []
    number = folder.with_suffix(".count")
    pid = os.fork()
    if not pid:
        try:
            torch.set_num_threads(1)
            kept.append(Calls(folder, writes, -1, lambda: None))
            run(spec, folder, Writing(checkpoint_every=1, keep_checkpoints=2))
            number.write_text(str(kept[0].count))
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return int(number.read_text())


def calls(root: Path, every: int, algorithm: str) -> dict[str, Any]:
    """Kill a run before each call that changes a file, once each."""
    spec = spec_of(algorithm)
    total = count_calls(spec, root / "whole", writes=False)
    expected = contents(root / "whole")
    places = range(0, total, every)
    for place in places:
        folder = root / f"call-{place}"

        def prepare(folder: Path = folder, place: int = place) -> None:
            Calls(folder, False, place, lambda: os.kill(os.getpid(), signal.SIGKILL))

        assert status_of(fork(spec, folder, prepare)) == -signal.SIGKILL
        print(f"killed before call {place} of {total}, checkpoint of iteration {iteration_of(folder)}", flush=True)
        in_peace(spec, folder)
        compare(folder, expected)
    return {"calls": total, "survived": len(places)}


# -- a full disk -------------------------------------------------------------------------------------------------------


def no_space() -> None:
    """What the system says when the disk is full."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full(root: Path, every: int, algorithm: str) -> dict[str, Any]:
    """Let each call that changes a file, and each write, find the disk full, once each.

    Harmless are calls that need not succeed: making a folder that is there, taking away what an update replaced.
    """
    spec, told, harmless = spec_of(algorithm), 0, 0
    total = count_calls(spec, root / "whole", writes=True)
    expected = contents(root / "whole")
    places = range(0, total, every)
    for place in places:
        folder, said = root / f"full-{place}", root / f"full-{place}.txt"

        def prepare(folder: Path = folder, place: int = place) -> None:
            Calls(folder, True, place, no_space)

        status = status_of(fork(spec, folder, prepare, said))
        assert status in (TOLD, FINISHED), f"call or write {place}: no word of the full disk"
        if status == TOLD:
            told += check_told(folder, said.read_text(encoding="utf-8"))
        harmless += status == FINISHED
        in_peace(spec, folder)
        compare(folder, expected)
    return {
        "calls_and_writes": total,
        "failed": len(places),
        "harmless": harmless,
        "with_a_checkpoint_before": told,
    }


def check_told(folder: Path, message: str) -> bool:
    """Whether there was a checkpoint; fails unless it loads, and the message says which it is and what to do."""
    iteration = iteration_of(folder)
    print(f"{folder.name}: checkpoint of iteration {iteration}", flush=True)
    assert message.startswith("the disk is full: "), message
    assert "Make space; the same command then resumes there." in message, message
    expected = "It has no checkpoint yet" if iteration is None else f"checkpoint, of iteration {iteration}, is whole"
    assert expected in message, message
    return iteration is not None


def mount(root: Path, count: int, algorithm: str) -> dict[str, Any]:
    """Train on a file system of 256 KiB that is nearly full: with 4 KiB to spare, and in steps up to what is enough."""
    spec, told, failed, tried = spec_of(algorithm), 0, 0, 0
    in_peace(spec, root / "whole")
    expected = contents(root / "whole")
    small = root / "small"
    small.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(small).encode(), b"tmpfs", 0, b"size=256k"):
        return {"skipped": f"this user may not mount a tmpfs ({os.strerror(ctypes.get_errno())})"}
    try:
        for kilobytes in range(4, 68, max(4, 64 // count)):
            folder, said = small / f"run-{kilobytes}", root / f"mount-{kilobytes}.txt"
            (small / "ballast").write_bytes(bytes(256 * 1024 - kilobytes * 1024))
            status = status_of(fork(spec, folder, said=said))
            (small / "ballast").unlink()
            assert status in (FINISHED, TOLD), f"{kilobytes} KiB to spare: failed without a word of the full disk"
            tried += 1
            if status == TOLD:
                failed += 1
                told += check_told(folder, said.read_text(encoding="utf-8"))
                in_peace(spec, folder)
            compare(folder, expected)
            for file in sorted(folder.rglob("*"), reverse=True):
                file.rmdir() if file.is_dir() else file.unlink()
            folder.rmdir()
    finally:
        libc.umount2(str(small).encode(), 2)
    return {"sizes": tried, "failed": failed, "with_a_checkpoint_before": told}


def main() -> None:
    """Run what the command line names, and print what it counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["kills", "calls", "full", "mount"])
    parser.add_argument("--count", type=int, default=30, help="kills; sizes of the small file system")
    parser.add_argument("--every", type=int, default=1, help="of calls and writes, try each so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS))
    given = parser.parse_args()
    warm_up()
    counted = {}
    for what in given.what:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            if what == "kills":
                counted[what] = kills(root, given.count, given.seed, given.algorithms)
            elif what == "mount":
                counted[what] = mount(root, given.count, given.algorithms[0])
            else:
                counted[what] = {"calls": calls, "full": full}[what](root, given.every, given.algorithms[0])
    print(json.dumps(counted))


if __name__ == "__main__":
    main()

"""What a plan takes in memory and hours: one run of each kind is built and timed for seconds, none is trained."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

import psutil
import torch

from benchmarks.runs.forecast import Speed, Workload, probe
from benchmarks.runs.memory import estimate_memory, free_bytes, in_words
from benchmarks.runs.run import make_algorithm
from benchmarks.runs.spec import RunSpec
from benchmarks.sweeps.dry_run import forwards_of
from benchmarks.terminal import duration
from diffusion_gym.choices import EMBEDDED, EXACT_MODELS
from diffusion_gym.models import check_device
from diffusion_gym.paths import user_path

#: Once so many seconds have passed, a kind whose model was measured with another reward is taken to be as fast.
_SECONDS = 6
#: Plans of fewer forward passes than this are not probed before they begin: loading a model would take as long.
_LEAST_FORWARDS = 100_000

#: Model, what is trained of it, and reward: what a run's speed depends on most.
_Kind = tuple[str, str, str]


@dataclass(frozen=True)
class _Measured:
    speed: Speed
    memory: int
    """Bytes on the device; on the CPU with Python and its libraries."""
    device: torch.device


def is_probed_first(plan: Mapping[str, RunSpec], known: Mapping[str, Workload]) -> bool:
    """Return whether runs that are about to begin are worth a probe: not short ones, and none on a GPU.

    ``known``: of :func:`~benchmarks.sweeps.dry_run.workloads`. On a GPU this process would keep memory while they run,
    which a dry run has to itself.
    """
    if any(_device(spec) != "cpu" for spec in plan.values()):
        return False
    counted = (forwards_of(known[name.rpartition("/")[0]], spec) or 0 for name, spec in plan.items())
    return sum(counted) >= _LEAST_FORWARDS


def probed(plan: Mapping[str, RunSpec], works: Mapping[str, Workload], processes: int, threads: int) -> str:
    """Return two lines: the memory of the largest run, and the time of all runs, from a probe of seconds.

    Args:
        plan: TASK/VARIANT/seed-N -> run.
        works: TASK/VARIANT -> how much each of its runs does.
        processes: how many run at a time.
        threads: torch's, of each.
    """
    started, before = time.perf_counter(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kinds = _measure_all(plan, started)
    finally:
        torch.set_num_threads(before)
    unknown = sorted({kind[0] for kind, found in kinds.items() if found is None})
    if unknown:
        return (
            f"memory and time: not estimated, as no run of {', '.join(unknown)} can be tried here: the model is not on "
            "this machine, or the run fails"
        )
    known = {kind: found for kind, found in kinds.items() if found is not None}
    took = time.perf_counter() - started
    return f"{_memory(list(known.values()), processes)}\n{_time(plan, works, known, processes, took)}"


def _measure_all(plan: Mapping[str, RunSpec], started: float) -> dict[_Kind, _Measured | None]:
    """Return what each kind of run was measured to take; None where its model is not here, or fails."""
    firsts: dict[_Kind, RunSpec] = {}
    for spec in plan.values():
        firsts.setdefault(_kind(spec), spec)
    models: dict[tuple[str, str], _Kind] = {}
    for kind in firsts:
        models.setdefault(kind[:2], kind)
    found: dict[_Kind, _Measured | None] = {}
    for kind in sorted(firsts, key=lambda kind: models[kind[:2]] != kind):  # each model once before its other rewards
        first = models[kind[:2]]
        if first in found and (found[first] is None or time.perf_counter() - started > _SECONDS):
            found[kind] = found[first]
        else:
            found[kind] = _measure(firsts[kind])
    return found


def _measure(spec: RunSpec) -> _Measured | None:
    if spec.task.model not in (*EMBEDDED, *EXACT_MODELS) and not user_path(spec.task.model).exists():
        return None
    python = psutil.Process().memory_info().rss
    try:
        algorithm = make_algorithm(spec)
        memory, speed = estimate_memory(algorithm), probe(algorithm, spec)
    except Exception:  # an algorithm of the user's may fail in any way: its run says how
        return None
    return _Measured(speed, memory.total + (python if memory.device.type == "cpu" else 0), memory.device)


def _memory(measured: list[_Measured], processes: int) -> str:
    most = max(measured, key=lambda one: one.memory)
    free, cpu = free_bytes(most.device), most.device.type == "cpu"
    return (
        f"memory on {most.device}, estimated: {in_words(most.memory)} for the largest run"
        f"{', with Python and its libraries' if cpu else ''}; {in_words(processes * most.memory)} for {processes} at a "
        f"time, of {in_words(free)} free{'' if cpu else ' on that device'}"
    )


def _time(
    plan: Mapping[str, RunSpec],
    works: Mapping[str, Workload],
    known: Mapping[_Kind, _Measured],
    processes: int,
    took: float,
) -> str:
    each = {name: _seconds(works[name.rpartition("/")[0]], known[_kind(spec)].speed) for name, spec in plan.items()}
    counted = [seconds for seconds in each.values() if seconds is not None]
    if not counted:
        return "time: not estimated, as the forward passes are not counted"
    at_a_time = min(processes, len(counted))
    total = max(sum(counted) / at_a_time, *counted)  # the longest run is in one process
    without = sorted({spec.task.reward for spec in plan.values() if known[_kind(spec)].speed.reward is None})
    left_out = len(each) - len(counted)
    return (
        f"time, from a probe of {duration(took)}: about {duration(total)} in passes, decoding and rewards, {at_a_time} "
        "at a time"
        + (f"; {left_out} of {len(each)} runs are left out, as their passes are not counted" if left_out else "")
        + (f"; without the time of the rewards {', '.join(without)}, which are not called before" if without else "")
    )


def _seconds(work: Workload, speed: Speed) -> float | None:
    parts = speed.seconds(work)
    return None if parts is None else sum(parts.values())


def _kind(spec: RunSpec) -> _Kind:
    return spec.task.model, spec.config.policy.trainable, spec.task.reward


def _device(spec: RunSpec) -> str:
    return check_device("auto").type if spec.task.device == "auto" else spec.task.device

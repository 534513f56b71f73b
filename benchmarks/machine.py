"""The cores, memory and GPUs that this process may use, within the limits of a scheduler or a container.

The limits are those of this process's control group and of every group around it, versions 1 and 2.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import torch

#: The system's files; tests have some of their own.
_ROOT = Path("/")


def available_cores(root: Path = _ROOT) -> int:
    """Return the number of processor cores that this process may use: its affinity, within its group's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def available_memory(root: Path = _ROOT) -> int:
    """Return the free bytes of main memory: the system's, within what the control group has left."""
    return max(0, min([psutil.virtual_memory().available, *_memory_left(root)]))


def available_gpus(environment: Mapping[str, str] = os.environ, count: int | None = None) -> tuple[str, ...]:
    """Return CUDA_VISIBLE_DEVICES' name of each GPU that this process sees; ``count``: of them, None asks torch."""
    count = torch.cuda.device_count() if count is None else count
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return tuple(str(index) for index in range(count))
    names = [name.strip() for name in environment["CUDA_VISIBLE_DEVICES"].split(",")]
    if count and names[0].startswith("MIG-"):  # of which CUDA shows each process one alone
        return tuple(names)
    return tuple(names[:count])  # CUDA shows the entries before the first that is none of its devices


def _quotas(root: Path) -> Iterator[float]:
    """Yield the cores' worth of time of each group that limits it."""
    for folder in _groups(root, ""):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if quota.isdigit():
            yield int(quota) / int(period)
    for folder in _groups(root, "cpu"):
        quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit():  # -1: none
            yield int(quota) / int(period)


def _memory_left(root: Path) -> Iterator[int]:
    """Yield the bytes that each group with a limit has left; its cache of files counts as free."""
    versions = (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for controller, limit_file, usage_file, cache in versions:
        for folder in _groups(root, controller):
            limit, usage = _text(folder / limit_file), _text(folder / usage_file)
            if limit.isdigit() and usage.isdigit():
                lines = [line.partition(" ") for line in _text(folder / "memory.stat").splitlines()]
                yield int(limit) - int(usage) + sum(int(value) for name, _, value in lines if name == cache)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of those around it; ``controller`` "" is version 2, with one tree.

    In a container the kernel may name the group by its path outside; then only the top of the tree exists.
    """
    top = root / "sys/fs/cgroup" / controller
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            group = top / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(top))


def _text(file: Path) -> str:
    """Return a file's text; "" if it cannot be read."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""

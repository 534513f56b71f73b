"""Which number of rows per forward pass is fastest here: a few passes of the denoiser, which change nothing."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from algorithms import DDPOConfig, DiffusionAlgorithm
from algorithms.policy import DenoisingPolicy
from algorithms.within_memory import is_out_of_memory
from benchmarks.memory import MemoryEstimate, blank_rows, free_bytes
from benchmarks.meters import synchronize

#: Another size is worth a line where a row takes so many times as long at the present one.
WORTH = 1.1
_PASSES = 3  # the first of them warms up and does not count
_SHARE = 50  # of a run's rows, one is the most that the passes may be


def largest_useful(algorithm: DiffusionAlgorithm[Any]) -> int:
    """Return the number of rows that a chunk can be filled with: what an update has of one step, or is denoised."""
    config = algorithm.config
    rows = config.num_envs // algorithm.ranks.size
    if isinstance(config, DDPOConfig):
        rows = min(rows, config.images_per_iteration // config.updates_per_iteration // algorithm.ranks.size)
    return max(1, rows)


def sizes_beside(size: int, most: int, factor: int = 2) -> list[int]:
    """Return a size and those around it by halves and doubles, ``factor`` times less to more; none above ``most``."""
    found = {size, min(size, most)}
    while factor > 1:
        found |= {max(1, size // factor), min(size * factor, most)}
        factor //= 2
    return sorted(each for each in found if each <= max(size, most))


def time_chunks(algorithm: DiffusionAlgorithm[Any], estimate: MemoryEstimate, rows_left: int) -> dict[int, float]:
    """Return chunk size -> seconds per row that is sampled and trained on: at the present size, half and twice it.

    Empty where several ranks share the work, and where the passes would be more than 2 % of the rows that are left.
    Left out is a size for which memory does not suffice. No weight, gradient or random state is changed.
    """
    here, most = algorithm.policy.chunk_size, largest_useful(algorithm)
    sizes = sizes_beside(here, most)
    if algorithm.ranks.size > 1 or len(sizes) < 2 or sum(sizes) * _PASSES * _SHARE > rows_left:
        return {}
    seconds: dict[int, float] = {}
    for size in sizes:
        if size > here and estimate.total + estimate.working > free_bytes(algorithm.policy.model.device):
            continue
        try:
            seconds[size] = min(_pass(algorithm.policy, size) for _ in range(_PASSES)) / min(size, most)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # larger chunks than the run's leave more than it needs
    return seconds


def faster_size(seconds: Mapping[int, float], here: int) -> int | None:
    """Return the size with the least seconds per row, if the present one takes at least :data:`WORTH` times as long."""
    best = min(seconds, key=lambda size: seconds[size], default=here)
    return best if here in seconds and seconds[here] >= WORTH * seconds[best] else None


def advice(seconds: Mapping[int, float], here: int) -> str | None:
    """Return what to say of a faster size, if there is one."""
    best = faster_size(seconds, here)
    if best is None:
        return None
    before, after, gain = 1e3 * seconds[here], 1e3 * seconds[best], seconds[here] / seconds[best] - 1
    return (
        f"chunks of {best} rows are {gain:.0%} faster here than chunks of {here}: sampling and training a row takes "
        f"{after:.3g} ms, not {before:.3g}. Start with --policy.chunk-size {best} to have them."
    )


def _pass(policy: DenoisingPolicy, size: int) -> float:
    """Return the seconds of a forward pass, and of a forward and backward pass, of one chunk."""
    rows, device = blank_rows(policy, size), policy.model.device
    trained = list(policy.trainable_parameters().values())
    synchronize(device)
    started = time.perf_counter()
    with torch.no_grad():
        policy.distribution(rows)
    with torch.enable_grad():
        mean = policy.distribution(rows).mean
        torch.autograd.grad(mean.sum(), trained, allow_unused=True)  # not backward(), which would keep them
    synchronize(device)
    return time.perf_counter() - started

"""Which number of rows per forward pass is fastest here, found with a few passes that change nothing."""

from collections.abc import Mapping
from typing import Any

import torch

from algorithms import DDPOConfig, DiffusionAlgorithm
from algorithms.memory import is_out_of_memory
from algorithms.policy import DenoisingPolicy
from benchmarks.runs.clock import Seconds
from benchmarks.runs.memory import MemoryEstimate, free_bytes

#: Another size is recommended if it is so many times as fast.
WORTH = 1.1
_PASSES = 3  # the first of them warms up and does not count
_SHARE = 50  # the passes take at most one in so many of the run's rows


def largest_useful(algorithm: DiffusionAlgorithm[Any]) -> int:
    """Return the most rows that a chunk can be filled with: those of one step in an update, or denoised together."""
    config = algorithm.config
    rows = config.num_envs // algorithm.ranks.size
    if isinstance(config, DDPOConfig):
        rows = min(rows, config.images_per_iteration // config.updates_per_iteration // algorithm.ranks.size)
    return max(1, rows)


def sizes_beside(size: int, most: int, factor: int = 2) -> list[int]:
    """Return a size and its halves and doubles down to and up to ``factor`` times it; none above ``most``."""
    found = {size, min(size, most)}
    while factor > 1:
        found |= {max(1, size // factor), min(size * factor, most)}
        factor //= 2
    return sorted(each for each in found if each <= max(size, most))


def time_chunks(algorithm: DiffusionAlgorithm[Any], estimate: MemoryEstimate, rows_left: int) -> dict[int, Seconds]:
    """Return chunk size -> least time per row that is sampled and trained on: at the present size, half and twice it.

    Empty with several ranks, with a compiled graph, which each size would make anew, and if the passes would be more
    than 2 % of the rows that are left; without sizes that do not fit in memory. No weight, gradient or random state is
    changed.
    """
    here, most = algorithm.policy.chunk_size, largest_useful(algorithm)
    sizes = sizes_beside(here, most)
    unknown = algorithm.ranks.size > 1 or algorithm.policy.compiles or len(sizes) < 2
    if unknown or sum(sizes) * _PASSES * _SHARE > rows_left:
        return {}
    fits = estimate.total + estimate.working + estimate.unseen <= free_bytes(algorithm.policy.model.device)
    times: dict[int, list[Seconds]] = {size: [] for size in sizes if size <= here or fits}
    for _ in range(_PASSES):  # in turns, as the machine may do other work meanwhile
        for size in list(times):
            try:
                times[size].append(_pass(algorithm.policy, size))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                del times[size]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # larger chunks than the run's leave more than it needs
    least = {
        size: Seconds(min(one.wall for one in taken), min(one.cpu for one in taken)) for size, taken in times.items()
    }
    return {size: taken / min(size, most) for size, taken in least.items()}


def advice(seconds: Mapping[int, Seconds], here: int) -> str | None:
    """Return a recommendation of a faster size, if one is at least :data:`WORTH` times as fast as ``here``."""
    if here not in seconds:
        return None

    def gain(size: int) -> float:
        # Other work on the machine moves the clock, threads that wait for one another the processor time.
        return min(seconds[here].wall / seconds[size].wall, seconds[here].cpu / seconds[size].cpu)

    best = max(seconds, key=gain)
    if gain(best) < WORTH:
        return None
    return (
        f"chunks of {best} rows are {gain(best) - 1:.0%} faster here than chunks of {here}: sampling and training a "
        f"row took {1e3 * seconds[best].wall:.3g} ms, not {1e3 * seconds[here].wall:.3g}. Start with "
        f"--policy.chunk-size {best} to use them."
    )


def _pass(policy: DenoisingPolicy, size: int) -> Seconds:
    """Return the time of a forward pass, and a forward and backward pass, of one chunk."""
    rows, device = policy.blank_rows(size), policy.model.device
    trained = list(policy.trainable_parameters().values())
    started = Seconds.now(device)
    with torch.no_grad():
        policy.distribution(rows)
    with torch.enable_grad():
        mean = policy.distribution(rows).mean
        torch.autograd.grad(mean.sum(), trained, allow_unused=True)  # not backward(), which would keep them
    took = Seconds.now(device) - started
    return took if device.type == "cpu" else Seconds(took.wall, took.wall)  # the processor only launches kernels

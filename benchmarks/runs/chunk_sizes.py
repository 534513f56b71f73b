"""Which number of rows per forward pass is fastest here: a few passes of the denoiser, which change nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from algorithms import DDPOConfig, DiffusionAlgorithm
from algorithms.memory import is_out_of_memory
from algorithms.policy import DenoisingPolicy
from benchmarks.runs.memory import MemoryEstimate, free_bytes
from benchmarks.throughput.meters import Seconds

#: Another size is worth a line where it is so many times as fast.
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


def time_chunks(algorithm: DiffusionAlgorithm[Any], estimate: MemoryEstimate, rows_left: int) -> dict[int, Seconds]:
    """Return chunk size -> least time per row that is sampled and trained on: at the present size, half and twice it.

    Empty where several ranks share the work, and where the passes would be more than 2 % of the rows that are left.
    Left out is a size for which memory does not suffice. No weight, gradient or random state is changed.
    """
    here, most = algorithm.policy.chunk_size, largest_useful(algorithm)
    sizes = sizes_beside(here, most)
    if algorithm.ranks.size > 1 or len(sizes) < 2 or sum(sizes) * _PASSES * _SHARE > rows_left:
        return {}
    fits = estimate.total + estimate.working <= free_bytes(algorithm.policy.model.device)
    times: dict[int, list[Seconds]] = {size: [] for size in sizes if size <= here or fits}
    for _ in range(_PASSES):  # by turns, as the machine may do other work meanwhile
        for size in list(times):
            try:
                times[size].append(_pass(algorithm.policy, size))
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                del times[size]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # larger chunks than the run's leave more than it needs
    return {size: _least(taken, rows=min(size, most)) for size, taken in times.items()}


def gain(seconds: Mapping[int, Seconds], size: int, here: int) -> float:
    """Return how many times as long a row takes in chunks of ``here`` as of ``size``, on the clock and the processor.

    It is the lesser of the two: other work on the machine moves the one, threads that wait for one another the other.
    """
    before, after = seconds[here], seconds[size]
    return min(before.wall / after.wall, before.cpu / after.cpu)


def advice(seconds: Mapping[int, Seconds], here: int) -> str | None:
    """Return what to say of a faster size, if one is at least :data:`WORTH` times as fast."""
    if here not in seconds:
        return None
    best = max(seconds, key=lambda size: gain(seconds, size, here))
    if gain(seconds, best, here) < WORTH:
        return None
    before, after, more = 1e3 * seconds[here].wall, 1e3 * seconds[best].wall, gain(seconds, best, here) - 1
    return (
        f"chunks of {best} rows are {more:.0%} faster here than chunks of {here}: sampling and training a row took "
        f"{after:.3g} ms, not {before:.3g}. Start with --policy.chunk-size {best} to have them."
    )


def _least(taken: Sequence[Seconds], rows: int) -> Seconds:
    return Seconds(min(one.wall for one in taken) / rows, min(one.cpu for one in taken) / rows)


def _pass(policy: DenoisingPolicy, size: int) -> Seconds:
    """Return what a forward pass, and a forward and backward pass, of one chunk take."""
    rows, device = policy.blank_rows(size), policy.model.device
    trained = list(policy.trainable_parameters().values())
    started = Seconds.now(device)
    with torch.no_grad():
        policy.distribution(rows)
    with torch.enable_grad():
        mean = policy.distribution(rows).mean
        torch.autograd.grad(mean.sum(), trained, allow_unused=True)  # not backward(), which would keep them
    took = Seconds.now(device) - started
    return took if device.type == "cpu" else Seconds(took.wall, took.wall)  # the processor has nothing to do with it

"""Running out of memory: which chunk size fits is tried before the first iteration; later it is an error."""

import gc
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from diffusion_gym.prompt_records import Prompt
from diffusion_gym.rewards import RewardError

if TYPE_CHECKING:
    from algorithms.base import DiffusionAlgorithm
    from algorithms.policy import DenoisingPolicy, Rows

T = TypeVar("T")
#: Devices whose allocator refuses what does not fit; on a CPU the system ends the process instead.
PROBED_DEVICES = ["cuda", "mps", "xpu"]
#: How an allocator other than CUDA's reports it, or a library on CUDA that allocates by itself.
_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
_SAVINGS = (
    "--policy.gradient-checkpointing, --policy.autocast bfloat16, --policy.trainable lora, --optimizer adamw8bit, a "
    "smaller --images-per-iteration, or a smaller model (docs/memory.md says what each saves)"
)


class OutOfMemory(MemoryError):  # noqa: N818 - named after torch's own
    """Memory ran out in the middle of training; ``chunk_size`` is the number of rows per forward pass."""

    def __init__(self, iteration: int, chunk_size: int, error: BaseException) -> None:
        """Say what happened and what to do; ``error`` is the allocator's."""
        self.chunk_size = chunk_size
        reason = str(error).partition("\n")[0]
        self.what = f"memory ran out in iteration {iteration} with {chunk_size} rows per forward pass ({reason})"
        smaller = f"with chunk_size={chunk_size // 2}, or " if chunk_size > 1 else "or begin again "
        super().__init__(f"{self.what}; load the last checkpoint {smaller}with less to store: {_SAVINGS}.")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the error is that the device's memory ran out; a reward's own error never is."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    found = any(text in str(error) for text in _MESSAGES)
    return isinstance(error, RuntimeError) and not isinstance(error, RewardError) and found


def too_little_memory(message: str) -> MemoryError:
    """Return the error for a device on which not even one row fits; ``message`` is the allocator's."""
    return MemoryError(f"out of memory with one row per forward pass ({message}). Take less: {_SAVINGS}.")


def fit_chunk_size(policy: "DenoisingPolicy", attempt: Callable[[], T]) -> T:
    """Return ``attempt()``, halving ``policy.chunk_size`` until memory suffices; the new size stays.

    Args:
        policy: whose chunk size is halved.
        attempt: gives the same result when it is called again.

    Raises:
        MemoryError: not even one row at a time fits.
    """
    while True:
        try:
            return attempt()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
            if policy.chunk_size == 1:
                raise too_little_memory(message) from error
        # Outside of except, whose traceback holds the frames, and so the tensors, of the failed attempt.
        old, policy.chunk_size = policy.chunk_size, policy.chunk_size // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory with {old} rows per forward pass ({message}); continuing with {policy.chunk_size}, which "
            "changes results by float32 rounding; give it as --policy.chunk-size to start with it.",
            stacklevel=2,
        )


def try_chunk(
    policy: "DenoisingPolicy",
    trained: Iterable[nn.Parameter],
    storage: Callable[[], object],
    train: Callable[["Rows"], None],
) -> None:
    """Take the memory that an iteration takes: sample, decode and train one chunk of zeros, and change nothing.

    Args:
        policy: with the chunk size to try.
        trained: parameters that get gradients.
        storage: allocates what an iteration keeps.
        train: makes the forward and backward passes of a chunk.
    """
    parameters, kept = list(trained), storage()
    rows = policy.blank_rows(policy.chunk_size)
    try:
        with torch.no_grad():
            policy.model.decode(policy.distribution(rows).mean)
        train(rows)
    finally:
        for parameter in parameters:
            parameter.grad = None
        del kept


def find_chunk_size(algorithm: "DiffusionAlgorithm[Any]") -> None:
    """Halve an algorithm's chunk size until one chunk can be sampled and trained. Collective."""
    from algorithms.rollouts import Rollout

    policy, ranks, config = algorithm.policy, algorithm.ranks, algorithm.config
    if ranks.sharded or policy.model.device.type not in PROBED_DEVICES:
        algorithm.chunk_size_found = True
        return
    records, needs = [Prompt("")] * (config.images_per_iteration // ranks.size), algorithm.requires(config)
    trained = list(algorithm.trained_parameters().values())
    state = algorithm.optimizer.state if hasattr(algorithm, "optimizer") else {}

    def storage() -> object:
        moments = [torch.zeros_like(value) for value in trained for _ in range(2) if value not in state]
        return moments, Rollout.empty(policy, records, needs.trajectory, keeps_means=needs.means)

    fit_chunk_size(policy, lambda: try_chunk(policy, trained, storage, algorithm.train_blank))
    policy.chunk_size = min(ranks.gather_objects(policy.chunk_size))
    algorithm.chunk_size_found = True

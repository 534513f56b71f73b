"""Out of memory: the work is undone, the policy's chunk of rows halved, and the work done again."""

import gc
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from algorithms.policy import DenoisingPolicy
from diffusion_gym.rewards import RewardError

T = TypeVar("T")
#: How an allocator that is not CUDA's says it, or a library on CUDA that allocates by itself.
_MESSAGES = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that the device's memory ran out. A reward's own error is the reward's business."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    told = any(text in str(error) for text in _MESSAGES)
    return isinstance(error, RuntimeError) and not isinstance(error, RewardError) and told


def too_little_memory(message: str) -> MemoryError:
    """Return the error for a device on which not even one row fits; ``message`` is the allocator's."""
    return MemoryError(
        f"out of memory with one row per forward pass ({message}). Take less: --policy.gradient-checkpointing, "
        "--policy.autocast bfloat16, --policy.trainable lora, --optimizer adamw8bit, a smaller --images-per-iteration, "
        "or a smaller model (docs/memory.md says what each saves)."
    )


def within_memory(policy: DenoisingPolicy, work: Callable[[], T], undo: Callable[[], None] = lambda: None) -> T:
    """Return ``work()``; where memory runs out, undo what it did, halve ``policy.chunk_size``, and try again.

    Rows are independent and noise is keyed by the image, so work done in smaller chunks has the same result up to
    float32 rounding.

    Args:
        policy: whose chunk is halved; the new size stays.
        work: must give the same result when called again after ``undo``.
        undo: puts back what ``work`` may have changed before it failed.

    Raises:
        MemoryError: not even one row at a time fits.
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            message = str(error).partition("\n")[0]
            if policy.chunk_size == 1:
                raise too_little_memory(message) from error
        # Outside of except, whose traceback holds the frames, and so the tensors, of the failed attempt.
        undo()
        old, policy.chunk_size = policy.chunk_size, policy.chunk_size // 2
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        warnings.warn(
            f"out of memory with {old} rows per forward pass ({message}); continuing with {policy.chunk_size}, which "
            "changes results by float32 rounding alone. Given as --policy.chunk-size, it is not searched for again.",
            stacklevel=2,
        )

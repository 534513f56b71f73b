"""Diversity: how much the images of one prompt differ."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def diversity(images: Tensor, prompts: Sequence[str]) -> float:
    """Standard deviation of pixels over the images of a prompt, in levels of 255; 0 is full collapse.

    The variance divides by n - 1 and is averaged over pixels before the root: it is half the mean squared difference of
    two different images, so that prompts with other numbers of images measure the same.

    Args:
        images: (n, 3, H, W), uint8.
        prompts: n texts.

    Returns:
        The mean over prompts that have several images; NaN where none has.
    """
    return mean_over_prompts(images, prompts, lambda group: group.double().var(0, correction=1).mean().sqrt())


def embedding_diversity(embeddings: Tensor, prompts: Sequence[str]) -> float:
    """``1 - cosine`` of two different images of one prompt, averaged; 0 is full collapse.

    Args:
        embeddings: (n, D), of length 1.
        prompts: n texts.

    Returns:
        The mean over prompts that have several images; NaN where none has.
    """

    def spread(group: Tensor) -> Tensor:
        m, total = len(group), group.double().sum(0)
        return 1 - (total.square().sum() - m) / (m * (m - 1))  # |sum of m unit vectors|^2 = m + m (m - 1) mean cosine

    return mean_over_prompts(embeddings, prompts, spread)


def mean_over_prompts(rows: Tensor, prompts: Sequence[str], measure: Callable[[Tensor], Tensor]) -> float:
    """Measure the rows of each prompt that has several, and return the mean; NaN where none has."""
    measured = []
    for prompt in dict.fromkeys(prompts):
        group = rows[torch.tensor([text == prompt for text in prompts])]
        if len(group) > 1:
            measured.append(measure(group))
    return float(torch.stack(measured).mean()) if measured else math.nan

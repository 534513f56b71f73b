"""Measures of images beside the training reward: do they still show the prompt, do they still differ?"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from diffusion_gym.rewards import check_reward, evaluate_reward, resolve_reward

Metric = Callable[[Tensor, Sequence[str]], float]


def diversity(images: Tensor, prompts: Sequence[str]) -> float:
    """Root mean square deviation of pixels from their prompt's mean picture, in levels of 255; 0 is full collapse.

    Args:
        images: (n, 3, H, W), uint8.
        prompts: n texts.
    """
    spreads = []
    for prompt in dict.fromkeys(prompts):
        group = images[torch.tensor([text == prompt for text in prompts])].double()
        if len(group) > 1:
            spreads.append(group.var(0, correction=1).mean().sqrt())
    return float(torch.stack(spreads).mean()) if spreads else float("nan")


def recognised(images: Tensor, prompts: Sequence[str]) -> float:
    """Share of images in which the embedded world's judge sees the prompted animal."""
    from diffusion_gym.prompts import ANIMALS

    animals, _ = _judge().recognise(images)
    named = [next((animal for animal in prompt.split() if animal in ANIMALS), None) for prompt in prompts]
    hits = [name is not None and ANIMALS[int(seen)] == name for name, seen in zip(named, animals, strict=True)]
    return sum(hits) / len(hits)


@lru_cache(maxsize=1)
def _judge():  # type: ignore[no-untyped-def]  # noqa: ANN202 - the class is imported only where it is used
    from benchmarks.pretrain.judge import load_judge

    return load_judge()


#: Name -> metric over one evaluation's images.
METRICS: dict[str, Metric] = {"diversity": diversity, "recognised": recognised}


def resolve_metric(name: str) -> Metric:
    """Return a metric of :data:`METRICS`, or the mean of a reward that is held out of training.

    Raises:
        ValueError: as :func:`check_metric`, or a reward's weights that cannot be had.
    """
    check_metric(name)
    if name in METRICS:
        return METRICS[name]
    reward = resolve_reward(name)
    return lambda images, prompts: float(evaluate_reward(reward, images, prompts).mean())


def check_metric(name: str) -> None:
    """Check a metric's name without loading anything.

    Raises:
        ValueError: neither a metric nor a reward, or a reward's option that is refused.
    """
    if name in METRICS:
        return
    try:
        check_reward(name)
    except ValueError as error:
        raise ValueError(
            f"unknown metric {name!r}; expected some of {sorted(METRICS)}, or a reward ({error})"
        ) from error

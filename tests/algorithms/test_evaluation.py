"""Evaluation costs the forwards that its images fill, and shows the same images however they are denoised."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from algorithms import DDPO, EvaluationConfig
from algorithms.evaluation import Evaluation, evaluate

ANIMALS = ["cat", "dog", "horse", "monkey", "rabbit", "zebra", "bird"]


def evaluated(env: Any, images: int, num_envs: int, **config: Any) -> Evaluation:
    """Of the untrained policy, with the KL to its start."""
    algorithm = DDPO(
        env, num_envs=num_envs, images_per_iteration=192, trainable="full", kl_to_start=True,
        evaluation=EvaluationConfig(images=images), **config,
    )  # fmt: skip
    return evaluate(algorithm.mdp, algorithm.policy, algorithm.config, 0, algorithm.reference)


@pytest.mark.parametrize(
    ("images", "num_envs", "chunk_size", "forwards"),
    [(48, 64, 16, 3), (45, 64, 16, 3), (45, 32, 32, 2), (96, 64, 32, 3), (7, 64, 16, 1)],
)
def test_an_evaluation_costs_the_chunks_that_its_images_fill(
    make_env: Callable, images: int, num_envs: int, chunk_size: int, forwards: int
) -> None:
    """Forwards a step, whatever common divisor images and num_envs have; one reward query an image."""
    queries: list[str] = []

    def counted(pictures: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        queries.extend(prompts)
        return torch.zeros(len(prompts))

    algorithm = DDPO(
        make_env(steps=3, reward=counted), num_envs=num_envs, images_per_iteration=num_envs, chunk_size=chunk_size,
        trainable="full", evaluation=EvaluationConfig(images=images),
    )  # fmt: skip
    rows: list[int] = []
    algorithm.policy.denoiser.register_forward_pre_hook(lambda _, arguments: rows.append(len(arguments[0])))
    evaluation = evaluate(algorithm.mdp, algorithm.policy, algorithm.config, 0)
    assert len(rows) == forwards * 3
    assert sum(rows) == images * 3
    assert max(rows) <= chunk_size
    assert len(queries) == len(evaluation.rewards) == images


@pytest.mark.parametrize("images", [9, 13])
def test_the_number_of_environments_changes_rounding_alone(make_env: Callable, tiny_sd: str, images: int) -> None:
    """Whole rounds, a smaller last one, or all at once, on a pipeline in chunks of 4.

    Rounds of 4 and of 64 make the same chunks, and so the same bits; others are a level apart at most.
    """
    env = make_env(tiny_sd, steps=2, reward="compressibility", prompts=ANIMALS)
    same, first, *others = [evaluated(env, images, n, chunk_size=4, guidance_scale=3.0) for n in (4, 64, 1, 6)]
    assert first.images.shape[0] == images
    assert torch.equal(same.images, first.images)
    assert torch.equal(same.rewards, first.rewards)
    assert first.kl_to_start is not None
    for other in others:
        assert other.prompts == first.prompts
        assert (other.images.int() - first.images.int()).abs().max() <= 1
        assert other.kl_to_start is not None
        torch.testing.assert_close(other.kl_to_start, first.kl_to_start, rtol=1e-3, atol=1e-6)


def test_more_images_begin_with_the_same(make_env: Callable) -> None:
    """Image k has its prompt and its noise, whatever else is evaluated."""
    env = make_env("exact-mixture", prompts=["north", "south"])
    few, many = evaluated(env, 5, 4, chunk_size=4), evaluated(env, 11, 4, chunk_size=4)
    assert torch.equal(many.images[:4], few.images[:4])  # one chunk in both; the fifth image is alone in its own
    # The picture's levels are digits of a 16-bit code, so compare what they encode.
    torch.testing.assert_close(many.rewards[:5], few.rewards, rtol=1e-3, atol=1e-3)
    assert len(many.images.unique(dim=0)) == 11

"""The reward's gradient through every family's last steps, guidance and decoder, against differences of the reward."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from algorithms import RewardGradient, RewardGradientConfig
from diffusion_gym.rewards import differentiable


@differentiable
def warmth(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].square().mean((1, 2)) - images[:, 2].mean((1, 2))


def test_the_gradient_is_the_rewards_change(built: Any, make_env: Callable, sample: Callable) -> None:
    """Along the gradient of all weights; the redone steps equal the sampled ones bit for bit."""
    algorithm = RewardGradient(
        make_env(built.folder, steps=3, reward=warmth), RewardGradientConfig(), trainable="full", gradient_steps=2,
        images_per_iteration=2, num_envs=2, eta=0.5, guidance_scale=built.family.guidance,
    )  # fmt: skip
    algorithm.step = lambda optimizer: torch.zeros(())  # type: ignore[method-assign]
    rollout = sample(algorithm, 2)
    assert algorithm.update(rollout)["train/distance_from_sampled"] == 0.0
    trained = algorithm.policy.trainable_parameters().values()
    slope = {value: value.grad.clone() for value in trained if value.grad is not None}
    square = sum(float(gradient.square().sum()) for gradient in slope.values())
    losses = []
    for step in (3e-4, -6e-4):  # of the loss, on both sides
        with torch.no_grad():
            for value, gradient in slope.items():
                value.add_(gradient, alpha=step / square)
        losses.append(algorithm.update(rollout)["train/loss"])
    print(losses, square)
    assert abs((losses[0] - losses[1]) / 6e-4 - 1) < 0.05

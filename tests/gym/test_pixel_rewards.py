"""Rewards of float images: the values of the uint8 path up to rounding, gradients, and clear refusals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diffusion_gym.rewards import (
    RewardError,
    RewardTerm,
    WeightedSum,
    check_differentiable,
    differentiable,
    evaluate_reward,
    resolve_reward,
    reward_pixels,
)
from diffusion_gym.rewards.models.clip import Clip

PROMPTS = ["cat", "a dog", "cat"]


@differentiable
def brightness(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean((1, 2, 3))


def pictures(height: int, width: int, n: int = 3) -> Tensor:
    """Return smooth pictures with hard edges, (n, 3, height, width), uint8."""
    rows, columns = torch.meshgrid(torch.arange(height) / 9, torch.arange(width) / 7, indexing="ij")
    phases = torch.arange(3 * n).reshape(n, 3, 1, 1)
    waves = 127.5 + 127.5 * torch.sin(rows * (1 + phases / 5) + columns + phases)
    waves[:, :, height // 3 :] = torch.where(waves[:, :, height // 3 :] > 127, 255, 0)
    return waves.to(torch.uint8)


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(40, 24), (24, 41), (8, 12), (16, 16)])
def test_float_preprocessing_is_pillows_up_to_rounding(
    tiny_reward_models: Path, size: tuple[int, int], mode: str
) -> None:
    """Within a level and a half: Pillow rounds after each of its two passes."""
    import open_clip

    model = Clip(str(tiny_reward_models / "clip"), None)
    model._transform = open_clip.image_transform(16, is_train=False, resize_mode=mode, fill_color=200)
    images = pictures(*size)
    difference = (model.preprocess_pixels(images / 255) - model.preprocess(images)).abs().max()
    assert difference < 1.5 / 255 / 0.26


@pytest.mark.parametrize("size", [(40, 24), (16, 16)])
@pytest.mark.parametrize("spec", ["aesthetic?chunk_size=2", "clip_score?chunk_size=2", "clip_score,aesthetic:2:std=.5"])
def test_scores_and_gradients(tiny_rewards: Path, spec: str, size: tuple[int, int]) -> None:
    reward, images = resolve_reward(spec), pictures(*size)
    pixels = (images / 255).requires_grad_(True)
    scores = reward_pixels(reward, pixels, PROMPTS)
    rounded = evaluate_reward(reward, images, PROMPTS)
    assert scores.rewards.dtype == torch.float32
    spread = float(rounded.std())
    torch.testing.assert_close(scores.rewards, rounded, atol=0.05 * spread, rtol=0)
    if isinstance(reward, WeightedSum):
        assert list(scores.parts) == reward.names
        torch.testing.assert_close(reward.combine(scores.parts), scores.rewards)
    (gradient,) = torch.autograd.grad(scores.rewards.sum(), pixels)
    assert bool(gradient.isfinite().all())
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())
    inside = (images > 8) & (images < 247)  # so that no step leaves [0, 1]
    step = torch.where(inside, gradient, torch.zeros(())) / gradient.abs().max() * 4e-3
    with torch.no_grad():
        up, down = (reward_pixels(reward, (images / 255) + sign * step, PROMPTS).rewards.sum() for sign in (1, -1))
    assert float(up - down) == pytest.approx(2 * float((gradient * step).sum()), rel=0.05)


def test_a_function_declares_itself() -> None:
    """It scores uint8 images as well and keeps its name."""
    images = pictures(8, 8)
    check_differentiable(brightness)
    assert brightness.__name__ == "brightness"
    pixels = (images / 255).requires_grad_(True)
    reward_pixels(brightness, pixels, PROMPTS).rewards.sum().backward()
    torch.testing.assert_close(pixels.grad, torch.full_like(pixels, 1 / 192))
    torch.testing.assert_close(evaluate_reward(brightness, images, PROMPTS), images.float().mean((1, 2, 3)) / 255)


def test_a_floor_has_a_gradient_below_it_alone() -> None:
    reward = WeightedSum([RewardTerm(brightness, weight=2.0, floor=0.5)])
    pixels = torch.stack([torch.full((3, 4, 4), 0.25), torch.full((3, 4, 4), 0.75)]).requires_grad_(True)
    scores = reward_pixels(reward, pixels, PROMPTS[:2])
    assert scores.rewards.tolist() == [-0.5, 0.0]
    scores.rewards.sum().backward()
    assert pixels.grad is not None
    torch.testing.assert_close(pixels.grad.flatten(1).sum(1), torch.tensor([2.0, 0.0]))


def test_a_sum_of_sums_has_a_gradient() -> None:
    reward = WeightedSum([RewardTerm(WeightedSum([RewardTerm(brightness, weight=2.0)]), weight=3.0)])
    pixels = (pictures(8, 8) / 255).requires_grad_(True)
    reward.pixels(pixels, PROMPTS).sum().backward()
    torch.testing.assert_close(pixels.grad, torch.full_like(pixels, 6 / 192))


@pytest.mark.parametrize("spec", ["compressibility", "exact-linear,compressibility:0.5"])
def test_a_reward_without_gradient_is_refused_by_name(spec: str) -> None:
    reward = resolve_reward(spec)
    for refused in (reward, WeightedSum([RewardTerm(reward)])):
        with pytest.raises(ValueError, match=r"the reward 'compressibility' has no gradient.*expected one with a meth"):
            reward_pixels(refused, pictures(8, 8) / 255, PROMPTS)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda images, prompts: images.mean(), r"must return a tensor of shape \(3,\), got \(\)"),
        (lambda images, prompts: [0.0] * 3, r"must return a tensor of shape \(3,\), got list"),
        (lambda images, prompts: images.mean((1, 2, 3)).log() * float("nan"), "expected finite scores"),
        (lambda images, prompts: images.detach().mean((1, 2, 3)), "without a gradient; leave out no_grad and detach"),
    ],
)
def test_what_pixels_returns_is_checked(function: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        reward_pixels(differentiable(function), (pictures(8, 8) / 255).requires_grad_(True), PROMPTS)

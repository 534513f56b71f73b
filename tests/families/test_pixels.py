"""Decoding with gradient: the pixels of every family, and the exact family's code."""

from typing import Any

import torch

from diffusion_gym import load_model
from diffusion_gym.rewards import Quadratic, reward_pixels


def test_pixels_are_the_images_before_rounding_and_have_a_gradient(built: Any) -> None:
    model = built.model
    latents = 0.5 * torch.randn(5, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    latents.requires_grad_(True)
    pixels = model.decode_pixels(latents)
    assert pixels.dtype == torch.float32
    assert pixels.shape == (5, *model.image_shape)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert torch.equal((pixels.detach() * 255).round().to(torch.uint8), model.decode(latents))
    weights = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((weights * pixels).sum(), latents)
    assert bool(gradient.isfinite().all())
    assert bool((gradient.flatten(1).abs().sum(1) > 0).all())
    # Along the gradient, where the largest change stands out of float32's rounding.
    step = 1e-3 * gradient / gradient.abs().max()
    with torch.no_grad():
        change = weights * (model.decode_pixels(latents + step).double() - model.decode_pixels(latents - step).double())
    assert abs(float(change.sum()) / float(2 * (gradient * step).sum()) - 1) < 0.05
    assert all(not parameter.requires_grad for part in model.networks for parameter in part.parameters())


def test_the_exact_familys_points_have_the_gradient_1() -> None:
    """So that the closed-form rewards have their own gradients, whatever the rounding to bytes."""
    model = load_model("exact-mixture")
    latents = torch.tensor([[0.3, -1.2], [7.0, 9.0]])[..., None, None].requires_grad_(True)
    scores = reward_pixels(Quadratic(), model.decode_pixels(latents), ["north", "east"]).rewards
    torch.testing.assert_close(scores[0], torch.tensor(-(0.7**2) - 2.2**2), atol=2e-3, rtol=0)
    scores.sum().backward()
    expected = [[1.4, 4.4], [-12.0, 0.0]]  # beyond 8 the code saturates
    torch.testing.assert_close(latents.grad, torch.tensor(expected)[..., None, None], atol=2e-3, rtol=0)

"""Rewards on the points of the exact family, whose optimal tilted distributions are known in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffusion_gym.models.exact import read_points


class Linear:
    """``r(x) = direction . x``; the first coordinate by default."""

    name = "exact-linear"

    def __init__(self, direction: Sequence[float] = (1.0, 0.0)) -> None:
        """Args: direction: d numbers."""
        self.direction = torch.tensor(direction, dtype=torch.float32)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32."""
        return read_points(images) @ self.direction.to(images.device)

    pixels = __call__


class Quadratic:
    """``r(x) = -|x - target|^2``."""

    name = "exact-quadratic"

    def __init__(self, target: Sequence[float] = (1.0, 1.0)) -> None:
        """Args: target: d numbers."""
        self.target = torch.tensor(target, dtype=torch.float32)

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return (n,), float32."""
        return -(read_points(images) - self.target.to(images.device)).square().sum(1)

    pixels = __call__

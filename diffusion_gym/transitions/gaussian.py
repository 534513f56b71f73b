"""The Gaussian of one denoising step: the same object draws the next latents and scores them."""

import math
from dataclasses import dataclass

from torch import Tensor

from diffusion_gym.choices import Reduction


@dataclass(frozen=True)
class Gaussian:
    """A batch of isotropic Gaussians over latents.

    Attributes:
        mean: (n, c, h, w), float32, scaled latent units.
        std: (n,), float32, scaled latent units; 0 marks a deterministic transition, which has no density.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return ``mean + std * noise``; noise: (n, c, h, w), standard normal."""
        return self.mean + per_row(self.std, self.mean) * noise

    def log_prob(self, latents: Tensor, reduction: Reduction = "sum") -> Tensor:
        """Log-density of ``latents``, (n,), float32.

        Args:
            latents: (n, c, h, w), float32; exactly the latents that are stored, not a value rounded from them.
            reduction: ``"sum"`` over the latent's D dimensions is the joint log-density; ``"mean"`` divides it by
                D, as the reference implementations of DDPO do.

        Raises:
            ValueError: a row has std 0 (see ``Transition.has_density``).
        """
        if bool((self.std == 0).any()):
            raise ValueError(
                "log_prob of a deterministic transition (std 0) does not exist; train only the steps where "
                "Transition.has_density is true, or sample with eta > 0."
            )
        std = per_row(self.std, self.mean)
        terms = -0.5 * ((latents - self.mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
        flat = terms.flatten(1)
        return flat.sum(1) if reduction == "sum" else flat.mean(1)

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other) of two Gaussians with the same std, joint nats, (n,): ``|mu - mu'|^2 / (2 s^2)``.

        Raises:
            ValueError: a row has std 0.
        """
        if bool((self.std == 0).any()):
            raise ValueError("the KL of a deterministic transition (std 0) does not exist; leave out its step.")
        squared = (self.mean - other.mean).flatten(1).square().sum(1)
        return squared / (2 * self.std**2)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Shape (n,) values so that they broadcast over the trailing dimensions of ``like``."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))

"""The Gaussian of one denoising step: the same object draws the next latents and scores them."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_gym.choices import Reduction


@dataclass(frozen=True)
class Gaussian:
    """A batch of isotropic Gaussians over latents.

    Attributes:
        mean: (n, ...), float32, scaled latent units; latents may have any number of axes.
        std: (n,), float32, scaled latent units; 0 marks a deterministic transition, which has no density.
    """

    mean: Tensor
    std: Tensor

    @property
    def dimensions(self) -> int:
        """Return D, of one latent."""
        return math.prod(self.mean.shape[1:])

    def select(self, index: Tensor) -> "Gaussian":
        """Return the Gaussians of some rows, or of a row several times."""
        return Gaussian(self.mean[index], self.std[index])

    def sample(self, noise: Tensor) -> Tensor:
        """Return ``mean + std * noise``; noise: (n, ...), standard normal."""
        return self.mean + per_row(self.std, self.mean) * noise

    def relative_log_prob(self, latents: Tensor) -> Tensor:
        """Return the joint log-density of ``latents`` relative to its mean under the Gaussian itself, (n,), float32.

        With ``z = (x - mean) / std`` it is ``log p(x) + H = sum_D (1 - z^2) / 2``, where the entropy H depends on the
        std alone. It is 0 on average, so float32 keeps its digits where the constants of ``log p`` itself, hundreds of
        thousands of nats at D = 262,144, would take them; in a ratio of densities of one std H cancels.

        Args:
            latents: (n, ...), float32; exactly the latents that are stored, not a value rounded from them.

        Returns:
            NaN for a row of std 0, which has no density. The device is not waited for.
        """
        z = (latents - self.mean) / per_row(self.std, self.mean)
        return (0.5 * (1 - z * z)).flatten(1).sum(1)

    def log_prob(self, latents: Tensor, reduction: Reduction = "sum") -> Tensor:
        """Return the log-density of ``latents``, (n,), float32.

        Args:
            latents: (n, ...), float32; exactly the latents that are stored, not a value rounded from them.
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
        joint = self.relative_log_prob(latents) - self.entropy()
        return joint if reduction == "sum" else joint / self.dimensions

    def entropy(self) -> Tensor:
        """Return the joint entropy ``D (log std + log(2 pi e) / 2)``, nats, (n,); minus infinity for a row of std 0."""
        return self.dimensions * (self.std.log() + 0.5 * math.log(2 * math.pi * math.e))

    def kl(self, other: "Gaussian") -> Tensor:
        """Return KL(self || other) of two Gaussians of one std, joint nats, (n,): ``|mu - mu'|^2 / (2 s^2)``.

        A row of std 0 counts 0: it has no density. The device is not waited for.
        """
        dense = self.std > 0
        # The std 1 in its place keeps 0 / 0 out of the value and of the gradient.
        std = torch.where(dense, self.std, torch.ones_like(self.std))
        squared = (self.mean - other.mean).flatten(1).square().sum(1)
        return dense * squared / (2 * std**2)


def per_row(values: Tensor, like: Tensor) -> Tensor:
    """Return (n,) values in a shape that broadcasts over the trailing axes of ``like``."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))

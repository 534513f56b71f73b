"""Gaussian mixtures with isotropic components: density, samples, tilted targets; all in closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """``p(x) = sum_k w_k N(x; m_k, s_k^2 I)`` in d dimensions.

    Attributes:
        means: (K, d), float64.
        stds: (K,), float64.
        weights: (K,), float64, summing to 1.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    @property
    def mean(self) -> Tensor:
        """Return the mean of x, (d,)."""
        return self.weights @ self.means

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density at x: (n, d) -> (n,)."""
        normal = torch.distributions.Normal(self.means[None], self.stds[None, :, None])
        return torch.logsumexp(normal.log_prob(x[:, None].double()).sum(-1) + self.weights.log()[None], 1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n points, (n, d), float64."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + self.stds[k, None] * noise

    def tilt_linear(self, direction: Tensor, beta: float) -> "GaussianMixture":
        """Return ``p(x) exp(direction . x / beta) / Z``, again a mixture: means move by ``s_k^2 direction / beta``."""
        w = direction.double() / beta
        log_weights = self.weights.log() + self.means @ w + 0.5 * self.stds**2 * w.square().sum()
        return GaussianMixture(self.means + self.stds[:, None] ** 2 * w, self.stds, log_weights.softmax(0))

    def tilt_quadratic(self, target: Tensor, beta: float) -> "GaussianMixture":
        """Return ``p(x) exp(-|x - target|^2 / beta) / Z``: each component times a Gaussian of variance beta / 2."""
        gap, variance = self.means - target.double(), self.stds**2
        new_variance = 1 / (1 / variance + 2 / beta)
        means = new_variance[:, None] * (self.means / variance[:, None] + 2 * target.double() / beta)
        total = variance + beta / 2
        d = self.means.shape[1]
        log_weights = self.weights.log() - 0.5 * gap.square().sum(1) / total - 0.5 * d * total.log()
        return GaussianMixture(means, new_variance.sqrt(), log_weights.softmax(0))

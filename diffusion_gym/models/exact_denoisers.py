"""The exact family's denoisers: what a perfect network predicts for a Gaussian mixture, in closed form."""

from abc import ABC

import torch
from torch import Tensor, nn

from diffusion_gym.models.base import PROMPT_EMBEDDING, Conditioning, Denoiser
from diffusion_gym.models.gaussian_mixture import GaussianMixture


class MixtureDenoiser(Denoiser, ABC):
    """A prediction whose trainable parameters are the mixture's own: means, log-stds, logits."""

    def __init__(self, mixture: GaussianMixture) -> None:
        """Args: mixture with K components in d dimensions."""
        super().__init__()
        self.means = nn.Parameter(mixture.means.float())
        self.log_stds = nn.Parameter(mixture.stds.log().float())
        self.logits = nn.Parameter(mixture.weights.log().float())

    def posterior(
        self, latents: Tensor, signal: Tensor, variance: Tensor, conditioning: Conditioning
    ) -> tuple[Tensor, Tensor]:
        """Return how probable each component is given a noisy point, and the gaps to the components' noisy means.

        Args:
            latents: (n, d, 1, 1), x_t.
            signal: (n, 1), the factor of x_0 in x_t.
            variance: (n, K), of x_t in each component.
            conditioning: ``prompt_embedding`` (n, 1, K) holds 1 for the components that the prompt allows.

        Returns:
            Responsibilities (n, K) and gaps ``x_t - signal m_k`` (n, K, d).
        """
        x = latents.flatten(1)
        log_w = torch.log_softmax(self.logits + conditioning[PROMPT_EMBEDDING][:, 0].log(), 1)
        gap = x[:, None] - signal[..., None] * self.means[None]
        log_r = log_w - 0.5 * gap.square().sum(-1) / variance - 0.5 * x.shape[1] * variance.log()
        return log_r.softmax(1), gap

    def mixture(self, prompt_embedding: Tensor | None = None) -> GaussianMixture:
        """Return the mixture that the present parameters describe, for one prompt (1, K) or over all components."""
        allowed = torch.ones_like(self.logits) if prompt_embedding is None else prompt_embedding[0]
        logits, means, log_stds = (
            value.detach().cpu().double()  # in this order: MPS has no float64
            for value in (self.logits + allowed.log(), self.means, self.log_stds)
        )
        return GaussianMixture(means, log_stds.exp(), logits.softmax(0))


class ExactDenoiser(MixtureDenoiser):
    """``E[epsilon | x_t]`` of a Gaussian mixture.

    With ``x_t = sqrt(a) x_0 + sqrt(1 - a) epsilon`` component k of x_t has mean ``sqrt(a) m_k`` and variance
    ``v_k = a s_k^2 + 1 - a``; then ``E[epsilon | x_t] = sqrt(1 - a) sum_k r_k (x_t - sqrt(a) m_k) / v_k`` with the
    responsibilities r_k.
    """

    alphas_cumprod: Tensor

    def __init__(self, mixture: GaussianMixture, alphas_cumprod: Tensor) -> None:
        """Args: mixture with K components in d dimensions; alphas_cumprod: (num_train_timesteps,)."""
        super().__init__(mixture)
        self.register_buffer("alphas_cumprod", alphas_cumprod.float(), persistent=False)

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon."""
        a = self.alphas_cumprod[timesteps.long()][:, None]
        v = a * (2 * self.log_stds).exp()[None] + 1 - a
        r, gap = self.posterior(latents, a.sqrt(), v, conditioning)
        epsilon = (1 - a).sqrt() * ((r / v)[..., None] * gap).sum(1)
        return epsilon.reshape(latents.shape)


class ExactFlowDenoiser(MixtureDenoiser):
    """``E[noise - x_0 | x_t]`` of a Gaussian mixture on the rectified flow's path.

    With ``x_t = (1 - t) x_0 + t noise`` component k of x_t has mean ``(1 - t) m_k`` and variance
    ``v_k = (1 - t)^2 s_k^2 + t^2``; then the velocity is
    ``sum_k r_k ((t - (1 - t) s_k^2) (x_t - (1 - t) m_k) / v_k - m_k)`` with the responsibilities r_k.
    """

    def __init__(self, mixture: GaussianMixture, num_train_timesteps: int) -> None:
        """Args: mixture with K components in d dimensions; num_train_timesteps: the timestep of t = 1."""
        super().__init__(mixture)
        self.num_train_timesteps = num_train_timesteps

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity."""
        t = (timesteps.float() / self.num_train_timesteps)[:, None]
        variance = (2 * self.log_stds).exp()[None]
        v = (1 - t).square() * variance + t.square()
        r, gap = self.posterior(latents, 1 - t, v, conditioning)
        of_gap = (t - (1 - t) * variance) / v
        velocity = (r[..., None] * (of_gap[..., None] * gap - self.means[None])).sum(1)
        return velocity.reshape(latents.shape)

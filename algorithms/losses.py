"""The losses: DDPO with the score function and with importance sampling, the KL penalty, RWR's denoising loss."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_gym.transitions import Reduction


@dataclass(frozen=True)
class RatioStatistics:
    """What importance sampling looks like over some rows; each (m,), detached.

    Attributes:
        log_ratio: joint log-ratio of new to old density, nats.
        approx_kl: Schulman's low-variance estimate ``ratio - 1 - log_ratio`` of KL(old || new) for one transition, of
            the joint ratio whatever the reduction, nats.
        clipped: 1 where the clipped branch is active (no gradient), else 0.
    """

    log_ratio: Tensor
    approx_kl: Tensor
    clipped: Tensor

    def metrics(self) -> dict[str, Tensor]:
        """Return name in the log -> (m,)."""
        return {
            "train/approx_kl": self.approx_kl,
            "train/clip_fraction": self.clipped,
            "train/log_ratio_abs": self.log_ratio.abs(),
            "train/log_ratio_abs_max": self.log_ratio.abs(),
        }


def log_ratio_bound(clip_range: float, dimensions: int, reduction: Reduction) -> float:
    """Bound on ``log ratio`` in the reduction's units, from ``clip_range`` in joint units (nats over all dimensions).

    With ``reduction="mean"`` the log-ratio is divided by the latent's D dimensions, and so is the bound: the paper's
    1e-4 at D = 16,384 is a joint 1.64, the default here, which carries over to every latent size.
    """
    return clip_range / dimensions if reduction == "mean" else clip_range


def score_function_loss(log_prob: Tensor, advantages: Tensor, dimensions: int, reduction: Reduction) -> Tensor:
    """DDPO-SF (Black et al. 2023, equation 3): ``-A log p(x_{t-1} | x_t, c)``, (m,).

    Args:
        log_prob: (m,), joint log-density with gradients; a constant in it (the entropy) changes no gradient.
        advantages: (m,).
        dimensions: D of one latent.
        reduction: ``"mean"`` divides by D, as the reference implementations do.
    """
    return -advantages * (log_prob / dimensions if reduction == "mean" else log_prob)


def importance_sampling_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    dimensions: int,
    reduction: Reduction,
    clip_range: float,
) -> Tensor:
    """DDPO-IS (Black et al. 2023, equation 4) with PPO's clipping: ``max(-A ratio, -A clip(ratio))``, (m,).

    The ratio is clipped to ``[exp(-b), exp(b)]`` with b of :func:`log_ratio_bound`, which for the paper's 1e-4 is
    [1 - 1e-4, 1 + 1e-4] to 5e-9.

    Args:
        log_prob: (m,), joint log-density with gradients, up to a constant that ``old_log_prob`` has too.
        old_log_prob: (m,), of the policy that sampled.
        advantages: (m,).
        dimensions: D of one latent.
        reduction: ``"mean"`` takes the D-th root of the ratio, as the reference implementations do; ``"sum"`` the
            true ratio.
        clip_range: joint units (nats).
    """
    log_ratio = (log_prob - old_log_prob) / (dimensions if reduction == "mean" else 1)
    bound = log_ratio_bound(clip_range, dimensions, reduction)
    ratio = log_ratio.exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(math.exp(-bound), math.exp(bound)))


@torch.no_grad()
def ratio_statistics(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, clip_range: float) -> RatioStatistics:
    """Return what importance sampling looks like over some rows; arguments as :func:`importance_sampling_loss`'s."""
    joint = log_prob - old_log_prob
    # expm1 keeps the digits that ``ratio - 1`` loses: at D = 16,384 a mean log-ratio of 3e-5 has a KL of 4.5e-10.
    return RatioStatistics(joint, torch.expm1(joint) - joint, (joint * advantages.sign() > clip_range).float())


def kl_penalty_loss(kl: Tensor, coefficient: float, dimensions: int, reduction: Reduction) -> Tensor:
    """``coefficient KL_t``, (m,), in the units of the policy losses (DPOK, Fan et al. 2023, equation 8).

    Summed over a trajectory, KL_t is the KL of the whole chain; its gradient is taken through each step's mean alone,
    not through the states that earlier steps lead to.

    Args:
        kl: (m,), joint nats, ``|mu - mu_start|^2 / (2 s^2)`` with gradients.
        coefficient: advantage that one nat costs; advantages have a std of about 1.
        dimensions: D of one latent.
        reduction: ``"mean"`` divides by D as it does the log-probability, so that the coefficient means the same.
    """
    return coefficient * (kl / dimensions if reduction == "mean" else kl)


def weighted_denoising_loss(model_output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """RWR (Black et al. 2023, section 4.2): ``w mean_D((target - output)^2)``, (m,)."""
    return weights * (model_output - target).square().flatten(1).mean(1)

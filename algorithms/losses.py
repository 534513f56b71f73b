"""The losses: DDPO's, the KL penalty, D3PO's, RWR's, those of the forward-process family, and OPSD's pair."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion_gym.transitions import Reduction, Schedule, Transition


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


def masked_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantages: Tensor,
    dimensions: int,
    reduction: Reduction,
    kl: Tensor,
    limit: float,
) -> tuple[Tensor, Tensor]:
    """Return Flow-DPPO's loss (arXiv 2606.11025), ``-A ratio`` of the rows that may move, and which may not, each (m,).

    A row is left out where its KL from the policy that sampled exceeds the limit and its gradient would raise it: where
    A > 0 and ratio > 1, or A < 0 and ratio < 1.

    Args:
        log_prob: (m,), joint log-density with gradients, up to a constant that ``old_log_prob`` has too.
        old_log_prob: (m,), of the policy that sampled.
        advantages: (m,).
        dimensions: D of one latent.
        reduction: ``"mean"`` takes the D-th root of the ratio.
        kl: (m,), joint nats, ``|mu - mu_old|^2 / (2 s^2)``.
        limit: joint nats.
    """
    log_ratio = (log_prob - old_log_prob) / (dimensions if reduction == "mean" else 1)
    masked = (kl > limit) & (advantages * log_ratio > 0)
    return -advantages * log_ratio.exp() * ~masked, masked


def output_scales(transition: Transition) -> Tensor:
    """Return ``|d mu / d output| / std`` of each step, (T,), float32; infinite where the std is 0.

    The gradient of a step's log-density has this factor: of ten DDIM steps of a model that predicts v the ninth counts
    a hundred times the first.
    """
    steps = torch.arange(len(transition.std), device=transition.std.device)
    x_t = torch.zeros(len(steps), 1, device=transition.std.device)
    low, high = (transition(torch.full_like(x_t, value), x_t, steps).mean for value in (0.0, 1e-3))
    return ((high - low).flatten().abs() / 1e-3) / transition.std


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


def preference_loss(best: Tensor, worst: Tensor, beta: float, dimensions: int, reduction: Reduction) -> Tensor:
    """D3PO (Yang et al. 2023): ``-log sigmoid(beta (log rho_best - log rho_worst))``, (m,).

    Its gradient is ``-beta sigmoid(-beta d)`` times that of the difference d: half of beta at the start, where d is 0,
    and next to nothing once d is several times 1 / beta.

    Args:
        best: (m,), log rho of the better images' step, joint nats with gradients.
        worst: (m,), of the worse images'.
        beta: per nat; with "mean" per nat and dimension.
        dimensions: D of one latent.
        reduction: "mean" divides by D, as D3PO's code does.
    """
    difference = (best - worst) / (dimensions if reduction == "mean" else 1)
    return -torch.nn.functional.logsigmoid(beta * difference)


def weighted_denoising_loss(model_output: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """RWR (Black et al. 2023, section 4.2): ``w mean_D((target - output)^2)``, (m,)."""
    return weights * mean_square(model_output - target)


def mean_square(difference: Tensor) -> Tensor:
    """Return the mean square over all axes but the first, (m,)."""
    return difference.square().flatten(1).mean(1)


def time_weights(schedule: Schedule, times: Tensor, error: Tensor, kind: str) -> Tensor:
    """Return the factors (m,) of squared errors of the network's output that make them those of another quantity.

    Args:
        schedule: of the model; its :meth:`Schedule.noised` says what the output is.
        times: (m,), training times.
        error: (m, ...), of the old policy's output, without gradients.
        kind: "output" is 1. "x_0" measures in the predicted x_0, divided by the mean size of its error (DiffusionNFT).
            "min-snr" takes min(SNR, 5) times the squared error of x_0 (Hang et al. 2023, arXiv 2303.09556).
    """
    if kind == "output":
        return torch.ones(len(times), device=error.device)
    one, zero = torch.ones(len(times), device=error.device), torch.zeros(len(times), device=error.device)
    signal, of_x_0 = schedule.noised(one, zero, times)  # the factors of x_0 in x_t and in the target
    noise, of_noise = schedule.noised(zero, one, times)
    of_output = 1 / (of_x_0 - of_noise * signal / noise)  # d x_0 / d output, x_t held fixed
    if kind == "min-snr":
        return of_output.square() * (signal / noise).square().clamp(max=5.0)
    size = (of_output.abs() * error.abs().flatten(1).mean(1)).clamp(min=1e-5)
    return of_output.square() / size


def forward_process_loss(
    output: Tensor,
    old: Tensor,
    target: Tensor,
    advantages: Tensor,
    weights: Tensor,
    surrogate: str,
    clip_range: float,
) -> tuple[Tensor, Tensor]:
    """Return the advantage's term of the forward-process family, and the log-ratio, each (m,).

    With the error ``l = w mean_D((output - target)^2)`` and ``d = output - old``: "regression" is ``A l`` (AWM's loss
    without a ratio), "ratio" ``-A exp(l_old - l)`` with PPO's clipping (AWM, EPG), and "linear"
    ``2 A w mean_D(d (old - target))``, the part of A l that is linear in d (NFT, RAM). All have one gradient at the
    old policy.

    Args:
        output: (m, ...), with gradients.
        old: (m, ...), of the old policy, without.
        target: (m, ...), of the denoising loss.
        advantages: (m,).
        weights: (m,), w.
        surrogate: "ratio", "regression" or "linear".
        clip_range: of the ratio, around 1; 0 is none.
    """
    error, before = weights * mean_square(output - target), weights * mean_square(old - target)
    log_ratio = before - error
    if surrogate == "linear":
        slope = ((output - old) * (old - target)).flatten(1).mean(1)
        return 2 * advantages * weights * slope, log_ratio
    if surrogate == "regression":
        return advantages * error, log_ratio
    ratio = log_ratio.exp()
    if clip_range == 0:
        return -advantages * ratio, log_ratio
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantages * ratio, -advantages * clipped), log_ratio


def pair_loss(prediction: Tensor, old: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """DiffusionNFT's loss (Zheng et al. 2025) of two equally likely targets, for its beta of 1, (m,).

    ``(mean_D((old + d - positive)^2) + mean_D((old - d - negative)^2)) / 2`` with ``d = prediction - old``. Its minimum
    is at ``d = (positive - negative) / 2``.

    Args:
        prediction: (m, ...), with gradients.
        old: (m, ...), of the old policy, without, as the targets.
        positive: (m, ...), what the prediction is drawn to.
        negative: (m, ...), what its mirror image at the old one is drawn to.
    """
    return (mean_square(prediction - positive) + mean_square(2 * old - prediction - negative)) / 2

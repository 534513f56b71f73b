"""Distances to the distributions that tuning should reach, for the exact family, where they are known.

With a reward r the best policy at the price beta for leaving the start p is the tilted distribution
``p*(x) = p(x) exp(r(x) / beta) / Z``: it maximises ``E[r] - beta KL(q | p)`` over all q. The exact family's denoiser is
trained through its mixture's own parameters, so what a run has learned is a mixture too, and its distances have no
sampling error: a closed form for two Gaussians, otherwise Gauss-Hermite quadrature over each component.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from algorithms import DiffusionAlgorithm
from diffusion_gym.models.gaussian_mixture import GaussianMixture
from diffusion_gym.rewards import Linear, Quadratic

_NODES = 48  # per dimension: right to 1e-7 for components apart, to 3e-4 of the KL where they overlap
_TILT_BISECTIONS = 60
_LOG_TILT_BOUND = 12.0  # beta between e^-12 and e^12


@dataclass(frozen=True)
class Tuned:
    """A run's policy, and what it was tuned from and toward."""

    policy: GaussianMixture
    """The mixture that the trained parameters describe."""
    start: GaussianMixture
    """The model's own."""
    reward: Linear | Quadratic

    def target(self, beta: float) -> GaussianMixture:
        """Return ``start(x) exp(reward(x) / beta) / Z``."""
        if isinstance(self.reward, Linear):
            return self.start.tilt_linear(self.reward.direction, beta)
        return self.start.tilt_quadratic(self.reward.target, beta)


def read_tuned(algorithm: DiffusionAlgorithm) -> Tuned:
    """Return an algorithm's present mixture; raise ValueError for another family. Collective: call on every rank."""
    model, reward = algorithm.mdp.model, algorithm.mdp.reward
    denoiser, start = algorithm.policy.whole_denoiser(), getattr(model, "target", None)
    if not isinstance(start, GaussianMixture) or not isinstance(reward, Linear | Quadratic):
        raise ValueError(
            f"distances to exact targets need an exact model with exact-linear or exact-quadratic, got {model.name!r} "
            f"with {type(reward).__name__}."
        )
    if list(algorithm.mdp.prompts) != ["anywhere"]:
        raise ValueError(f"distances to exact targets are for the prompt 'anywhere', got {algorithm.mdp.prompts[:3]}.")
    return Tuned(denoiser.mixture(), start, reward)  # type: ignore[operator]


def expected_reward(mixture: GaussianMixture, reward: Linear | Quadratic) -> float:
    """Return E[r(x)]."""
    if isinstance(reward, Linear):
        return float(mixture.mean @ reward.direction.double())
    d = mixture.means.shape[1]
    gaps = (mixture.means - reward.target.double()).square().sum(1) + d * mixture.stds**2
    return -float(mixture.weights @ gaps)


def kl(p: GaussianMixture, q: GaussianMixture) -> float:
    """Return KL(p | q) = ``sum_k w_k E_k[log p(x) - log q(x)]`` in nats; of mixtures in the plane."""
    if len(p.weights) == len(q.weights) == 1:
        return _gaussian_kl(p, q)
    nodes, weights = _quadrature()
    points = p.means[:, None] + p.stds[:, None, None] * nodes
    gaps = p.log_prob(points.flatten(0, 1)) - q.log_prob(points.flatten(0, 1))
    return max(0.0, float(p.weights @ (gaps.view(len(p.weights), -1) @ weights)))


def _gaussian_kl(p: GaussianMixture, q: GaussianMixture) -> float:
    """Return ``sum_i log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2``."""
    s_p, s_q, d = p.stds[0], q.stds[0], p.means.shape[1]
    gap = (p.means[0] - q.means[0]).square().sum()
    return float(d * ((s_q / s_p).log() + 0.5 * (s_p / s_q) ** 2 - 0.5) + 0.5 * gap / s_q**2)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[Tensor, Tensor]:
    """Return nodes (n, 2) and weights (n,), float64, of the expectation under a standard normal."""
    x, w = (torch.from_numpy(values) for values in np.polynomial.hermite_e.hermegauss(_NODES))
    w = w / w.sum()
    return torch.cartesian_prod(x, x), torch.outer(w, w).flatten()


def equal_reward_tilt(tuned: Tuned) -> GaussianMixture:
    """Return the tilted distribution with the policy's mean reward; the start if the policy's is lower than its own.

    Of all distributions with that reward it is the nearest to the start. Found by bisection on log beta.
    """
    wanted = expected_reward(tuned.policy, tuned.reward)
    if wanted <= expected_reward(tuned.start, tuned.reward):
        return tuned.start
    low, high = -_LOG_TILT_BOUND, _LOG_TILT_BOUND  # the reward falls as beta grows
    for _ in range(_TILT_BISECTIONS):
        middle = (low + high) / 2
        if expected_reward(tuned.target(math.exp(middle)), tuned.reward) > wanted:
            low = middle
        else:
            high = middle
    return tuned.target(math.exp((low + high) / 2))


def kl_from_start(tuned: Tuned, beta: float) -> float:
    """Return KL(policy | start), nats: how far the policy has gone."""
    return kl(tuned.policy, tuned.start)


def excess_kl(tuned: Tuned, beta: float) -> float:
    """Return KL(policy | tilted distribution of equal reward), nats: how much of the KL was not needed.

    By Pythagoras it equals KL(policy | start) - KL(tilted | start): at 0 no distribution with the same reward is nearer
    to the start. It needs no beta, and so judges algorithms without one.
    """
    return kl(tuned.policy, equal_reward_tilt(tuned))


def target_kl(tuned: Tuned, beta: float) -> float:
    """Return KL(policy | target), nats: an algorithm with a KL penalty of beta should bring it to 0."""
    return kl(tuned.policy, tuned.target(beta))


def mean_error(tuned: Tuned, beta: float) -> float:
    """Return the distance of the policy's mean from the target's."""
    return float((tuned.policy.mean - tuned.target(beta).mean).norm())


def mode_weight_error(tuned: Tuned, beta: float) -> float:
    """Return the total variation between the components' weights and the target's: 0 to 1."""
    return 0.5 * float((tuned.policy.weights - tuned.target(beta).weights).abs().sum())


#: Name of a metric -> the distance of a policy at a beta.
DISTANCES: dict[str, Callable[[Tuned, float], float]] = {
    "exact-kl-from-start": kl_from_start,
    "exact-excess-kl": excess_kl,
    "exact-target-kl": target_kl,
    "exact-mean-error": mean_error,
    "exact-mode-weight-error": mode_weight_error,
}

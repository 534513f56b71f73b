"""Where each algorithm must arrive on the exact model, from the mathematics instead of from a run that looked good.

The policy's model is one isotropic Gaussian, so everything is known in closed form: what T sampling steps draw, the
tilted distribution that RWR aims at, the truncated normal of sparse RWR, and the gradient of the expected reward that
DDPO estimates.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms import DDPO, RWR
from diffusion_gym.models.gaussian_mixture import GaussianMixture

MEAN, STD = (0.5, -0.5), 0.5  # of exact-gaussian
IMAGES, STEPS = 4096, 50


def start() -> Tensor:
    """Means and log-std of exact-gaussian, (3,), float64."""
    return torch.tensor([*MEAN, math.log(STD)], dtype=torch.float64)


def sampled(theta: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Mean (2,) and variance of x_0 that the DDIM chain at eta 1 draws from the model theta; differentiable.

    With one Gaussian epsilon = sqrt(1 - a) (x - sqrt(a) m) / v, v = a s^2 + 1 - a: every step is affine in x_t, so
    mean and variance propagate. T steps draw too narrowly: std 0.36, 0.45, 0.49 of 0.5 at T = 10, 50, 500.
    """
    m, s2 = theta[:2], (2 * theta[2]).exp()
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)  # scaled_linear
    a = (1 - root**2).cumprod(0)
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    stride = 1000 // steps
    for t in range(999, 0, -stride):
        a_t, a_p = a[t], a[t - stride] if t >= stride else a[0]
        sigma2 = (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
        v = a_t * s2 + 1 - a_t
        of_epsilon = (1 - a_p - sigma2).sqrt() - (a_p * (1 - a_t) / a_t).sqrt()
        gain = (a_p / a_t).sqrt() + of_epsilon * (1 - a_t).sqrt() / v
        mean = gain * mean - of_epsilon * (1 - a_t).sqrt() * a_t.sqrt() * m / v
        variance = gain**2 * variance + sigma2
    return mean, variance


def sampled_by_flow(theta: Tensor, steps: int, sampler: str, eta: float) -> tuple[Tensor, Tensor]:
    """The same of a flow sampler's chain, t = 1, 1 - 1/T, ..., 0; a last step without density is held fixed.

    With one Gaussian v = (t - (1 - t) s^2) (x - (1 - t) m) / w - m, w = (1 - t)^2 s^2 + t^2.
    """
    mean, variance = torch.zeros(2, dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for k in range(steps):
        t, after = 1 - k / steps, 1 - (k + 1) / steps
        if sampler == "cps":
            std = after * math.sin(eta * math.pi / 2)
            kept = math.sqrt(after**2 - std**2)
            of_x, of_v = 1 - after + kept, (1 - t) * kept - t * (1 - after)
        else:
            sigma2 = eta**2 * t / (1 - (1 - 1 / steps if k == 0 else t))
            std, dt = math.sqrt(sigma2 / steps), -1 / steps
            of_x, of_v = 1 + sigma2 / (2 * t) * dt, (1 + sigma2 * (1 - t) / (2 * t)) * dt
        m, s2 = (theta if std > 0 else theta.detach()).split([2, 1])
        s2 = (2 * s2[0]).exp()
        slope = (t - (1 - t) * s2) / ((1 - t) ** 2 * s2 + t**2)
        gain = of_x + of_v * slope
        mean = gain * mean - of_v * (slope * (1 - t) + 1) * m
        variance = gain**2 * variance + std**2
    return mean, variance


def chain(model: str, theta: Tensor, steps: int, sampler: str = "flow-sde") -> tuple[Tensor, Tensor]:
    """Mean and variance that either family's chain draws at eta 1."""
    return sampled(theta, steps) if model == "exact-gaussian" else sampled_by_flow(theta, steps, sampler, 1.0)


def data(model: str = "exact-gaussian") -> tuple[GaussianMixture, float]:
    """The distribution of RWR's data set, and its std."""
    mean, variance = chain(model, start(), STEPS)
    std = variance.sqrt()
    return GaussianMixture(mean[None], std[None], torch.ones(1).double()), float(std)


def fitted(env: Any, **kwargs: Any) -> tuple[GaussianMixture, float]:
    """RWR's one iteration on 4,096 images with 300 updates; the model it ends at, and the effective share of images."""
    algorithm = RWR(
        env, trainable="full", images_per_iteration=IMAGES, num_envs=IMAGES, images_per_prompt=IMAGES,
        chunk_size=IMAGES, batch_size=2048, updates_per_iteration=300, learning_rate=0.01, **kwargs,
    )  # fmt: skip
    metrics: dict[str, float] = {}
    algorithm._log = metrics.update  # type: ignore[method-assign]
    algorithm.learn(1)
    assert algorithm.iteration == 1
    return algorithm.policy.denoiser.mixture(), metrics["train/effective_sample_share"]


def assert_model(mixture: GaussianMixture, mean: Tensor, std: float, share: float) -> None:
    """Mean and std within 4 standard errors of ``share`` of the images, and 0.01 for the optimizer's own noise."""
    error = std / math.sqrt(share * IMAGES)
    print(mixture.means[0].tolist(), mean.tolist(), float(mixture.stds[0]), std, error)
    assert (mixture.means[0] - mean).abs().max() < 4 * error + 0.01
    assert abs(float(mixture.stds[0]) - std) < 4 * error / 2 + 0.01  # std / sqrt(2 n), and two coordinates


@pytest.mark.parametrize("model", ["exact-gaussian", "exact-flow-gaussian"])
def test_rwr_reaches_the_distribution_tilted_by_a_linear_reward(make_env: Callable, model: str) -> None:
    """exp(z / beta) with z the standardised x_1 and beta 1: the mean moves by exactly one std, the std stays."""
    before, std = data(model)
    tilted = before.tilt_linear(torch.tensor([1.0, 0.0]), beta=1.0 * std)
    assert float(tilted.means[0, 0] - before.means[0, 0]) == pytest.approx(std)
    mixture, share = fitted(make_env(model, reward="exact-linear", steps=STEPS), beta=1.0)
    assert share == pytest.approx(math.exp(-1), abs=0.06)  # E[w]^2 / E[w^2] of w = exp(z)
    assert_model(mixture, tilted.means[0], std, share)


def test_rwr_reaches_the_distribution_tilted_by_a_quadratic_reward(make_env: Callable) -> None:
    """The std of -|x - c|^2 is known (non-central chi-square), so beta 0.5 is a known tilt: narrower, nearer to c."""
    before, std = data()
    target = torch.tensor([1.0, 1.0]).double()
    squared_gap = float((target - before.mean).square().sum())
    reward_std = std**2 * math.sqrt(2 * (2 + 2 * squared_gap / std**2))
    tilted = before.tilt_quadratic(target, beta=0.5 * reward_std)
    assert float(tilted.stds[0]) < 0.82 * std
    mixture, share = fitted(make_env(reward="exact-quadratic", steps=STEPS), beta=0.5)
    assert_model(mixture, tilted.means[0], float(tilted.stds[0]), share)


def test_sparse_rwr_reaches_the_truncated_normal(make_env: Callable) -> None:
    """The best 10 % by x_1: its mean moves by std phi(z) / 0.1 = 1.755 std, its variance falls to 0.169 std^2.

    The model is isotropic, so its variance ends at the average over both coordinates, (0.169 + 1) / 2.
    """
    before, std = data()
    z = 1.2815515655446004  # the normal's 90 % point
    shift = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / 0.1
    assert shift == pytest.approx(1.755, abs=1e-3)
    variance = (1 + z * shift - shift**2 + 1) / 2
    mixture, share = fitted(make_env(reward="exact-linear", steps=STEPS), sparse=True)
    assert share == pytest.approx(0.1, abs=1e-3)
    assert_model(mixture, before.mean + torch.tensor([shift * std, 0.0]), std * math.sqrt(variance), share)


@pytest.mark.parametrize(
    ("model", "sampler", "importance_sampling"),
    [
        ("exact-gaussian", "ddim", True),
        ("exact-gaussian", "ddim", False),
        ("exact-flow-gaussian", "flow-sde", True),
        ("exact-flow-gaussian", "cps", True),
    ],
)
def test_ddpo_goes_to_the_maximum_of_a_quadratic_reward(
    make_env: Callable, model: str, sampler: str, importance_sampling: bool
) -> None:
    """Expected reward alone (no KL) is best at mean = target with a std that shrinks; the distance falls tenfold."""
    target = torch.tensor([1.0, 1.0])
    algorithm = DDPO(
        make_env(model, reward="exact-quadratic", steps=10), trainable="full", sampler=sampler,
        importance_sampling=importance_sampling, updates_per_iteration=4 if importance_sampling else 1,
        images_per_iteration=64, chunk_size=640, learning_rate=0.03 if importance_sampling else 0.1,
    )  # fmt: skip
    algorithm.learn(40 * 64 * 10)
    mixture = algorithm.policy.denoiser.mixture()
    distance = float((mixture.means[0] - target).norm())
    print(distance, float(mixture.stds[0]))
    assert distance < 0.158  # from sqrt(2.5) = 1.58
    assert float(mixture.stds[0]) < 0.5 * STD


class MeanGradients(DDPO):
    """DDPO that hands out each iteration's gradient instead of stepping."""

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        denoiser = self.policy.denoiser
        self.gradient = torch.cat([denoiser.means.grad[0], denoiser.log_stds.grad]).double()
        optimizer.zero_grad()
        return torch.zeros(())


@pytest.mark.parametrize(
    ("model", "sampler", "reward"),
    [
        ("exact-gaussian", "ddim", "exact-linear"),
        ("exact-gaussian", "ddim", "exact-quadratic"),
        ("exact-flow-gaussian", "flow-sde", "exact-quadratic"),
        ("exact-flow-gaussian", "cps", "exact-quadratic"),
    ],
)
def test_ddpos_gradient_is_that_of_the_expected_reward(
    make_env: Callable, sample: Callable, model: str, sampler: str, reward: str
) -> None:
    """24 independent rollouts of 512 images: their mean gradient within 4 of its own standard errors of the exact one.

    The loss is -A log p / D averaged over n T transitions, with A = (r - mean) / std: times -D T std it estimates the
    gradient (the mean's own 1 / n share of each reward biases it by 0.2 %, below the error). T counts the trained
    steps; through a last step without density (CPS) no gradient flows, in the estimate as in the exact one.
    """
    steps, images, rollouts = 10, 512, 24
    by_loss = [
        MeanGradients(
            make_env(model, reward=reward, steps=steps), trainable="full", sampler=sampler,
            importance_sampling=importance_sampling,
            updates_per_iteration=1, images_per_iteration=images, num_envs=images, chunk_size=images * steps,
            advantage_clip=100.0,
        ) for importance_sampling in (False, True)
    ]  # fmt: skip
    trained, estimates = len(by_loss[0].policy.trainable_steps), []
    for k in range(rollouts):
        rollout = sample(by_loss[0], images, images=range(k * images, (k + 1) * images))
        for algorithm in by_loss:
            algorithm._setup_model()  # statistics of this rollout alone
            algorithm.update(rollout)
        torch.testing.assert_close(by_loss[1].gradient, by_loss[0].gradient)  # at ratio 1, equation 4 is equation 3
        estimates.append(-2 * trained * float(rollout.rewards.double().std(correction=0)) * by_loss[0].gradient)
    stacked = torch.stack(estimates)
    error = stacked.std(0) / math.sqrt(rollouts)
    theta = start().requires_grad_()
    mean, variance = chain(model, theta, steps, sampler)
    expected = mean[0] if reward == "exact-linear" else -((mean - 1).square().sum() + 2 * variance)
    exact = torch.autograd.grad(expected, theta)[0]
    print(stacked.mean(0).tolist(), error.tolist(), exact.tolist())
    assert error.norm() < 0.1 * exact.norm()  # otherwise the comparison could not fail
    assert ((stacked.mean(0) - exact).abs() < 4 * error).all()

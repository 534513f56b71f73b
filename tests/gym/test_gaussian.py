"""The Gaussian of one denoising step: density and divergence against torch.distributions and by hand."""

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from diffusion_gym.transitions import Gaussian

SHAPE = (4, 3, 2, 5)


def _gaussian(seed: int, stds: tuple[float, ...] = (0.02, 0.3, 1.0, 4.0)) -> Gaussian:
    mean = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))
    return Gaussian(mean, torch.tensor(stds))


def _noise(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _reference(gaussian: Gaussian) -> Independent:
    return Independent(Normal(gaussian.mean.double(), gaussian.std.double()[:, None, None, None]), 3)


def test_log_prob_is_torchs() -> None:
    gaussian = _gaussian(0)
    latents = gaussian.sample(_noise(1))
    log_prob = gaussian.log_prob(latents)
    assert log_prob.shape == (4,)
    assert log_prob.dtype == torch.float32
    # (x - mean) / std loses digits where the std is small beside x: 6e-8 / 0.02 a dimension.
    torch.testing.assert_close(log_prob.double(), _reference(gaussian).log_prob(latents.double()), rtol=1e-5, atol=1e-3)


def test_log_prob_by_hand() -> None:
    """Two dimensions, std 0.5, half a std and one std away."""
    gaussian = Gaussian(torch.tensor([[[[1.0]], [[2.0]]]]), torch.tensor([0.5]))
    latents = torch.tensor([[[[1.25]], [[1.5]]]])
    expected = -0.5 * (0.5**2 + 1.0**2) - 2 * math.log(0.5) - math.log(2 * math.pi)
    assert gaussian.log_prob(latents).item() == pytest.approx(expected, rel=1e-6)
    assert gaussian.log_prob(latents, "mean").item() == pytest.approx(expected / 2, rel=1e-6)


def test_mean_reduction_is_the_sum_over_the_dimension() -> None:
    gaussian = _gaussian(2)
    latents = gaussian.sample(_noise(3))
    torch.testing.assert_close(gaussian.log_prob(latents, "mean") * 30, gaussian.log_prob(latents, "sum"))


def test_sample_is_mean_plus_std_noise() -> None:
    gaussian, noise = _gaussian(4), _noise(5)
    drawn = gaussian.sample(noise)
    for row in range(4):
        torch.testing.assert_close(drawn[row], gaussian.mean[row] + float(gaussian.std[row]) * noise[row])
    assert torch.equal(gaussian.sample(torch.zeros(SHAPE)), gaussian.mean)


def test_samples_have_the_density() -> None:
    """The mean of log p over its own samples is minus the entropy, D (1 + log 2 pi s^2) / 2."""
    n, std = 20_000, 0.7
    gaussian = Gaussian(torch.ones(n, 2, 1, 1), torch.full((n,), std))
    noise = torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(6))
    entropy = 1 + math.log(2 * math.pi * std**2)
    # Var log p = D / 2 = 1, so the standard error is 0.007; four of them.
    assert gaussian.log_prob(gaussian.sample(noise)).mean().item() == pytest.approx(-entropy, abs=0.03)


def test_kl_is_torchs() -> None:
    p, q = _gaussian(7), _gaussian(8)
    kl = p.kl(q)
    assert kl.shape == (4,)
    torch.testing.assert_close(kl.double(), kl_divergence(_reference(p), _reference(q)), rtol=1e-5, atol=1e-6)
    assert torch.equal(p.kl(p), torch.zeros(4))


@pytest.mark.parametrize("stds", [(0.0,) * 4, (0.02, 0.3, 0.0, 4.0)])
def test_log_prob_of_a_deterministic_row_is_refused(stds: tuple[float, ...]) -> None:
    gaussian = _gaussian(9, stds)
    with pytest.raises(ValueError, match=r"deterministic transition \(std 0\).*has_density.*eta > 0"):
        gaussian.log_prob(gaussian.mean)


def test_kl_of_a_deterministic_row_is_0_and_its_gradient_is_not_nan() -> None:
    """Between equal means |mu - mu'|^2 / 2 s^2 is 0 / 0: the row has no density, so it counts 0."""
    gaussian = _gaussian(10, (0.0, 0.3, 1.0, 4.0))
    mean = gaussian.mean.clone().requires_grad_()
    other = Gaussian(gaussian.mean + 1, gaussian.std)
    kl = Gaussian(mean, gaussian.std).kl(other)
    assert kl[0] == 0
    assert (kl[1:] > 0).all()
    kl.sum().backward()
    assert mean.grad.isfinite().all()
    assert not mean.grad[0].any()


def test_relative_log_prob_is_the_log_prob_and_the_entropy() -> None:
    """And NaN for a row without density, so that it cannot be trained on by mistake."""
    gaussian = _gaussian(13)
    latents = gaussian.sample(_noise(14))
    reference = _reference(gaussian)
    expected = reference.log_prob(latents.double()) + reference.entropy()
    torch.testing.assert_close(gaussian.relative_log_prob(latents).double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(gaussian.entropy().double(), reference.entropy(), rtol=1e-6, atol=1e-5)
    assert Gaussian(gaussian.mean, torch.zeros(4)).relative_log_prob(gaussian.mean).isnan().all()


@pytest.mark.parametrize("shape", [(4, 64, 64), (16, 128, 128)])
@pytest.mark.parametrize("std", [0.02, 0.7])
def test_log_ratios_keep_their_digits_at_real_sizes(shape: tuple[int, ...], std: float) -> None:
    """D = 16,384 and 262,144 (Stable Diffusion, Flux): the joint log-ratio in float32 to 3e-4 of float64's.

    Means 1e-3 std apart per dimension. Summed with the constants of log p it is off by up to .03 nats.
    """
    source = torch.Generator().manual_seed(0)
    mean, noise, shift = (torch.randn(2, *shape, generator=source) for _ in range(3))
    old, stds = Gaussian(mean, torch.full((2,), std)), torch.full((2,), std)
    new = Gaussian(mean + 1e-3 * std * shift, stds)
    latents = old.sample(noise)
    ratio = new.relative_log_prob(latents) - old.relative_log_prob(latents)
    exact = [
        -((latents.double() - g.mean.double()) / torch.tensor(std).double()).square().sum((1, 2, 3)) / 2
        for g in (new, old)
    ]
    expected = exact[0] - exact[1]
    assert ratio.dtype == torch.float32
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(ratio.double(), expected, rtol=1e-3, atol=3e-4)


def test_deterministic_rows_sample_their_mean() -> None:
    gaussian = _gaussian(11, (0.0,) * 4)
    assert torch.equal(gaussian.sample(_noise(12)), gaussian.mean)

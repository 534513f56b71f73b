"""Samplers of few-step models against diffusers' own schedulers: LCM's step, and Euler ancestral's as DDIM's."""

from typing import Any

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler, LCMScheduler
from torch import Tensor

from diffusion_gym.models.schedulers import DIFFUSION_SCHEDULERS, read_scheduler_config
from diffusion_gym.transitions import DDIM, LCM, Gaussian, make_consistency_schedule, make_schedule

SHAPE = (2, 3, 5)
STABLE_DIFFUSION = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def _drawn(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def _check_density(gaussian: Gaussian, x: Tensor) -> None:
    normal = torch.distributions.Normal(gaussian.mean, gaussian.std[:, None, None])
    torch.testing.assert_close(gaussian.log_prob(x), normal.log_prob(x).sum((1, 2)))


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_lcms_step_is_diffusers(steps: int, prediction_type: str) -> None:
    """Also its density, which the last step has not, nor any step at eta 0."""
    scheduler = LCMScheduler(**STABLE_DIFFUSION, prediction_type=prediction_type)
    schedule = make_consistency_schedule(dict(scheduler.config), steps)
    lcm = LCM(schedule)
    assert lcm.has_density.tolist() == [True] * (steps - 1) + [False]
    assert not LCM(schedule, 0.0).has_density.any()
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == schedule.timesteps.tolist()
    for row in range(steps):
        x_t, output = _drawn(row), _drawn(100 + row)
        theirs = scheduler.step(output, scheduler.timesteps[row], x_t, generator=torch.Generator().manual_seed(7))
        gaussian = lcm(output, x_t, torch.full((2,), row))
        x = gaussian.sample(_drawn(7))
        torch.testing.assert_close(x, theirs.prev_sample, rtol=1e-5, atol=1e-5)
        if row < steps - 1:
            _check_density(gaussian, x)


def test_lcms_grid_ends_with_its_training_steps() -> None:
    with pytest.raises(ValueError, match="from 1 to 50, got 51"):
        make_consistency_schedule(dict(LCMScheduler().config), 51)


@pytest.mark.parametrize("steps", [1, 2, 4, 5])
def test_euler_ancestral_is_ddim_at_eta_1(steps: int) -> None:
    """SDXL-Turbo's sampler: in ``x = y / sqrt(1 + sigma^2)`` its step is DDIM's, on the same trailing grid."""
    settings: dict[str, Any] = {**STABLE_DIFFUSION, "timestep_spacing": "trailing"}
    scheduler = EulerAncestralDiscreteScheduler(**settings)
    name = "EulerAncestralDiscreteScheduler"
    config = read_scheduler_config("turbo", name, dict(scheduler.config), DIFFUSION_SCHEDULERS)
    ddim = DDIM(make_schedule(config, steps), 1.0)
    scheduler.set_timesteps(steps)
    trailing = [1000 - 1000 * k // steps - 1 for k in range(steps)]
    assert ddim.schedule.timesteps.tolist() == scheduler.timesteps.tolist() == trailing
    assert ddim.has_density.tolist() == [True] * (steps - 1) + [False]
    for row in range(steps):
        x_t, output = _drawn(row), _drawn(100 + row)
        before, after = (1 + scheduler.sigmas[row : row + 2] ** 2).sqrt()
        source = torch.Generator().manual_seed(7)
        y = scheduler.step(output, scheduler.timesteps[row], x_t * before, generator=source).prev_sample
        gaussian = ddim(output, x_t, torch.full((2,), row))
        x = gaussian.sample(_drawn(7))
        torch.testing.assert_close(x, y / after, rtol=2e-4, atol=2e-4)
        if row < steps - 1:
            _check_density(gaussian, x)

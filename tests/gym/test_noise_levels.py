"""A noise level for each step, and latents of any number of axes, for every sampler."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from diffusion_gym.transitions import Schedule, make_flow_schedule, make_schedule, make_transition

STEPS = 6
SAMPLERS = ("ddim", "ddpm", "flow-sde", "cps")
LEVELS = [0.0, 0.3, 1.0, 0.0, 0.7, 0.0]


def schedule_of(sampler: str, **config: Any) -> Schedule:
    """Return a grid on which every step but perhaps the last can be noisy."""
    if sampler in ("flow-sde", "cps"):
        return make_flow_schedule({"shift": 3.0}, STEPS, 1)
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
    scheduler = DDIMScheduler(**betas, set_alpha_to_one=False, timestep_spacing="trailing")
    return make_schedule({**scheduler.config, **config}, STEPS)


def draws(*shape: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    output, x_t, noise = (torch.randn(*shape, generator=source) for _ in range(3))
    return output, x_t, noise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_step_is_the_step_of_a_run_at_its_level(sampler: Any) -> None:
    """The level of one step changes nothing in the others, and one number is that number for every step."""
    schedule, (output, x_t, _), index = schedule_of(sampler), draws(STEPS, 4), torch.arange(STEPS)
    mixed = make_transition(schedule, sampler, LEVELS)(output, x_t, index)
    for level in set(LEVELS):
        whole = make_transition(schedule, sampler, [level] * STEPS)(output, x_t, index)
        at = torch.tensor([step for step in range(STEPS) if LEVELS[step] == level])
        assert torch.equal(mixed.mean[at], whole.mean[at])
        assert torch.equal(mixed.std[at], whole.std[at])
        scalar = make_transition(schedule, sampler, 1.0 if sampler == "ddpm" else level)(output, x_t, index)
        if sampler != "ddpm" or level == 1.0:
            assert torch.equal(scalar.mean, whole.mean)
            assert torch.equal(scalar.std, whole.std)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_step_of_level_0_has_no_density(sampler: Any) -> None:
    transition = make_transition(schedule_of(sampler), sampler, LEVELS)
    assert transition.has_density.tolist() == [level > 0 for level in LEVELS]


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ddpms_levels_in_closed_form(variance_type: str) -> None:
    """``mean = sqrt(a_p) x_0 + sqrt(1 - a_p - s^2) epsilon`` with s the level times the posterior's std."""
    schedule: Any = schedule_of("ddpm", variance_type=variance_type)
    output, x_t, _ = (value.double() for value in draws(STEPS, 4))
    a = schedule.alphas_cumprod.double()[schedule.timesteps][:, None]
    a_p = torch.cat([a[1:], torch.ones(1, 1).double()])
    posterior = (1 - a_p) / (1 - a) * (1 - a / a_p)
    level = torch.tensor(LEVELS).double()[:, None]
    x_0 = (x_t - (1 - a).sqrt() * output) / a.sqrt()
    mean = a_p.sqrt() * x_0 + (1 - a_p - level**2 * posterior).clamp(min=0).sqrt() * output
    own = 1 - a / a_p if variance_type == "fixed_large" else posterior
    actual = make_transition(schedule, "ddpm", LEVELS)(output.float(), x_t.float(), torch.arange(STEPS))
    torch.testing.assert_close(actual.mean, mean.float(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(actual.std, (level * own.clamp(min=0).sqrt())[:, 0].float())


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("levels", [[0.5] * 5, [], [0.5] * 5 + [-0.1], [0.5] * 5 + [math.nan], [0.5] * 5 + [math.inf]])
def test_levels_that_do_not_fit_are_refused(sampler: Any, levels: list[float]) -> None:
    range_, number = (
        r"eta must .* one number for all steps or one for each of the 6, got \[",
        r"eta has \d noise levels for 6",
    )
    with pytest.raises(ValueError, match=range_ if len(levels) == 6 else number):
        make_transition(schedule_of(sampler), sampler, levels)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("shape", [(12,), (2, 2, 3, 1, 1), (3, 2, 2)])
def test_latents_of_any_number_of_axes(sampler: Any, shape: tuple[int, ...]) -> None:
    """Vectors, or frames of latents, get the values of the same numbers laid out as (c, h, w)."""
    schedule, values = schedule_of(sampler), draws(STEPS, 3, 2, 2)
    transition, index = make_transition(schedule, sampler, LEVELS), torch.arange(STEPS)
    images = transition(*values[:2], index)
    output, x_t, noise = (value.reshape(STEPS, *shape) for value in values)
    other = transition(output, x_t, index)
    drawn = other.sample(noise)
    assert torch.equal(drawn.flatten(1), images.sample(values[2]).flatten(1))
    dense = transition.has_density
    expected = images.relative_log_prob(drawn.reshape(STEPS, 3, 2, 2))
    assert torch.equal(other.relative_log_prob(drawn)[dense], expected[dense])
    assert torch.equal(other.kl(transition(-output, x_t, index)), images.kl(transition(-values[0], values[1], index)))
    times = schedule.draw_times(STEPS, torch.Generator().manual_seed(1))
    for flat, usual in zip(schedule.noised(x_t, noise, times), schedule.noised(*values[1:], times), strict=True):
        assert torch.equal(flat.flatten(1), usual.flatten(1))

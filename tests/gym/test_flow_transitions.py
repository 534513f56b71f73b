"""Flow-SDE and CPS: the grid and the noiseless step against diffusers' scheduler, the noisy ones against the papers."""

import math
import re
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from diffusion_gym.transitions import CPS, FlowSchedule, FlowSDE, Gaussian, make_flow_schedule, make_transition

STEPS = (1, 2, 10, 50)
SHAPE = (2, 3, 5)
#: Scheduler configurations: Stable Diffusion 3's, Flux's, and what else ``set_timesteps`` knows (but for scipy's beta).
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sd3": {"shift": 3.0},
    "odd-shift": {"shift": 1.15},
    "flux-dev": {"shift": 3.0, "use_dynamic_shifting": True},
    "linear": {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    "terminal": {"shift_terminal": 0.1},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
}


def _steps(config: dict[str, Any]) -> tuple[int, ...]:
    """One step has no meaning where the grid must end at a terminal time of its own."""
    return STEPS[1:] if "shift_terminal" in config else STEPS


each_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def _theirs(config: dict[str, Any], steps: int, tokens: int = 1024, equal: bool = False) -> Any:
    """Return diffusers' scheduler, set as the Stable Diffusion 3 (or with equal steps the Flux) pipeline sets it."""
    scheduler = FlowMatchEulerDiscreteScheduler(**config)
    mu = calculate_shift(tokens) if scheduler.config.use_dynamic_shifting else None
    sigmas = [1 - k / steps for k in range(steps)] if equal else None
    scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)
    return scheduler


def _ours(config: dict[str, Any], steps: int, tokens: int = 1024, equal: bool = False) -> FlowSchedule:
    return make_flow_schedule(FlowMatchEulerDiscreteScheduler(**config).config, steps, tokens, equal)


def _draw(n: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    velocity, x_t, noise = (torch.randn(n, *SHAPE, generator=generator) for _ in range(3))
    return velocity, x_t, noise


@pytest.mark.parametrize("tokens", [64, 4096])
@pytest.mark.parametrize("equal", [False, True])
@each_config
def test_grid_is_diffusers(config: dict[str, Any], equal: bool, tokens: int) -> None:
    for steps in _steps(config):
        theirs, ours = _theirs(config, steps, tokens, equal), _ours(config, steps, tokens, equal)
        torch.testing.assert_close(ours.sigmas, theirs.sigmas, rtol=0, atol=1e-7)
        torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=0, atol=1e-4)
        assert (ours.num_inference_steps, ours.num_train_timesteps) == (steps, 1000)
        assert ours.timesteps.dtype == torch.float32
        assert ours.sigmas[-1] == 0


@pytest.mark.parametrize("sampler", [FlowSDE, CPS])
@each_config
def test_without_noise_it_is_diffusers_euler_step(config: dict[str, Any], sampler: Any) -> None:
    for steps in _steps(config):
        theirs, transition = _theirs(config, steps), sampler(_ours(config, steps), eta=0.0)
        velocity, x_t, noise = _draw(steps)
        expected = torch.cat(
            [theirs.step(velocity[[k]], t, x_t[[k]]).prev_sample for k, t in enumerate(theirs.timesteps)]
        )
        gaussian = transition(velocity, x_t, torch.arange(steps))
        torch.testing.assert_close(gaussian.sample(noise), expected, rtol=1e-6, atol=1e-6)
        assert not transition.has_density.any()
        with pytest.raises(ValueError, match="deterministic transition"):
            gaussian.log_prob(expected)


def _flow_grpo_step(sigmas: Tensor, k: int, v: Tensor, x: Tensor, eta: float) -> tuple[Tensor, float]:
    """Flow-GRPO's equation 9 in float64, with the cap of its code; returns mean and std."""
    t, after = float(sigmas[k]), float(sigmas[k + 1])
    dt = after - t
    sigma_t = eta * math.sqrt(t / (1 - (float(sigmas[1]) if t == 1 else t)))
    mean = x.double() * (1 + sigma_t**2 / (2 * t) * dt) + v.double() * (1 + sigma_t**2 * (1 - t) / (2 * t)) * dt
    return mean, sigma_t * math.sqrt(-dt)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.2])
@pytest.mark.parametrize("name", ["plain", "sd3", "flux-dev", "terminal", "karras"])
def test_flow_sde_is_the_papers_equation(name: str, eta: float) -> None:
    for steps in _steps(CONFIGS[name]):
        schedule = _ours(CONFIGS[name], steps)
        velocity, x_t, _ = _draw(steps, seed=1)
        gaussian = FlowSDE(schedule, eta)(velocity, x_t, torch.arange(steps))
        for k in range(steps):
            mean, std = _flow_grpo_step(schedule.sigmas, k, velocity[k], x_t[k], eta)
            torch.testing.assert_close(gaussian.mean[k].double(), mean, rtol=2e-6, atol=2e-6)
            assert float(gaussian.std[k]) == pytest.approx(std, rel=1e-6)


def test_flow_sdes_cap_at_one_is_the_second_time() -> None:
    """At t = 1, with the times 1, 0.75, ...: sigma = eta / sqrt(1 - 0.75), std = sigma sqrt(0.25) = eta."""
    transition = FlowSDE(_ours({}, 4, equal=True), eta=0.6)
    assert transition.std.tolist() == pytest.approx(
        [0.6, 0.6 * math.sqrt(3 / 4), 0.6 * math.sqrt(1 / 4), 0.6 * math.sqrt(1 / 3 / 4)], rel=1e-6
    )


@each_config
def test_every_step_of_flow_sde_has_a_density_and_all_but_the_last_of_cps(config: dict[str, Any]) -> None:
    for steps in _steps(config):
        schedule = _ours(config, steps)
        velocity, x_t, noise = _draw(steps)
        for transition, dense in ((FlowSDE(schedule), steps), (CPS(schedule), steps - 1)):
            assert transition.has_density.tolist() == [k < dense for k in range(steps)]
            gaussian = transition(velocity, x_t, torch.arange(steps))
            assert torch.isfinite(gaussian.sample(noise)).all()
            scored = Gaussian(gaussian.mean[:dense], gaussian.std[:dense])
            assert torch.isfinite(scored.log_prob(scored.sample(noise[:dense]))).all()


@pytest.mark.parametrize("eta", [0.0, 0.25, 0.7, 1.0])
@pytest.mark.parametrize("name", ["plain", "sd3", "flux-dev", "karras"])
def test_cps_preserves_the_coefficients(name: str, eta: float) -> None:
    """From an exact x_t = (1 - t) x_0 + t x_1 the step lands on (1 - t') x_0 plus noise of level t' in all.

    The noise is sqrt(t'^2 - s^2) of the old x_1 and s = t' sin(eta pi / 2) of new noise.
    """
    for steps in STEPS:
        schedule = _ours(CONFIGS[name], steps)
        x_0, x_1, _ = _draw(steps, seed=2)
        t, after = (part.double()[:, None, None, None] for part in (schedule.sigmas[:-1], schedule.sigmas[1:]))
        gaussian = CPS(schedule, eta)((x_1 - x_0), ((1 - t) * x_0 + t * x_1).float(), torch.arange(steps))
        std = after * math.sin(eta * math.pi / 2)
        torch.testing.assert_close(gaussian.std.double(), std.flatten(), rtol=1e-6, atol=1e-7)
        mean = (1 - after) * x_0 + (after**2 - std**2).clamp(min=0).sqrt() * x_1
        torch.testing.assert_close(gaussian.mean.double(), mean, rtol=1e-5, atol=1e-5)


def test_shift_that_rounds_beyond_one_is_still_capped() -> None:
    """1.15 * 1 / (1 + 0.15 * 1) in float32 may be 1 + 1e-7, where sigma_t would be the root of a negative number."""
    for shift in torch.linspace(0.5, 7.0, 66).tolist():
        transition = FlowSDE(_ours({"shift": shift}, 10, equal=True), eta=0.7)
        assert torch.isfinite(transition.std).all()
        assert float(transition.std[0]) == pytest.approx(0.7, rel=1e-4)  # sqrt(0.49 / (1 - t_1) (1 - t_1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sampler", [FlowSDE, CPS])
def test_half_precision_output_gives_float32(dtype: torch.dtype, sampler: Any) -> None:
    transition = sampler(_ours({}, 10))
    velocity, x_t, noise = _draw(4, seed=2)
    index = torch.arange(4)
    plain = transition(velocity.to(dtype).float(), x_t, index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = transition(velocity.to(dtype), x_t, index)
        log_prob = cast.log_prob(cast.sample(noise))
    assert cast.mean.dtype == log_prob.dtype == torch.float32
    assert torch.equal(log_prob, plain.log_prob(plain.sample(noise)))


def test_nothing_of_a_transition_is_saved() -> None:
    transition = FlowSDE(_ours({}, 10))
    assert transition.state_dict() == {}
    assert list(transition.parameters()) == []


def test_forward_process_is_diffusers() -> None:
    """Noised latents are ``scale_noise``'s at the grid's own times; the target is noise - x_0 at all of them."""
    theirs, ours = _theirs({"shift": 3.0}, 10), _ours({"shift": 3.0}, 10)
    x_0, noise, _ = _draw(10)
    x_t, target = ours.noised(x_0, noise, ours.timesteps)
    torch.testing.assert_close(x_t, theirs.scale_noise(x_0, theirs.timesteps, noise), rtol=1e-6, atol=1e-6)
    assert torch.equal(target, noise - x_0)


@pytest.mark.parametrize("name", ["plain", "sd3", "flux-dev", "linear"])
def test_training_times_are_uniform_times_shifted_as_the_grid(name: str) -> None:
    """The quantiles of the draws are the grid of equal steps, which is uniform times shifted: t(0.9), ..., t(0.1)."""
    schedule = _ours(CONFIGS[name], 10, equal=True)
    times = schedule.draw_times(40_000, torch.Generator().manual_seed(0))
    assert times.dtype == torch.float32
    assert 0 <= float(times.min()) < float(times.max()) <= 1000
    for k in range(1, 10):
        # Standard error of a share of 40,000: at most 0.0025.
        assert float((times < schedule.timesteps[k]).float().mean()) == pytest.approx(1 - k / 10, abs=0.01)


def test_step_index_maps_times_back() -> None:
    schedule = _ours({"shift": 3.0}, 10)
    assert schedule.step_index(schedule.timesteps).tolist() == list(range(10))
    assert schedule.step_index(torch.tensor([0.0, 1000.0])).tolist() == [10, 0]
    with pytest.raises(ValueError, match=r"timestep 500\.0 is not on the grid .*same num_inference_steps"):
        schedule.step_index(torch.tensor([500.0]))


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True])
def test_bad_number_of_steps(steps: Any) -> None:
    with pytest.raises(ValueError, match="num_inference_steps must be an integer from 1 to 1000, got"):
        _ours({}, steps)


def test_one_step_with_a_terminal_time_is_refused() -> None:
    with pytest.raises(ValueError, match=r"with shift_terminal one step is not defined.*take 2"):
        _ours({"shift_terminal": 0.1}, 1)


def test_inverted_sigmas_are_refused() -> None:
    with pytest.raises(ValueError, match=r"invert_sigmas is not supported.*Set it to False"):
        _ours({"invert_sigmas": True}, 10)


@pytest.mark.parametrize(("sampler", "eta"), [(FlowSDE, -0.1), (FlowSDE, math.inf), (FlowSDE, math.nan)])
def test_bad_eta_of_flow_sde(sampler: Any, eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must be finite and at least 0 \(Flow-SDE"):
        sampler(_ours({}, 10), eta)


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_bad_eta_of_cps(eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\].*got"):
        CPS(_ours({}, 10), eta)


def test_samplers_by_name() -> None:
    schedule = _ours({}, 10)
    assert isinstance(make_transition(schedule, "auto", 0.5), FlowSDE)
    assert isinstance(make_transition(schedule, "cps", 0.5), CPS)
    for sampler in ("ddim", "ddpm"):
        expected = rf"sampler '{sampler}' does not fit this flow-matching model; .* \['flow-sde', 'cps'\]"
        with pytest.raises(ValueError, match=expected):
            make_transition(schedule, sampler, 1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [{"shift": 1e9}, {"shift": 1e-9}, {"shift": 0.0}, {"shift": -3.0}, {"shift": 1e9, "shift_terminal": 0.1}],
    ids=str,
)
@pytest.mark.parametrize("equal", [False, True])
def test_a_grid_whose_times_collapse_is_refused(config: dict[str, Any], equal: bool) -> None:
    """Steps from a time to itself would have a std of 0, or NaN."""
    shift = re.escape(f"(shift {config['shift']:g})")
    told = rf"the 10 times of this flow model's grid must fall from at most 1 to 0, got .*{shift}"
    with pytest.raises(ValueError, match=told):
        _ours(config, 10, 1024, equal)


def test_a_grid_made_by_hand_must_fall_too() -> None:
    for sigmas in ([1.0, 1.0, 0.0], [1.0, math.nan, 0.0], [0.5, 0.7, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 0.0]):
        with pytest.raises(ValueError, match="must fall from at most 1 to 0"):
            FlowSchedule(torch.tensor(sigmas[:2]) * 1000, 1000, torch.tensor(sigmas), 1.0)

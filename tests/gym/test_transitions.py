"""Transitions against diffusers' own schedulers, given the same noise, over a grid of configurations."""

import copy
import itertools
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from torch import Tensor

from diffusion_gym.transitions import DDIM, DDPM, PREDICTION_TYPES, Schedule, Transition, make_schedule, make_transition

SPACINGS = ("leading", "trailing", "linspace")
STEPS = (1, 4, 10, 50, 1000)
ETAS = (0.0, 0.3, 1.0)
SHAPE = (2, 3, 5)
CLIP_RANGE = 1.5

# diffusers' step is run twice. In float64 (same table of alphas) it is the formula itself, and our float32 result has
# to agree to a few float32 roundings of numbers of order 1. As users run it, in float32, diffusers forms 1 - a_t / a_p
# from numbers near 1, an error of 6e-8 / (1 - a_t / a_p): up to 6e-4 of the variance of the last steps of its T = 1000
# grid (their std is 0.01), and 1e-4 of the coefficient of an x_0 that reaches 200 unclipped at the noisy end.
EXACT = {"rtol": 2e-6, "atol": 2e-6}
AS_USED = {"rtol": 2e-4, "atol": 3e-4}


def _config(**changes: Any) -> dict[str, Any]:
    base = {"clip_sample": False, "clip_sample_range": CLIP_RANGE}
    return dict(DDIMScheduler(**{**base, **changes}).config)


def _fits(spacing: str, offset: int, steps: int) -> bool:
    """Leading spacing with offset 1 and every training time asks for time 1,000, which no scheduler has."""
    return not (spacing == "leading" and offset == 1 and steps == 1000)


def _some_steps(steps: int) -> list[int]:
    """All steps of short grids; of long ones both ends, where the numbers are hardest, and the middle."""
    return list(range(steps)) if steps <= 10 else [0, 1, steps // 2, steps - 3, steps - 2, steps - 1]


def _double(scheduler: Any) -> Any:
    """Return a scheduler that computes in float64 on its own float32 table of alphas."""
    twin = copy.deepcopy(scheduler)
    twin.alphas_cumprod = twin.alphas_cumprod.double()
    if hasattr(twin, "final_alpha_cumprod"):
        twin.final_alpha_cumprod = twin.final_alpha_cumprod.double()
    return twin


def _ddim_steps(scheduler: Any, rows: list[int], output: Tensor, x_t: Tensor, noise: Tensor, eta: float) -> Tensor:
    """Step each row with diffusers, at its own time."""
    return torch.cat(
        [
            scheduler.step(
                output[[k]], scheduler.timesteps[row], x_t[[k]], eta=eta, variance_noise=noise[[k]]
            ).prev_sample
            for k, row in enumerate(rows)
        ]
    )


def _ddpm_steps(scheduler: Any, rows: list[int], output: Tensor, x_t: Tensor) -> Tensor:
    """Step each row with diffusers, which draws the noise itself (see :func:`_ddpm_noise`)."""
    generators = [torch.Generator().manual_seed(row) for row in rows]
    return torch.cat(
        [
            scheduler.step(output[[k]], scheduler.timesteps[row], x_t[[k]], generator=generators[k]).prev_sample
            for k, row in enumerate(rows)
        ]
    )


def _ddpm_noise(rows: list[int], dtype: torch.dtype) -> Tensor:
    """Return the noise of :func:`_ddpm_steps`, drawn again in the model output's dtype (draws differ by dtype)."""
    return torch.cat(
        [torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(row), dtype=dtype) for row in rows]
    )


def _assert_near(actual: Tensor, expected: Tensor, tolerance: dict[str, float], label: str) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), **tolerance, msg=lambda text: f"{label}: {text}")


def _draw(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    output, x_t, noise = (torch.randn(n, *SHAPE, generator=generator) for _ in range(3))
    return output, x_t, noise


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddim_agrees_with_diffusers(prediction_type: str, spacing: str, steps: int) -> None:
    for offset, alpha_to_one, clip, eta in itertools.product((0, 1), (False, True), (False, True), ETAS):
        if not _fits(spacing, offset, steps):
            continue
        case = {"steps_offset": offset, "set_alpha_to_one": alpha_to_one, "clip_sample": clip}
        config = _config(prediction_type=prediction_type, timestep_spacing=spacing, **case)
        theirs = DDIMScheduler.from_config(config)
        theirs.set_timesteps(steps)
        ours = DDIM(make_schedule(config, steps), eta)
        assert torch.equal(ours.schedule.timesteps, theirs.timesteps)
        rows = _some_steps(steps)
        output, x_t, noise = _draw(len(rows), seed=steps)
        actual = ours(output, x_t, torch.tensor(rows)).sample(noise)
        label = f"{case}, eta {eta}"
        expected = _ddim_steps(theirs, rows, output, x_t, noise, eta)
        _assert_near(actual, expected, AS_USED, label)
        exact = _ddim_steps(_double(theirs), rows, output.double(), x_t.double(), noise.double(), eta)
        _assert_near(actual, exact, EXACT, label)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddpm_agrees_with_diffusers(prediction_type: str, spacing: str, steps: int, variance_type: str) -> None:
    for offset, clip in itertools.product((0, 1), (False, True)):
        if not _fits(spacing, offset, steps):
            continue
        case = {"steps_offset": offset, "clip_sample": clip}
        config = _config(prediction_type=prediction_type, timestep_spacing=spacing, **case) | {
            "variance_type": variance_type
        }
        theirs = DDPMScheduler.from_config(config)
        theirs.set_timesteps(steps)
        ours = DDPM(make_schedule(config, steps))
        assert torch.equal(ours.schedule.timesteps, theirs.timesteps)
        rows = _some_steps(steps)
        output, x_t, _ = _draw(len(rows), seed=steps)
        gaussian = ours(output, x_t, torch.tensor(rows))
        expected = _ddpm_steps(theirs, rows, output, x_t)
        _assert_near(gaussian.sample(_ddpm_noise(rows, torch.float32)), expected, AS_USED, str(case))
        exact = _ddpm_steps(_double(theirs), rows, output.double(), x_t.double())
        _assert_near(gaussian.sample(_ddpm_noise(rows, torch.float64).float()), exact, EXACT, str(case))


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
def test_zero_terminal_snr(spacing: str) -> None:
    """With v prediction the noisiest time may have a = 0 (no signal at all): as diffusers has it, and finite."""
    config = _config(prediction_type="v_prediction", timestep_spacing=spacing, rescale_betas_zero_snr=True)
    theirs = DDIMScheduler.from_config(config)
    theirs.set_timesteps(10)
    assert theirs.alphas_cumprod[theirs.timesteps[0]] == 0
    output, x_t, noise = _draw(10, seed=0)
    rows, schedule = list(range(10)), make_schedule(config, 10)
    # eta 0.9: at eta 1 diffusers takes the root of 1 - a_p - std^2, which rounds below 0 here, and returns NaN.
    expected = _ddim_steps(_double(theirs), rows, output.double(), x_t.double(), noise.double(), 0.9)
    _assert_near(DDIM(schedule, 0.9)(output, x_t, torch.tensor(rows)).sample(noise), expected, EXACT, spacing)
    assert torch.isfinite(DDIM(schedule, 1.0)(output, x_t, torch.tensor(rows)).sample(noise)).all()


@pytest.mark.parametrize("scheduler", [PNDMScheduler, EulerDiscreteScheduler, DDPMScheduler])
def test_any_schedulers_config_gives_diffusers_ddim_grid(scheduler: Any) -> None:
    config = scheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1).config
    theirs = DDIMScheduler.from_config(config)
    theirs.set_timesteps(20)
    ours = make_schedule(config, 20)
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert torch.equal(ours.alphas_cumprod, theirs.alphas_cumprod)
    assert ours.num_inference_steps == 20
    assert ours.num_train_timesteps == 1000


def _expected_zero_steps(sampler: str, spacing: str, offset: int, alpha_to_one: bool, steps: int) -> set[int]:
    """The deterministic steps at eta > 0, only the last can be one."""
    last_time = {"leading": offset, "linspace": 0, "trailing": round(1000 / steps) - 1}[spacing]
    ends_clean = sampler == "ddpm" or alpha_to_one  # a_prev = 1
    stands_still = last_time == 0  # prev clamps to time 0, which is t itself
    return {steps - 1} if ends_clean or stands_still else set()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("steps", [1, 4, 10, 50, 1000])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_density_is_missing_exactly_on_deterministic_steps(spacing: str, steps: int, sampler: Any) -> None:
    for offset, alpha_to_one in itertools.product((0, 1), (False, True)):
        if not _fits(spacing, offset, steps):
            continue
        config = _config(timestep_spacing=spacing, steps_offset=offset, set_alpha_to_one=alpha_to_one)
        transition = make_transition(make_schedule(config, steps), sampler, eta=0.5)
        missing = set((~transition.has_density).nonzero().flatten().tolist())
        assert missing == _expected_zero_steps(sampler, spacing, offset, alpha_to_one, steps), (offset, alpha_to_one)
        assert torch.equal(transition.has_density, transition.std > 0)
        assert torch.isfinite(transition.std).all()


def test_density_is_missing_everywhere_at_eta_zero() -> None:
    transition = DDIM(make_schedule(_config(), 10), eta=0.0)
    assert not transition.has_density.any()


@pytest.mark.parametrize("offset", [0, 1])
def test_fixed_large_variance_keeps_noise_in_the_last_step_unless_it_is_time_zero(offset: int) -> None:
    config = _config(steps_offset=offset) | {"variance_type": "fixed_large"}
    assert DDPM(make_schedule(config, 10)).has_density.tolist() == [True] * 9 + [offset == 1]


def test_ddim_at_eta_one_is_ddpm_in_std_and_mean() -> None:
    """On a grid whose neighbours are the previous times, and unclipped, the two samplers are one Gaussian."""
    schedule = make_schedule(_config(timestep_spacing="leading"), 10)
    output, x_t, _ = _draw(9, seed=1)
    index = torch.arange(9)
    ddim, ddpm = DDIM(schedule, 1.0)(output, x_t, index), DDPM(schedule)(output, x_t, index)
    torch.testing.assert_close(ddim.std, ddpm.std, rtol=1e-6, atol=0)
    torch.testing.assert_close(ddim.mean, ddpm.mean, rtol=1e-4, atol=1e-5)


def test_previous_time_on_linspace_is_not_the_next_grid_time() -> None:
    transition = DDIM(make_schedule(_config(timestep_spacing="linspace"), 10))
    assert transition.schedule.timesteps.tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert transition.prev_timesteps.tolist() == [899, 788, 677, 566, 455, 344, 233, 122, 11, -100]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_output_gives_float32(dtype: torch.dtype) -> None:
    """The network may compute in half precision; from there on everything is float32, under autocast too."""
    transition = DDIM(make_schedule(_config(), 10))
    output, x_t, noise = _draw(4, seed=2)
    index = torch.arange(4)
    plain = transition(output.to(dtype).float(), x_t, index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = transition(output.to(dtype), x_t, index)
        log_prob = cast.log_prob(cast.sample(noise))
    assert cast.mean.dtype == log_prob.dtype == torch.float32
    assert torch.equal(cast.mean, plain.mean)
    assert torch.equal(log_prob, plain.log_prob(plain.sample(noise)))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_predictions_are_consistent(prediction_type: str) -> None:
    """Whatever the network predicts, x_t = sqrt(a) x_0 + sqrt(1 - a) epsilon comes back."""
    schedule = make_schedule(_config(prediction_type=prediction_type), 10)
    output, x_t, _ = _draw(10, seed=3)
    x_0, epsilon = DDIM(schedule).predict(output, x_t, torch.arange(10).reshape(-1, *[1] * (x_t.ndim - 1)))
    a = schedule.alphas_cumprod[schedule.timesteps][:, None, None, None]
    torch.testing.assert_close(a.sqrt() * x_0 + (1 - a).sqrt() * epsilon, x_t, rtol=1e-5, atol=1e-5)


def test_gradient_reaches_the_model_output() -> None:
    output, x_t, noise = _draw(3, seed=4)
    output.requires_grad_(True)
    gaussian = DDIM(make_schedule(_config(), 10))(output, x_t, torch.arange(3))
    gaussian.log_prob(gaussian.sample(noise).detach()).sum().backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()
    assert (output.grad.flatten(1).abs().sum(1) > 0).all()


def test_nothing_of_a_transition_is_saved() -> None:
    """Its tables follow from the configuration, so they belong in no checkpoint."""
    transition: Transition = DDIM(make_schedule(_config(), 10))
    assert transition.state_dict() == {}
    assert list(transition.parameters()) == []


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_forward_process_is_diffusers(prediction_type: str) -> None:
    """Noised latents are ``add_noise``'s; v is ``get_velocity``'s; at the first, a middle and the last time."""
    config = _config(beta_schedule="scaled_linear", prediction_type=prediction_type)
    scheduler = DDIMScheduler.from_config(config)
    x_0, noise, _ = _draw(3, seed=1)
    times = torch.tensor([0, 500, 999])
    x_t, target = make_schedule(config, 10).noised(x_0, noise, times)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_0, noise, times))
    velocity = scheduler.get_velocity(x_0, noise, times)
    expected = {"epsilon": noise, "v_prediction": velocity, "sample": x_0}[prediction_type]
    torch.testing.assert_close(target, expected)


def test_training_times_are_uniform_over_all_of_them() -> None:
    times = make_schedule(_config(), 10).draw_times(50_000, torch.Generator().manual_seed(0))
    assert times.dtype == torch.int64
    assert (int(times.min()), int(times.max())) == (0, 999)
    # Each tenth of the times gets a tenth of the draws; the standard error is 67.
    assert (torch.bincount(times // 100) - 5_000).abs().max() < 4 * 67


def test_step_index_maps_times_back() -> None:
    schedule = make_schedule(_config(steps_offset=1), 10)
    assert schedule.step_index(schedule.timesteps.float()).tolist() == list(range(10))
    assert schedule.step_index(torch.tensor([901.0, 0.0, 1.0])).tolist() == [0, 10, 9]
    for ends_at_0 in (_config(timestep_spacing="leading"), _config(timestep_spacing="linspace")):
        assert make_schedule(ends_at_0, 10).step_index(torch.zeros(1)).tolist() == [9]
    with pytest.raises(ValueError, match=r"timestep 500\.0 is not on the grid \[901, .*same num_inference_steps"):
        schedule.step_index(torch.tensor([901.0, 500.0]))


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, True, "10", None])
def test_bad_number_of_steps(steps: Any) -> None:
    with pytest.raises(ValueError, match="num_inference_steps must be an integer from 1 to 1000, got"):
        make_schedule(_config(), steps)


def test_leading_grid_that_leaves_the_training_times_is_refused() -> None:
    """With offset 1 and T = 1,000 the first time would be 1,000, one beyond the last: say so, not IndexError."""
    with pytest.raises(ValueError, match="num_inference_steps"):
        DDIM(make_schedule(_config(timestep_spacing="leading", steps_offset=1), 1000))


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
def test_zero_terminal_snr_without_v_prediction_never_gives_nan(prediction_type: str) -> None:
    """x_0 = (x_t - epsilon) / 0 has no value: either the schedule is refused, or the result is finite."""
    config = _config(prediction_type=prediction_type, timestep_spacing="trailing", rescale_betas_zero_snr=True)
    try:
        transition = DDIM(make_schedule(config, 10))
    except ValueError:
        return
    output, x_t, _ = _draw(10, seed=5)
    assert torch.isfinite(transition(output, x_t, torch.arange(10)).mean).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"prediction_type": "flow"},
            r"prediction_type must be one of \('epsilon', 'v_prediction', 'sample'\), got 'flow'",
        ),
        (
            {"trained_betas": [0.1] * 10},
            "1000 training times an a_t .*, got 10 .*Check betas and trained_betas",
        ),
        ({"thresholding": True}, "dynamic thresholding is not supported.*Set thresholding=False"),
    ],
)
def test_bad_scheduler_config(changes: dict[str, Any], message: str) -> None:
    config = _config() | changes
    config.pop("_use_default_values")  # what is named there diffusers leaves out
    with pytest.raises(ValueError, match=message):
        make_schedule(config, 10)


@pytest.fixture
def schedule() -> Schedule:
    """Ten steps of the default schedule."""
    return make_schedule(_config(), 10)


@pytest.mark.parametrize("eta", [-0.1, 1.1, float("nan")])
def test_bad_eta(schedule: Schedule, eta: float) -> None:
    with pytest.raises(ValueError, match=r"eta must lie in \[0, 1\].*got"):
        DDIM(schedule, eta)


def test_bad_sampler(schedule: Schedule) -> None:
    with pytest.raises(
        ValueError,
        match=r"sampler 'euler' does not fit this diffusion model; expected 'auto' or one of \['ddim', 'ddpm'\]",
    ):
        make_transition(schedule, "euler", 1.0)  # type: ignore[arg-type]


def test_learned_variance_is_refused_by_ddpm_alone() -> None:
    schedule = make_schedule(_config() | {"variance_type": "learned"}, 10)
    DDIM(schedule)
    with pytest.raises(ValueError, match="'fixed_small' and 'fixed_large', got 'learned'; use the DDIM sampler"):
        DDPM(schedule)


def test_a_noise_schedule_out_of_bounds_is_refused() -> None:
    """Betas beyond 1 make an a_t below 0, whose root is NaN."""
    with pytest.raises(ValueError, match=r"must give each of the 1000 training times an a_t in \[0, 1\].*Check betas"):
        make_schedule(_config(beta_start=1.2, beta_end=1.5), 10)

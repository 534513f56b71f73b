"""The exact flow family: its velocity against quadrature, and what each sampler draws against the known answer."""

import pytest
import torch
from torch import Tensor

from diffusion_gym import load_model
from diffusion_gym.models.exact import EXACT_FLOW_MODELS, EXACT_MODELS, ExactFlowModel
from diffusion_gym.models.gaussian_mixture import GaussianMixture
from diffusion_gym.transitions import FlowSchedule, Transition, make_transition

#: Unequal in everything, so that no symmetry hides a mistake.
UNEVEN = GaussianMixture(
    torch.tensor([[0.0, 1.5], [1.5, 0.0], [-1.0, -1.0]], dtype=torch.float64),
    torch.tensor([0.2, 0.35, 0.5], dtype=torch.float64),
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
)
PROMPTS = ("up", "right", "corner")


@pytest.fixture
def model() -> ExactFlowModel:
    """Return a flow model of the uneven mixture."""
    return ExactFlowModel("uneven", UNEVEN, PROMPTS, torch.device("cpu"))


def _one(mean: float, std: float) -> ExactFlowModel:
    """Return a flow model of one Gaussian on the line."""
    one = torch.ones(1, dtype=torch.float64)
    return ExactFlowModel("line", GaussianMixture(mean * one[:, None], std * one, one), ("it",), torch.device("cpu"))


@pytest.mark.parametrize("prompt", ["anywhere", "", "up", "corner"])
@pytest.mark.parametrize("time", [123.25, 500.0, 999.5])
def test_velocity_is_the_posterior_mean_by_quadrature(model: ExactFlowModel, time: float, prompt: str) -> None:
    """v = (x_t - E[x_0 | x_t]) / t, with E over p(x_0) N(x_t; (1 - t) x_0, t^2) on a grid."""
    t = time / 1000
    line = torch.linspace(-6, 6, 401, dtype=torch.float64)
    x_0 = torch.cartesian_prod(line, line)
    k = [PROMPTS.index(prompt)] if prompt in PROMPTS else [0, 1, 2]
    prior = GaussianMixture(UNEVEN.means[k], UNEVEN.stds[k], UNEVEN.weights[k] / UNEVEN.weights[k].sum())
    clean = torch.tensor([[0.1, 1.4], [1.2, 0.3], [-0.7, -0.9]], dtype=torch.float64)
    noise = torch.tensor([[0.5, -0.7], [-1.1, 0.2], [0.3, 0.8]], dtype=torch.float64)
    x_t = (1 - t) * clean + t * noise
    expected = []
    for x in x_t:
        weight = prior.log_prob(x_0) - 0.5 * (x - (1 - t) * x_0).square().sum(1) / t**2
        expected.append((x - weight.softmax(0) @ x_0) / t)
    conditioning = {name: value.expand(3, -1, -1) for name, value in model.encode_prompts([prompt]).items()}
    with torch.no_grad():
        actual = model.build_denoiser()(x_t.float()[..., None, None], torch.full((3,), time), conditioning)
    torch.testing.assert_close(actual[..., 0, 0].double(), torch.stack(expected), rtol=1e-4, atol=2e-5)


def test_grid_is_equal_steps(model: ExactFlowModel) -> None:
    schedule = model.schedule(4)
    assert isinstance(schedule, FlowSchedule)
    assert schedule.sigmas.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert schedule.timesteps.tolist() == [1000.0, 750.0, 500.0, 250.0]


def test_gradients_are_finite_though_masks_are_minus_infinity(model: ExactFlowModel) -> None:
    denoiser = model.build_denoiser()
    conditioning = {name: value.expand(4, -1, -1) for name, value in model.encode_prompts(["up"]).items()}
    times = torch.tensor([0.0, 1.0, 500.0, 1000.0])
    denoiser(torch.randn(4, 2, 1, 1), times, conditioning).square().sum().backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("name", sorted(EXACT_FLOW_MODELS))
def test_same_mixtures_as_the_diffusion_models(name: str) -> None:
    model = load_model(name)
    assert isinstance(model, ExactFlowModel)
    assert model.target is EXACT_MODELS[name.replace("flow-", "")][0]
    torch.testing.assert_close(model.build_denoiser().mixture().means, model.target.means)


def chain_variance(model: ExactFlowModel, transition: Transition) -> float:
    """Variance of x_0 that the transition draws on the line, exactly: with one Gaussian every step is affine in x_t.

    Each step's slope is read off the real transition and the real denoiser, at the points 0 and 1.
    """
    steps = torch.arange(transition.schedule.num_inference_steps)
    denoiser, times = model.build_denoiser().double(), transition.schedule.timesteps
    mask = model.encode_prompts(["it"])["prompt_embedding"].expand(len(steps), -1, -1).double()
    points = [torch.full((len(steps), 1, 1, 1), x, dtype=torch.float64) for x in (0.0, 1.0)]
    with torch.no_grad():
        at_0, at_1 = (transition(denoiser(x, times, {"prompt_embedding": mask}), x, steps).mean for x in points)
    variance = 1.0
    for slope, std in zip((at_1 - at_0).flatten().tolist(), transition.std.tolist(), strict=True):
        variance = slope**2 * variance + std**2
    return variance


def _variance(sampler: str, eta: float, steps: int) -> float:
    model = _one(0.3, 0.5)
    return chain_variance(model, make_transition(model.schedule(steps), sampler, eta))  # type: ignore[arg-type]


def test_flow_sde_converges_to_the_target_and_cps_does_not() -> None:
    """The target's variance is 0.25. At Flow-GRPO's noise level 0.7: 0.251 and 0.180 after 1,000 steps."""
    assert _variance("flow-sde", 0.7, 1000) == pytest.approx(0.251, abs=5e-4)
    assert _variance("cps", 0.7, 1000) == pytest.approx(0.180, abs=5e-4)


@pytest.mark.parametrize("eta", [0.3, 0.7, 1.0])
def test_flow_sdes_distance_to_the_ode_falls_with_the_steps(eta: float) -> None:
    """The two differ by less than 0.06, 0.008 and 0.002 at 10, 100 and 1,000 steps; the cap at t = 1 lasts longest."""
    for steps, bound in ((10, 0.06), (100, 0.008), (1000, 0.002)):
        assert abs(_variance("flow-sde", eta, steps) - _variance("flow-sde", 0.0, steps)) < bound
        assert _variance("flow-sde", 0.0, 1000) == pytest.approx(0.25, abs=1e-3)


def test_cps_narrows_the_more_the_noisier_and_is_the_ode_without_noise() -> None:
    """The table of docs/flow.md; more steps do not mend it."""
    for steps, table in ((10, (0.186, 0.176, 0.137, 0.095)), (1000, (0.249, 0.235, 0.180, 0.124))):
        variances = [_variance("cps", eta, steps) for eta in (0.0, 0.3, 0.7, 1.0)]
        assert variances == pytest.approx(table, abs=6e-4)
        assert variances[0] == pytest.approx(_variance("flow-sde", 0.0, steps), rel=1e-6)


def _sample(model: ExactFlowModel, sampler: str, eta: float, steps: int, n: int) -> Tensor:
    """Draw n points (n, d), float64, with the real denoiser, transition and noise."""
    generator = torch.Generator().manual_seed(0)
    schedule, denoiser = model.schedule(steps), model.build_denoiser()
    transition = make_transition(schedule, sampler, eta)  # type: ignore[arg-type]
    conditioning = {name: value.expand(n, -1, -1) for name, value in model.encode_prompts(["anywhere"]).items()}
    x = torch.randn(n, *model.latent_shape, generator=generator)
    with torch.no_grad():
        for step, time in enumerate(schedule.timesteps):
            gaussian = transition(denoiser(x, time.expand(n), conditioning), x, torch.full((n,), step))
            x = gaussian.sample(torch.randn(x.shape, generator=generator))
    return x[..., 0, 0].double()


@pytest.mark.parametrize(("sampler", "eta"), [("flow-sde", 0.0), ("flow-sde", 0.7), ("cps", 0.7)])
def test_samples_have_the_chains_variance(sampler: str, eta: float) -> None:
    """20,000 samples of 50 steps: the estimate's standard error is 0.01 of the variance."""
    expected = _variance(sampler, eta, 50)
    points = _sample(_one(0.3, 0.5), sampler, eta, 50, 20_000)
    assert float(points.var()) == pytest.approx(expected, rel=0.04)


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 100), (0.7, 300)])
def test_sampling_reproduces_the_mixture(model: ExactFlowModel, eta: float, steps: int) -> None:
    """The ODE and Flow-SDE turn noise into the mixture: weights, means and stds of its modes."""
    points = _sample(model, "flow-sde", eta, steps, 6000)
    # A point belongs to a mode with the posterior probability of that mode: moments without hard borders.
    one = torch.ones(1, dtype=torch.float64)
    modes = [GaussianMixture(UNEVEN.means[[k]], UNEVEN.stds[[k]], one) for k in range(3)]
    share = (torch.stack([mode.log_prob(points) for mode in modes], 1) + UNEVEN.weights.log()).softmax(1)
    weights = share.mean(0)
    means = share.T @ points / share.sum(0)[:, None]
    stds = ((share[..., None] * (points[:, None] - means).square()).sum(0).mean(1) / share.sum(0)).sqrt()
    # Standard errors: 0.006 of a weight, 0.5 / sqrt(1,800) = 0.012 of a mean; the rest is the steps' bias.
    torch.testing.assert_close(weights, UNEVEN.weights, rtol=0, atol=0.03)
    torch.testing.assert_close(means, UNEVEN.means, rtol=0, atol=0.05)
    torch.testing.assert_close(stds, UNEVEN.stds, rtol=0.06, atol=0)

"""The exact family: its denoiser, tilted targets and samples against quadrature, and its code for points."""

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from diffusion_gym import LoRAConfig, choices, load_model
from diffusion_gym.models.exact import EXACT_FLOW_MODELS, EXACT_MODELS, ExactDenoiser, ExactModel, read_points
from diffusion_gym.models.gaussian_mixture import GaussianMixture
from diffusion_gym.transitions import make_transition

NAMES = sorted([*EXACT_MODELS, *EXACT_FLOW_MODELS])

#: Unequal in everything, so that no symmetry hides a mistake.
UNEVEN = GaussianMixture(
    torch.tensor([[0.0, 1.5], [1.5, 0.0], [-1.0, -1.0]], dtype=torch.float64),
    torch.tensor([0.2, 0.35, 0.5], dtype=torch.float64),
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
)
PROMPTS = ("up", "right", "corner")


def test_the_command_line_knows_the_same_names() -> None:
    assert sorted(choices.EXACT_MODELS) == NAMES


@pytest.fixture
def model() -> ExactModel:
    """Return a model of the uneven mixture."""
    return ExactModel("uneven", UNEVEN, PROMPTS, torch.device("cpu"))


def _grid(half_width: float = 6.0, points: int = 801) -> tuple[Tensor, float]:
    """Return points of the plane (m, 2), float64, and the area of each: the trapezoidal rule, exact for Gaussians."""
    line = torch.linspace(-half_width, half_width, points, dtype=torch.float64)
    x, y = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], 1), float((line[1] - line[0]) ** 2)


def _density(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """Density at x (m, 2), written out."""
    squared = (x[:, None] - mixture.means[None]).square().sum(-1)
    kernels = (-0.5 * squared / mixture.stds**2).exp() / (2 * torch.pi * mixture.stds**2)
    return kernels @ mixture.weights


def test_density_is_a_density() -> None:
    x, area = _grid()
    assert _density(UNEVEN, x).sum().item() * area == pytest.approx(1.0, abs=1e-9)
    some = x[::997]
    torch.testing.assert_close(UNEVEN.log_prob(some).exp(), _density(UNEVEN, some), rtol=1e-9, atol=1e-300)


def test_samples_follow_the_mixture() -> None:
    x = UNEVEN.sample(40_000, torch.Generator().manual_seed(0))
    # Standard errors are below 0.006.
    torch.testing.assert_close(x.mean(0), UNEVEN.mean, rtol=0, atol=0.025)
    nearest = torch.cdist(x, UNEVEN.means).argmin(1)
    assert (nearest == 0).double().mean().item() == pytest.approx(0.2, abs=0.02)


@pytest.mark.parametrize("prompt", ["anywhere", "", *PROMPTS])
@pytest.mark.parametrize("time", [0, 50, 400, 999])
def test_denoiser_is_the_posterior_mean_by_quadrature(model: ExactModel, time: int, prompt: str) -> None:
    """epsilon = (x_t - sqrt(a) E[x_0 | x_t]) / sqrt(1 - a), with E over p(x_0) N(x_t; sqrt(a) x_0, 1 - a) on a grid."""
    a = float(model.schedule(1000).alphas_cumprod[time])
    x_0, _ = _grid()
    if prompt in PROMPTS:
        k = PROMPTS.index(prompt)
        prior = _density(GaussianMixture(UNEVEN.means[[k]], UNEVEN.stds[[k]], torch.ones(1, dtype=torch.float64)), x_0)
    else:
        prior = _density(UNEVEN, x_0)
    clean = torch.tensor([[0.1, 1.4], [1.2, 0.3], [-0.7, -0.9]], dtype=torch.float64)
    noise = torch.tensor([[0.5, -0.7], [-1.1, 0.2], [0.3, 0.8]], dtype=torch.float64)
    x_t = a**0.5 * clean + (1 - a) ** 0.5 * noise
    expected = []
    for x in x_t:
        weight = prior.log() - 0.5 * (x - a**0.5 * x_0).square().sum(1) / (1 - a)
        expected.append((x - a**0.5 * (weight.softmax(0) @ x_0)) / (1 - a) ** 0.5)
    conditioning = {name: value.expand(3, -1, -1) for name, value in model.encode_prompts([prompt]).items()}
    with torch.no_grad():
        actual = model.build_denoiser()(x_t.float()[..., None, None], torch.full((3,), time), conditioning)
    # float32 at time 0: sqrt(1 - a) = 0.03 divides differences of numbers of order 1, a loss of 30 roundings.
    torch.testing.assert_close(actual[..., 0, 0].double(), torch.stack(expected), rtol=1e-4, atol=2e-5)


def test_denoiser_rows_have_their_own_time_and_prompt(model: ExactModel) -> None:
    denoiser = model.build_denoiser()
    x = torch.randn(4, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    times, prompts = torch.tensor([10, 500, 999, 0]), ["up", "", "corner", "right"]
    together = denoiser(x, times, model.encode_prompts(prompts))
    for row in range(4):
        alone = denoiser(x[[row]], times[[row]], model.encode_prompts([prompts[row]]))
        torch.testing.assert_close(together[[row]], alone)


@pytest.mark.parametrize("prompt", ["anywhere", "up"])
def test_denoiser_gradients_are_finite_though_masks_are_minus_infinity(model: ExactModel, prompt: str) -> None:
    denoiser = model.build_denoiser()
    conditioning = {name: value.expand(4, -1, -1) for name, value in model.encode_prompts([prompt]).items()}
    denoiser(torch.randn(4, 2, 1, 1), torch.tensor([0, 100, 500, 999]), conditioning).square().sum().backward()
    for name, parameter in denoiser.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def _tilted(mixture: GaussianMixture, kind: str, beta: float) -> tuple[GaussianMixture, Tensor]:
    """Return the closed-form tilted mixture, and p(x) exp(r(x) / beta) normalised on the grid."""
    vector = torch.tensor([0.7, -0.4])
    x, area = _grid()
    if kind == "linear":
        closed, reward = mixture.tilt_linear(vector, beta), x @ vector.double()
    else:
        closed, reward = mixture.tilt_quadratic(vector, beta), -(x - vector.double()).square().sum(1)
    unnormalised = _density(mixture, x) * (reward / beta).exp()
    return closed, unnormalised / (unnormalised.sum() * area)


@pytest.mark.parametrize("beta", [0.3, 1.0, 10.0])
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_tilted_target_by_quadrature(kind: str, beta: float) -> None:
    closed, expected = _tilted(UNEVEN, kind, beta)
    x, _ = _grid()
    torch.testing.assert_close(_density(closed, x), expected, rtol=1e-6, atol=1e-9)
    assert closed.weights.sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
def test_tilted_mean_by_importance_sampling(kind: str) -> None:
    x, vector = UNEVEN.sample(200_000, torch.Generator().manual_seed(0)), torch.tensor([0.7, -0.4], dtype=torch.float64)
    reward = x @ vector if kind == "linear" else -(x - vector).square().sum(1)
    closed = UNEVEN.tilt_linear(vector, 1.0) if kind == "linear" else UNEVEN.tilt_quadratic(vector, 1.0)
    # Effective sample size above 20,000 and a spread of 1: a standard error of 0.007.
    torch.testing.assert_close(reward.softmax(0) @ x, closed.mean, rtol=0, atol=0.025)


@pytest.mark.parametrize(("sampler", "eta", "steps"), [("ddpm", 1.0, 500), ("ddim", 1.0, 500), ("ddim", 0.0, 100)])
def test_sampling_reproduces_the_mixture(model: ExactModel, sampler: str, eta: float, steps: int) -> None:
    """Many small steps of the exact denoiser turn noise into the mixture: weights, means and stds of its modes."""
    n, generator = 6000, torch.Generator().manual_seed(0)
    schedule, denoiser = model.schedule(steps), model.build_denoiser()
    transition = make_transition(schedule, sampler, eta)  # type: ignore[arg-type]
    conditioning = {name: value.expand(n, -1, -1) for name, value in model.encode_prompts(["anywhere"]).items()}
    x = torch.randn(n, 2, 1, 1, generator=generator)
    with torch.no_grad():
        for step, time in enumerate(schedule.timesteps.tolist()):
            output = denoiser(x, torch.full((n,), time), conditioning)
            x = transition(output, x, torch.full((n,), step)).sample(torch.randn(x.shape, generator=generator))
    points = x[..., 0, 0].double()
    # A point belongs to a mode with the posterior probability of that mode: moments without hard borders.
    kernels = torch.stack([_density(_component(k), points) for k in range(3)], 1) * UNEVEN.weights
    share = kernels / kernels.sum(1, keepdim=True)
    weights = share.mean(0)
    means = share.T @ points / share.sum(0)[:, None]
    stds = ((share[..., None] * (points[:, None] - means).square()).sum(0).mean(1) / share.sum(0)).sqrt()
    # Standard errors: 0.006 of a weight, 0.5 / sqrt(1,800) = 0.012 of a mean; the rest is the steps' bias.
    torch.testing.assert_close(weights, UNEVEN.weights, rtol=0, atol=0.03)
    torch.testing.assert_close(means, UNEVEN.means, rtol=0, atol=0.05)
    torch.testing.assert_close(stds, UNEVEN.stds, rtol=0.06, atol=0)


def _component(k: int) -> GaussianMixture:
    return GaussianMixture(UNEVEN.means[[k]], UNEVEN.stds[[k]], torch.ones(1, dtype=torch.float64))


def test_denoiser_describes_its_mixture(model: ExactModel) -> None:
    denoiser = model.build_denoiser()
    whole = denoiser.mixture()
    for actual, expected in zip(
        (whole.means, whole.stds, whole.weights), (UNEVEN.means, UNEVEN.stds, UNEVEN.weights), strict=True
    ):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-7)
    one = denoiser.mixture(model.encode_prompts(["right"])["prompt_embedding"][0])
    assert one.weights.tolist() == [0.0, 1.0, 0.0]


def test_building_a_denoiser_copies_the_parameters(model: ExactModel) -> None:
    first = model.build_denoiser()
    with torch.no_grad():
        first.means.add_(1.0)
    torch.testing.assert_close(model.build_denoiser().means.double(), UNEVEN.means, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(model.target.means, UNEVEN.means, rtol=0, atol=0)


def test_picture_code_round_trip(model: ExactModel) -> None:
    """16 bits over [-8, 8]: half a level is 8 / 65,535 = 1.22e-4."""
    points = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 16 - 8
    images = model.decode(points[..., None, None])
    assert images.shape == (500, 3, 8, 16)
    assert images.dtype == torch.uint8
    assert (read_points(images) - points).abs().max() <= 8 / 65_535 + 1e-6
    latents = model.encode_images(images)
    assert latents.shape == (500, 2, 1, 1)
    assert latents.dtype == torch.float32
    assert torch.equal(model.decode(latents), images)


def test_picture_code_by_hand(model: ExactModel) -> None:
    """Red is the high byte, green the low byte, blue 128; each coordinate fills a block of 8 x 8."""
    image = model.decode(torch.tensor([[1.0, -8.0]])[..., None, None])[0].numpy()
    level = round((1.0 + 8) / 16 * 65_535)
    expected = np.empty((3, 8, 16), dtype=np.uint8)
    expected[:, :, :8] = np.array([level >> 8, level & 255, 128])[:, None, None]
    expected[:, :, 8:] = np.array([0, 0, 128])[:, None, None]
    assert np.array_equal(image, expected)


def test_picture_code_saturates(model: ExactModel) -> None:
    images = model.decode(torch.tensor([[100.0, -9.0], [8.0, -8.0]])[..., None, None])
    assert read_points(images).tolist() == [[8.0, -8.0], [8.0, -8.0]]


@pytest.mark.parametrize("name", NAMES)
def test_loaded_by_name_shared_copied_and_pickled_as_one_object(name: str) -> None:
    model = load_model(name)
    assert load_model(name) is model
    assert load_model(model) is model
    assert copy.deepcopy(model) is model
    assert copy.deepcopy({"model": [model]})["model"][0] is model
    assert pickle.loads(pickle.dumps(model)) is model


@pytest.mark.parametrize("name", NAMES)
def test_shapes_agree(name: str) -> None:
    model = load_model(name)
    embedding = model.encode_prompts(["anywhere", ""])["prompt_embedding"]
    assert embedding.shape == (2, *model.conditioning_shapes["prompt_embedding"])
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, torch.ones_like(embedding))
    x = torch.zeros(2, *model.latent_shape)
    assert model.decode(x).shape == (2, *model.image_shape)
    assert model.encode_images(model.decode(x)).shape == x.shape
    assert model.build_denoiser()(x, torch.tensor([3, 4]), {"prompt_embedding": embedding}).shape == x.shape


def test_mixtures_prompts_name_their_components() -> None:
    model = load_model("exact-mixture")
    masks = model.encode_prompts(["north", "east", "south", "west"])["prompt_embedding"][:, 0]
    assert torch.equal(masks, torch.eye(4))
    denoiser = model.build_denoiser()
    assert isinstance(denoiser, ExactDenoiser)
    assert denoiser.mixture(masks[[1]]).mean.tolist() == pytest.approx([1.5, 0.0])


def test_unknown_prompt_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"knows the prompts \['', 'anywhere', 'centre'\], got 'a cat'"):
        load_model("exact-gaussian").encode_prompts(["centre", "a cat"])


def test_lora_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match="no linear layers for LoRA; train its full weights"):
        load_model("exact-gaussian").build_denoiser(LoRAConfig())


def test_export_holds_the_parameters(model: ExactModel, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    denoiser = model.build_denoiser()
    with torch.no_grad():
        denoiser.means.add_(0.25)
    model.export(denoiser, tmp_path, None)
    saved = load_file(tmp_path / "exact_model.safetensors")
    assert set(saved) == {"means", "log_stds", "logits"}
    assert torch.equal(saved["means"], denoiser.means.detach())


@pytest.mark.parametrize("sizes", [{"rank": 0}, {"alpha": 0.0}, {"targets": ()}])
def test_bad_lora_sizes(sizes: dict) -> None:
    with pytest.raises(ValueError, match=r"expected lora\.rank >= 1, lora\.alpha > 0 and at least one of lora\.t"):
        LoRAConfig(**sizes)

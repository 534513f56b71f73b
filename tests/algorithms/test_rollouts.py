"""Rollouts: what is stored, that it is what was sampled, and that the split over environments changes nothing."""

from collections.abc import Callable, Sequence

import pytest
import torch

from algorithms import DDPO, DDPOConfig
from algorithms.rollouts import Rollout

PROMPTS = ["north", "south", "anywhere"]


def ddpo(make_env: Callable, num_envs: int, **kwargs: object) -> DDPO:
    """DDPO on the exact mixture, with sampling chunks of 4 rows."""
    env = make_env("exact-mixture", prompts=PROMPTS, **kwargs)
    return DDPO(env, trainable="full", chunk_size=4, num_envs=num_envs, images_per_iteration=16)


def assert_same_bits(a: Rollout, b: Rollout) -> None:
    """Every tensor of two rollouts, NaN equal to NaN."""
    for name in ("latents", "log_probs", "rewards", "images"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=0, equal_nan=True, msg=name)
    assert a.prompts == b.prompts


def assert_same_to_rounding(a: Rollout, b: Rollout) -> None:
    """Of other chunks: latents to float32 rounding over the steps, pictures to a level."""
    assert a.prompts == b.prompts
    torch.testing.assert_close(a.latents, b.latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(a.log_probs, b.log_probs, rtol=1e-3, atol=1e-3, equal_nan=True)
    assert (a.images.int() - b.images.int()).abs().max() <= 1


def test_number_of_environments_does_not_change_a_bit_where_chunks_are_the_same(
    make_env: Callable, sample: Callable
) -> None:
    """16 images by 4, 8 or 16 at a time, in chunks of 4."""
    whole = sample(ddpo(make_env, 16), 16)
    for num_envs in (4, 8):
        assert_same_bits(sample(ddpo(make_env, num_envs), 16), whole)


@pytest.mark.parametrize("num_envs", [1, 4])
def test_number_of_environments_changes_a_pipelines_images_by_rounding_alone(
    make_env: Callable, sample: Callable, tiny_sd: str, num_envs: int
) -> None:
    """Text encoder, UNet and VAE are kernels whose rounding depends on the batch's shape; 8 different prompts."""
    animals = ["cat", "dog", "horse", "monkey", "rabbit", "zebra", "a spider on a bike", "bird"]

    def draw(n: int) -> Rollout:
        env = make_env(tiny_sd, steps=3, reward="compressibility", prompts=animals)
        config = DDPOConfig(num_envs=n, images_per_iteration=8)
        return sample(DDPO(env, config, trainable="full", chunk_size=4, guidance_scale=3.0), 8)

    assert_same_to_rounding(draw(num_envs), draw(8))
    if num_envs == 4:
        assert_same_bits(draw(num_envs), draw(8))


@pytest.mark.parametrize("num_envs", [1, 3])
def test_number_of_environments_does_not_change_the_shipped_models_pictures(make_env: Callable, num_envs: int) -> None:
    """Decoded 1, 3 or 24 at a time: a picture one grey level off is another JPEG size, and so another reward."""
    env = make_env("emoji-animals", steps=2, reward="compressibility", prompts=["cat"]).unwrapped
    latents = 0.8 * torch.randn(24, *env.mdp.model.latent_shape, generator=torch.Generator().manual_seed(0))
    whole = env.score(latents, ["cat"] * 24)
    parts = [env.score(part, ["cat"] * len(part)) for part in latents.split(num_envs)]
    assert torch.equal(torch.cat([part.rewards for part in parts]), whole.rewards)
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)


def test_a_later_image_is_the_same_in_any_rollout(make_env: Callable, sample: Callable) -> None:
    """Noise is keyed by the image's global index, so images 8 to 15 need no images 0 to 7."""
    algorithm = ddpo(make_env, 4)
    whole, part = sample(algorithm, 16), sample(algorithm, 8, images=range(8, 16))
    # Prompts go round in threes, so those of a rollout that starts at image 8 differ; the starts do not.
    assert torch.equal(part.latents[0], whole.latents[0, 8:])
    assert not torch.equal(part.latents[0], whole.latents[0, :8])


def test_endpoint_rollouts_equal_whole_ones(make_env: Callable, sample: Callable) -> None:
    """An algorithm that needs the finished images alone gets the same ones, and stores T + 1 times less."""
    algorithm = ddpo(make_env, 4)
    whole, ends = sample(algorithm, 16), sample(algorithm, 16, whole_trajectory=False)
    assert ends.latents.shape == (1, 16, 2, 1, 1)
    assert ends.log_probs.shape == (0, 16)
    assert torch.equal(ends.final_latents, whole.final_latents)
    assert torch.equal(ends.rewards, whole.rewards)
    assert torch.equal(ends.images, whole.images)


def test_shapes_and_types(make_env: Callable, sample: Callable) -> None:
    rollout = sample(ddpo(make_env, 4), 16)
    assert rollout.latents.shape == (5 + 1, 16, 2, 1, 1)
    assert rollout.latents.dtype == rollout.log_probs.dtype == rollout.rewards.dtype == torch.float32
    assert rollout.log_probs.shape == (5, 16)
    assert rollout.conditioning["prompt_embedding"].shape == (16, 1, 4)
    assert rollout.rewards.shape == (16,)
    assert rollout.images.shape == (16, 3, 8, 16)
    assert rollout.images.dtype == torch.uint8
    assert len(rollout) == 16
    assert not rollout.latents.requires_grad


def test_log_probs_are_those_of_an_independent_normal(make_env: Callable, sample: Callable) -> None:
    """Mean and std of every step from the DDIM formulas in float64, density from torch.distributions."""
    algorithm = ddpo(make_env, 16)
    rollout, denoiser = sample(algorithm, 16), algorithm.policy.denoiser
    table = algorithm.mdp.model.scheduler_config
    betas = torch.linspace(table["beta_start"] ** 0.5, table["beta_end"] ** 0.5, 1000, dtype=torch.float64) ** 2
    a = (1 - betas).cumprod(0)
    for step, t in enumerate(range(999, 0, -200)):  # trailing spacing with T = 5
        a_t, a_p = a[t], a[t - 200] if t >= 200 else a[0]
        x_t, x_p = rollout.latents[step].double(), rollout.latents[step + 1].double()
        times = torch.full((16,), t)
        with torch.no_grad():
            epsilon = denoiser(rollout.latents[step], times, rollout.conditioning).double()
        s = ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).sqrt()
        mean = a_p.sqrt() * (x_t - (1 - a_t).sqrt() * epsilon) / a_t.sqrt() + (1 - a_p - s**2).sqrt() * epsilon
        normal = torch.distributions.Normal(mean, s)
        expected = (normal.log_prob(x_p) + normal.entropy()).sum((1, 2, 3))
        # z = (x_p - mean) / s is of order 1 and exact to float32's 6e-8 |x| / s, with s of at least 0.03 here.
        torch.testing.assert_close(rollout.log_probs[step].double(), expected, rtol=0, atol=1e-4)


def test_steps_without_density_have_no_log_prob(make_env: Callable, sample: Callable) -> None:
    """Ancestral DDPM ends deterministically: NaN there, which cannot be trained on by mistake, and nowhere else."""
    algorithm = DDPO(make_env(), trainable="full", sampler="ddpm", num_envs=4, images_per_iteration=4)
    log_probs = sample(algorithm, 4).log_probs
    assert log_probs[-1].isnan().all()
    assert log_probs[:-1].isfinite().all()


def test_rewards_are_the_environments(make_env: Callable, sample: Callable) -> None:
    """-|x_0 - (1, 1)|^2, from the stored latents; the picture's 16-bit code is good to 1.2e-4 a coordinate."""
    rollout = sample(ddpo(make_env, 4), 16)
    expected = -(rollout.final_latents.flatten(1) - 1).square().sum(1)
    torch.testing.assert_close(rollout.rewards, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("beside", [False, True])
def test_the_last_round_may_be_smaller(make_env: Callable, sample: Callable, beside: bool) -> None:
    """6 images in rounds of 4 are those of one round of 6, with a reward query an image."""
    queries: list[int] = []

    def counted(images: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        queries.append(len(prompts))
        return images.float().mean((1, 2, 3))

    rollouts = [sample(ddpo(make_env, n, reward=counted), 6, score_beside=beside) for n in (4, 8)]
    assert queries == [4, 2, 6]
    assert_same_bits(*rollouts)


def test_images_that_no_update_would_have_are_refused(make_env: Callable, sample: Callable) -> None:
    with pytest.raises(ValueError, match="16 images cannot be assigned to 3 updates equally; choose a divisor"):
        sample(ddpo(make_env, 16), 16, updates=3)

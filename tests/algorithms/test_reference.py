"""The KL to the starting model: by hand, bit for bit at the start, as a penalty with a known fixed point, its cost."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import pytest
import torch
from torch import Tensor

from algorithms import DDPO, RWR
from algorithms.losses import kl_penalty_loss
from algorithms.policy import Rows
from diffusion_gym.transitions import Gaussian

STEPS = 10
START = torch.tensor([0.5, -0.5, math.log(0.5)], dtype=torch.float64)  # exact-gaussian: means and log-std


def grid() -> list[tuple[Tensor, Tensor]]:
    """alpha_t and alpha_{t-1} of each of the STEPS steps of exact-gaussian, float64."""
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)  # scaled_linear
    a, stride = (1 - root**2).cumprod(0), 1000 // STEPS
    return [(a[t], a[t - stride] if t >= stride else a[0]) for t in range(999, 0, -stride)]


def affine(theta: Tensor, a_t: Tensor, a_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gain, offset (2,) and variance of DDIM's step at eta 1 under one Gaussian: ``x' = gain x + offset + noise``.

    epsilon = sqrt(1 - a) (x - sqrt(a) m) / v with v = a s^2 + 1 - a, so the mean of a step is affine in x.
    """
    sigma2 = (1 - a_p) / (1 - a_t) * (1 - a_t / a_p)
    slope = (1 - a_t).sqrt() / (a_t * (2 * theta[2]).exp() + 1 - a_t)
    of_epsilon = (1 - a_p - sigma2).sqrt() - (a_p * (1 - a_t) / a_t).sqrt()
    return (a_p / a_t).sqrt() + of_epsilon * slope, -of_epsilon * slope * a_t.sqrt() * theta[:2], sigma2


def chain(theta: Tensor, through_states: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (2,) and variance of x_0, and the expected sum of the steps' KL to START in nats, all in closed form.

    With ``d = (gain - gain_0) x + offset - offset_0``, KL_t = E|d|^2 / (2 sigma^2) over x_t of the chain itself.
    Without ``through_states`` the KL's gradient leaves out that theta also decides the states, as the loss does.
    """
    mean, variance, total = torch.zeros(2).double(), torch.ones(()).double(), torch.zeros(()).double()
    for a_t, a_p in grid():
        gain, offset, sigma2 = affine(theta, a_t, a_p)
        gain_0, offset_0, _ = affine(START, a_t, a_p)
        x, spread = (mean, variance) if through_states else (mean.detach(), variance.detach())
        difference = (gain - gain_0) * x + offset - offset_0
        total = total + (difference.square().sum() + 2 * (gain - gain_0) ** 2 * spread) / (2 * sigma2)
        mean, variance = gain * mean + offset, gain**2 * variance + sigma2
    return mean, variance, total


def set_model(algorithm: Any, theta: Tensor) -> None:
    with torch.no_grad():
        algorithm.policy.denoiser.means.copy_(theta[None, :2])
        algorithm.policy.denoiser.log_stds.copy_(theta[2:])


def test_the_loss_by_hand() -> None:
    """mu - mu_start = (3, 4), s = 2: KL = 25 / 8 nats; at coefficient 0.8 and D = 2 the mean's share is 1.25."""
    mean = torch.tensor([3.0, 4.0]).reshape(1, 2, 1, 1).requires_grad_()
    std = torch.tensor([2.0])
    kl = Gaussian(mean, std).kl(Gaussian(torch.zeros(1, 2, 1, 1), std))
    assert kl.tolist() == [25 / 8]
    assert kl_penalty_loss(kl, 0.8, 2, "sum").tolist() == pytest.approx([2.5])
    loss = kl_penalty_loss(kl, 0.8, 2, "mean")
    assert loss.tolist() == pytest.approx([1.25])
    loss.sum().backward()
    assert mean.grad is not None
    assert mean.grad.flatten().tolist() == pytest.approx([0.8 / 2 * 3 / 4, 0.8 / 2 * 4 / 4])


def test_evaluations_kl_is_that_of_the_closed_form(make_env: Callable) -> None:
    """1,024 trajectories of a moved model; exactly 0 before it is moved."""
    algorithm = DDPO(
        make_env(steps=STEPS), trainable="full", kl_to_start=True, images=1024, num_envs=1024, chunk_size=1024,
        images_per_iteration=1024,
    )  # fmt: skip
    algorithm.learn(0)
    assert algorithm.last_evaluation is not None
    assert algorithm.last_evaluation.kl_to_start is not None
    assert not algorithm.last_evaluation.kl_to_start.any()
    theta = START + torch.tensor([0.2, 0.1, 0.15])
    set_model(algorithm, theta)
    algorithm.iteration = 1
    algorithm.learn(0)
    kl = algorithm.last_evaluation.kl_to_start.double()
    error = float(kl.std() / len(kl) ** 0.5)
    exact = float(chain(theta)[2])
    print(float(kl.mean()), error, exact)
    assert error < 0.03 * exact
    assert abs(float(kl.mean()) - exact) < 4 * error
    assert algorithm.last_evaluation.metrics()["eval/kl_to_start"] == pytest.approx(float(kl.mean()))
    torch.testing.assert_close(algorithm.policy.denoiser.means.detach()[0].double(), theta[:2], rtol=1e-6, atol=0)


def test_steps_without_density_count_nothing(make_env: Callable, sample: Callable) -> None:
    """CPS's last step has std 0: it is left out, and the KL stays finite."""
    algorithm = DDPO(make_env("exact-flow-gaussian", steps=4), trainable="full", sampler="cps", kl_to_start=True)
    set_model(algorithm, START + 0.1)
    rollout = sample(algorithm, 64)
    assert len(algorithm.policy.trainable_steps) == 3
    by_step = []
    for step in range(4):
        rows = Rows(rollout.latents[step], torch.full((64,), step), rollout.conditioning)
        by_step.append(algorithm.reference.kl(rows, algorithm.policy.distribution(rows)))
    assert not by_step[3].any()
    assert all(bool((kl > 0).all() and kl.isfinite().all()) for kl in by_step[:3])


def fixed_point(penalty: float) -> Tensor:
    """Where DDPO's expected update vanishes, ``grad E[x_1] / std(x_1) = penalty grad sum_t KL_t``; Newton's method."""

    def field(theta: Tensor) -> Tensor:
        theta = theta.detach().requires_grad_()
        mean, variance, kl = chain(theta, through_states=False)
        return torch.autograd.grad(mean[0] / variance.detach().sqrt() - penalty * kl, theta)[0]

    theta = START + torch.tensor([0.1, 0.0, 0.0])
    for _ in range(50):
        slopes = torch.stack(
            [(field(theta + 1e-5 * e) - field(theta - 1e-5 * e)) / 2e-5 for e in torch.eye(3).double()], 1
        )
        theta = theta - torch.linalg.solve(slopes, field(theta)).clamp(-0.1, 0.1)
    assert field(theta).abs().max() < 1e-9
    return theta


def test_the_penalty_holds_ddpo_at_the_known_fixed_point(make_env: Callable) -> None:
    """Without it the mean runs away (past 2 in as many updates); with it, it ends where the closed form says."""
    penalty = 0.05
    where = fixed_point(penalty)
    algorithm = DDPO(
        make_env(steps=STEPS, reward="exact-linear"), trainable="full", kl_penalty=penalty, ema_decay=0.97,
        updates_per_iteration=2, images_per_iteration=128, num_envs=128, chunk_size=1280, learning_rate=0.01,
        statistics_buffer=1024, max_grad_norm=1e9, weight_decay=0.0, advantage_clip=100.0,
    )  # fmt: skip
    algorithm.learn(90 * 128 * STEPS)
    with algorithm.averaged():
        found = torch.cat([algorithm.policy.denoiser.means[0], algorithm.policy.denoiser.log_stds]).detach().double()
    print(where.tolist(), found.tolist())
    assert where[0] - START[0] > 0.4  # there is something to find, and a coefficient wrong by a quarter would miss it
    assert (found - where).abs().max() < 0.08


def test_the_kl_in_training_is_the_evaluations_quantity(make_env: Callable, sample: Callable) -> None:
    """Each transition's KL times their number, on the rollout's own states: nats per image, however few are drawn."""
    logged: dict[float, float] = {}
    for fraction in (1.0, 0.5):
        algorithm = DDPO(
            make_env(steps=STEPS), trainable="full", kl_penalty=0.01, images_per_iteration=1024, num_envs=1024,
            chunk_size=1024 if fraction == 1 else 4, importance_sampling=False, updates_per_iteration=1,
            timestep_fraction=fraction,
        )  # fmt: skip
        set_model(algorithm, START + 0.1)
        rollout = sample(algorithm, 1024)
        logged[fraction] = algorithm.update(rollout)["train/kl_to_start"]
    exact = float(chain(START + 0.1)[2])
    assert logged[1.0] == pytest.approx(exact, rel=0.03)
    assert logged[0.5] == pytest.approx(exact, rel=0.15)  # half the steps, of which the last has most of the KL


def test_measuring_changes_no_weight_and_a_penalty_costs_a_forward_a_row(make_env: Callable, digest: Callable) -> None:
    runs = [
        DDPO(make_env(steps=4), trainable="full", images_per_iteration=16, num_envs=16, images=4, **options)
        for options in ({}, {"kl_to_start": True}, {"kl_penalty": 0.1})
    ]
    for algorithm in runs:
        algorithm.learn(2 * 16 * 4)
    assert digest(runs[0]) == digest(runs[1])
    costs = [algorithm.costs["forward_equivalents"] for algorithm in runs]
    assert costs == [2 * 16 * 4 * (1 + 3), 2 * 16 * 4 * (1 + 3), 2 * 16 * 4 * (1 + 3 + 1)]


@pytest.mark.parametrize("options", [{}, {"train": "both"}, {"guidance_scale": 2.0}])
def test_with_lora_the_reference_is_the_pretrained_model_to_the_bit(tiny_sd: str, options: dict[str, Any]) -> None:
    """Before training, and after the adapters were moved; switched on again they are as they were, and trainable."""
    tokens = {"prompt_tokens": True} if "train" in options else {}
    env = gymnasium.make("DiffusionDenoise-v0", model=tiny_sd, num_inference_steps=3, prompts=["cat", "dog"], **tokens)
    algorithm = DDPO(env, images_per_iteration=4, num_envs=4, chunk_size=4, kl_penalty=0.1, **options)
    policy = algorithm.policy
    shape = policy.model.latent_shape
    encoded = policy.model.tokenize(["cat", "dog"] * 2) if tokens else policy.model.encode_prompts(["cat", "dog"] * 2)
    latents = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    rows = Rows(latents, torch.tensor([0, 1, 2, 0]), {name: encoded[name] for name in policy.conditioning})
    base = policy.distribution(rows).mean.detach().clone()
    assert torch.equal(algorithm.reference.distribution(rows).mean, base)
    assert not algorithm.reference.kl(rows, policy.distribution(rows)).any()
    before = {name: value.requires_grad for name, value in policy.denoiser.named_parameters()}
    with torch.no_grad():
        for value in policy.trainable_parameters().values():
            value.add_(0.05)
    moved = policy.distribution(rows).mean
    assert torch.equal(algorithm.reference.distribution(rows).mean, base)
    assert not torch.equal(moved, base)
    assert torch.equal(policy.distribution(rows).mean, moved)
    assert {name: value.requires_grad for name, value in policy.denoiser.named_parameters()} == before
    algorithm.reference.kl(rows, policy.distribution(rows)).sum().backward()
    assert all(value.grad is not None for value in policy.trainable_parameters().values())
    assert algorithm.reference.nbytes == 0


def test_with_full_weights_a_copy_is_kept_and_a_loaded_run_has_the_same(
    make_env: Callable, digest: Callable, tmp_path: Any
) -> None:
    """A resumed run's penalty pulls to the pretrained model, not to the checkpoint."""

    def new(path: Any = None) -> DDPO:
        if path is not None:
            return DDPO.load(path, make_env(steps=4))
        return DDPO(
            make_env(steps=4), trainable="full", kl_penalty=0.5, ema_decay=0.8, images_per_iteration=16, num_envs=16,
            images=16,
        )  # fmt: skip

    whole = new().learn(4 * 16 * 4)
    assert whole.reference.nbytes == 4 * (2 + 1 + 1)
    new().learn(2 * 16 * 4).save(tmp_path / "half")
    resumed = new(tmp_path / "half")
    resumed.learn(2 * 16 * 4, reset_num_timesteps=False)
    assert digest(resumed) == digest(whole)
    assert resumed.last_evaluation is not None
    assert whole.last_evaluation is not None
    assert torch.equal(resumed.last_evaluation.kl_to_start, whole.last_evaluation.kl_to_start)


def test_what_is_refused(make_env: Callable) -> None:
    with pytest.raises(ValueError, match="kl_penalty must be at least 0"):
        DDPO(make_env(), trainable="full", kl_penalty=-0.1)
    with pytest.raises(ValueError, match="The KL to the starting model needs a stochastic sampler"):
        RWR(make_env(), trainable="full", eta=0.0, kl_to_start=True)
    assert RWR(make_env(), trainable="full", kl_to_start=True).reference is not None
    assert RWR(make_env(), trainable="full").reference is None

"""Reward gradients: the gradient against autograd through the sampler's formulas, costs, resuming, and refusals.

On the exact Gaussian ``E[epsilon | x_t]`` and the flow's velocity are known, so a chain of steps can be written down in
float64 from the textbook and differentiated with respect to mean and log-std.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import ALGORITHMS, RewardGradient, RewardGradientConfig
from algorithms.rollouts import Rollout
from diffusion_gym.rewards import RewardError, differentiable, from_trl
from diffusion_gym.rewards.wrappers import TerminalReward

STEPS, N = 5, 16
SMALL: dict[str, Any] = {"images_per_iteration": N, "num_envs": N, "chunk_size": 6}
TARGET = torch.tensor([1.0, 1.0]).double()  # of exact-quadratic


@differentiable
def warmth(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images[:, 0].square().mean((1, 2)) - images[:, 2].mean((1, 2))


class Recording(RewardGradient):
    """Keeps each update's gradient and what was drawn, and the differentiated x_0."""

    def _setup_model(self) -> None:
        super()._setup_model()
        self.x_0: list[Tensor] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.before_step: Callable[[], None] = lambda: None

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        trained = self.policy.trainable_parameters()
        self.gradients.append({name: value.grad.clone() for name, value in trained.items() if value.grad is not None})
        norm = super().step(optimizer)
        self.before_step()
        return norm

    def _draw_steps(self, source: torch.Generator) -> list[list[int]]:
        self.steps = super()._draw_steps(source)
        return self.steps

    def _renoise(self, rollout: Rollout, source: torch.Generator) -> Tensor | None:
        self.renoise = super()._renoise(rollout, source)
        return self.renoise

    def _reward_gradient(self, x_0: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        self.x_0.append(x_0.detach())
        return super()._reward_gradient(x_0, *rest)


# -- the gradient ------------------------------------------------------------------------------------------------------


def diffusion_step(theta: Tensor, x: Tensor, step: int, eta: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """x_{t-1} of DDIM (Song et al. 2021, equation 12) and the predicted x_0, of points (n, 2)."""
    root = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64)  # scaled_linear
    table = (1 - root**2).cumprod(0)
    t = 999 - 200 * step
    a, a_p = table[t], table[max(t - 200, 0)]
    epsilon = (1 - a).sqrt() * (x - a.sqrt() * theta[:2]) / (a * (2 * theta[2]).exp() + 1 - a)
    x_0 = (x - (1 - a).sqrt() * epsilon) / a.sqrt()
    s = eta * ((1 - a_p) / (1 - a) * (1 - a / a_p)).sqrt()
    return a_p.sqrt() * x_0 + (1 - a_p - s**2).sqrt() * epsilon + s * z, x_0


def flow_step(theta: Tensor, x: Tensor, step: int, eta: float, z: Tensor) -> tuple[Tensor, Tensor]:
    """The Euler step of the flow and the predicted x_0; eta must be 0."""
    t, variance = 1 - step / STEPS, (2 * theta[2]).exp()
    slope = (t - (1 - t) * variance) / ((1 - t) ** 2 * variance + t**2)
    v = slope * (x - (1 - t) * theta[:2]) - theta[:2]
    return x - v / STEPS, x - t * v


def noised(model: str, x_0: Tensor, noise: Tensor, step: int) -> Tensor:
    if model == "exact-flow-gaussian":
        t = 1 - step / STEPS
        return (1 - t) * x_0 + t * noise
    a = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)[999 - 200 * step]
    return a.sqrt() * x_0 + (1 - a).sqrt() * noise


def expected_gradient(algorithm: Recording, rollout: Rollout, z: Tensor, model: str, eta: float) -> Tensor:
    """Minus d mean R / d (mean, log-std), (3,), by autograd in float64 through the formulas."""
    config, steps = algorithm.config, algorithm.steps[0]
    theta = torch.tensor([0.5, -0.5, 0.5], dtype=torch.float64)
    theta[2] = theta[2].log()
    theta.requires_grad_()
    take, rewards = flow_step if model == "exact-flow-gaussian" else diffusion_step, []
    for draw, last in enumerate(steps):
        first = STEPS - last
        if config.draws_per_image:
            assert algorithm.renoise is not None
            points = rollout.final_latents.flatten(1).double(), algorithm.renoise[:, draw].flatten(1).double()
            x = noised(model, *points, first)
        else:
            x = rollout.latents[first].flatten(1).double()
        for step in range(first, STEPS):
            x, x_0 = take(theta, x, step, eta, z[step])
            if config.one_step:
                x = x_0
                break
        rewards.append(-(x - TARGET).square().sum(1))
    return torch.autograd.grad(-torch.cat(rewards).mean(), theta)[0]


def noise_of(algorithm: RewardGradient) -> Tensor:
    """The noise (T, n, 2) of the first iteration's steps, in the order in which rollouts draw it."""
    from algorithms.seeding import Stream, generator

    sources = [generator(algorithm.config.seed, Stream.STEP_NOISE, image) for image in range(N)]
    return torch.stack(
        [torch.stack([torch.randn(2, 1, 1, generator=s).flatten() for s in sources]) for _ in range(STEPS)]
    )


@pytest.mark.parametrize(
    ("model", "eta", "options"),
    [
        ("exact-gaussian", 0.0, {}),
        ("exact-gaussian", 1.0, {"gradient_steps": 3}),
        ("exact-gaussian", 0.5, {"gradient_steps": 5, "random_steps": True, "seed": 3}),
        ("exact-gaussian", 1.0, {"gradient_steps": 4, "one_step": True}),
        ("exact-gaussian", 0.0, {"draws_per_image": 2, "gradient_steps": 2, "one_step": True}),
        ("exact-flow-gaussian", 0.0, {"gradient_steps": 3}),
        ("exact-flow-gaussian", 0.0, {"draws_per_image": 3, "gradient_steps": 2}),
        ("exact-flow-gaussian", 0.0, {"gradient_steps": 4, "one_step": True}),
    ],
)
def test_the_gradient_is_autograds_through_the_samplers_formulas(
    make_env: Callable, sample: Callable[..., Rollout], model: str, eta: float, options: dict[str, Any]
) -> None:
    algorithm = Recording(make_env(model, STEPS), RewardGradientConfig(), trainable="full", eta=eta, **SMALL, **options)
    rollout = sample(algorithm, N, whole_trajectory=not algorithm.config.draws_per_image)
    logged = algorithm.update(rollout)
    expected = expected_gradient(algorithm, rollout, noise_of(algorithm).double(), model, eta)
    found = torch.cat([algorithm.gradients[0]["means"].flatten(), algorithm.gradients[0]["log_stds"]]).double()
    print(found.tolist(), expected.tolist(), algorithm.steps)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))
    same = not options.get("one_step") and not options.get("draws_per_image")
    assert (logged["train/distance_from_sampled"] == 0.0) == same


def test_later_updates_redo_the_steps_with_the_present_weights_and_the_noise_of_sampling(
    make_env: Callable, sample: Callable[..., Rollout]
) -> None:
    """With all steps differentiated, the second share's x_0 is what the weights after the first would have sampled."""
    options = {**SMALL, "chunk_size": 8, "updates_per_iteration": 2, "gradient_steps": STEPS, "learning_rate": 0.1}
    algorithm = Recording(make_env(), RewardGradientConfig(), trainable="full", eta=1.0, **options)
    resampled: list[Tensor] = []
    algorithm.before_step = lambda: resampled.append(sample(algorithm, N, updates=2).final_latents)
    before = sample(algorithm, N, updates=2)
    algorithm.update(before)
    assert torch.equal(algorithm.x_0[0], before.final_latents[:8])
    assert torch.equal(algorithm.x_0[1], resampled[0][8:])
    assert not torch.equal(algorithm.x_0[1], before.final_latents[8:])


def test_gradients_reach_adapters_of_a_pipeline_the_same_with_checkpointing(make_env: Callable, tiny_sd: str) -> None:
    """Through guidance, VAE and reward; redone steps equal the sampled ones bit for bit, and the reward rises."""
    env = make_env(tiny_sd, 3, warmth, prompts=["cat", "dog"])
    runs = []
    for checkpointing in (False, True):
        algorithm = Recording(
            env, RewardGradientConfig(), **SMALL, gradient_steps=2, guidance_scale=3.0, eta=0.5, learning_rate=0.02,
            gradient_checkpointing=checkpointing,
        )  # fmt: skip
        logs: list[dict[str, float]] = []
        algorithm._log = logs.append  # type: ignore[assignment,method-assign]
        algorithm.learn((1 if checkpointing else 3) * N * 3)
        assert all(line["train/distance_from_sampled"] == 0.0 for line in logs)
        assert logs[0]["train/loss"] == pytest.approx(-logs[0]["rollout/ep_rew_mean"], abs=1e-3)
        runs.append((algorithm.gradients[0], [line["rollout/ep_rew_mean"] for line in logs]))
    assert all(torch.equal(value, runs[1][0][name]) for name, value in runs[0][0].items())
    print(runs[0][1])
    assert runs[0][1][-1] > runs[0][1][0] + 5e-4


@pytest.mark.parametrize("spec", ["aesthetic", "clip_score,aesthetic:2:std=.5"])
def test_the_rewards_of_images_train(make_env: Callable, tiny_sd: str, tiny_rewards: Path, spec: str) -> None:
    """The differentiated reward is that of the rollout except for the rounding to bytes, which no gradient passes."""
    algorithm = RewardGradient(make_env(tiny_sd, 2, spec, prompts=["cat", "dog"]), ALGORITHMS["draft"].config, **SMALL)
    logs: list[dict[str, float]] = []
    algorithm._log = logs.append  # type: ignore[assignment,method-assign]
    algorithm.learn(1)
    assert logs[0]["train/loss"] == pytest.approx(
        -logs[0]["rollout/ep_rew_mean"], abs=0.1 * logs[0]["rollout/reward_std"]
    )
    assert logs[0]["train/latent_grad_norm"] > 0


def test_a_function_of_trls_trains_where_it_says_that_it_has_a_gradient(make_env: Callable, tiny_sd: str) -> None:
    def reward_fn(images: Tensor, prompts: tuple[str, ...], metadata: tuple[Any, ...]) -> tuple[Tensor, dict]:
        return images.mean((1, 2, 3)), {}

    with pytest.raises(ValueError, match="the reward 'reward_fn' has no gradient"):
        RewardGradient(make_env(tiny_sd, 2, from_trl(reward_fn), prompts=["cat"]))
    env = make_env(tiny_sd, 2, from_trl(reward_fn, differentiable=True), prompts=["cat"])
    assert RewardGradient(env, **SMALL).learn(1).skipped.total == 0


# -- the algorithm -----------------------------------------------------------------------------------------------------


def counted(algorithm: RewardGradient) -> list[int]:
    """Count denoiser rows from now on in the list's one number: a row with gradients as three forwards."""
    rows = [0]

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        rows[0] += len(output) * (3 if output.requires_grad else 1)

    algorithm.policy.denoiser.register_forward_hook(hook)
    return rows


@pytest.mark.parametrize(
    ("name", "options", "per_image"),
    [
        ("draft", {}, 5 + 3),
        ("draft", {"gradient_steps": 3, "updates_per_iteration": 2}, 5 + 3 * 3),
        ("draft", {"gradient_steps": 2, "guidance_scale": 2.0}, 2 * (5 + 2 * 3)),
        ("draft", {"gradient_steps": 2, "draws_per_image": 2}, 5 + 2 * 2 * 3),
        ("draft-lv", {}, 5 + 2 * 3),
        ("refl", {}, 5 + 3),
    ],
)
def test_what_is_billed_is_what_is_computed(
    make_env: Callable, name: str, options: dict[str, Any], per_image: int
) -> None:
    algorithm = RewardGradient(make_env(), ALGORITHMS[name].config, trainable="full", **SMALL, **options)
    rows = counted(algorithm)
    algorithm.learn(1)
    assert algorithm.costs["forward_equivalents"] == rows[0] == N * per_image
    assert algorithm.costs["reward_queries"] == N


def test_random_numbers_of_steps_are_uniform_and_billed(make_env: Callable) -> None:
    """Each of 1 to 3 comes up in 12 updates, and what is billed is what was drawn."""
    algorithm = Recording(
        make_env(), RewardGradientConfig(), **SMALL, gradient_steps=3, random_steps=True, trainable="full"
    )
    rows, drawn = counted(algorithm), list[int]()
    algorithm.before_step = lambda: drawn.extend(algorithm.steps[0])
    algorithm.learn(12 * N * STEPS)
    assert set(drawn) == {1, 2, 3}
    assert algorithm.costs["forward_equivalents"] == rows[0] == N * (12 * STEPS + 3 * sum(drawn))


@pytest.mark.parametrize("name", ["draft", "draft-lv", "refl"])
def test_a_resumed_run_equals_one_that_never_stopped(
    make_env: Callable, digest: Callable, tmp_path: Path, name: str
) -> None:
    """With noise, two updates, and random numbers of steps."""
    options = {**SMALL, "gradient_steps": 3, "random_steps": True, "updates_per_iteration": 2, "ema_decay": 0.5}
    build = lambda: RewardGradient(make_env(), ALGORITHMS[name].config, trainable="full", eta=1.0, **options)  # noqa: E731
    whole, parts = build(), build()
    whole.learn(3 * N * STEPS)
    parts.learn(N * STEPS).save(tmp_path / "run")
    resumed = RewardGradient.load(tmp_path / "run", make_env())
    resumed.learn(2 * N * STEPS, reset_num_timesteps=False)
    assert digest(resumed) == digest(whole)
    assert resumed.costs["forward_equivalents"] == whole.costs["forward_equivalents"]


def test_probes_of_memory_train_the_differentiated_steps_and_the_decoder(make_env: Callable) -> None:
    algorithm = RewardGradient(make_env(), trainable="full", gradient_steps=3, **SMALL)
    rows, decoded = counted(algorithm), []
    decode = algorithm.policy.model.decode_pixels
    algorithm.policy.model.decode_pixels = lambda latents: decoded.append(latents.requires_grad) or decode(latents)  # type: ignore
    try:
        algorithm.train_blank(algorithm.policy.blank_rows(4))
    finally:
        del algorithm.policy.model.decode_pixels
    assert rows[0] == 4 * 3 * 3
    assert decoded == [True]
    assert algorithm.policy.denoiser.means.grad is not None


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ["compressibility", "exact-linear,compressibility:0.5"])
def test_a_reward_without_a_gradient_is_refused_by_name_before_anything_is_sampled(
    make_env: Callable, tmp_path: Path, spec: str
) -> None:
    message = "the reward 'compressibility' has no gradient with respect to the images"
    with pytest.raises(ValueError, match=message):
        RewardGradient(make_env(reward=spec), **SMALL)
    env = make_env()
    algorithm = RewardGradient(env, trainable="full", images=2, **SMALL).learn(1)
    with pytest.raises(ValueError, match=message):
        algorithm.set_env(make_env(reward=spec))
    rows = counted(algorithm)
    TerminalReward(env, spec)
    with pytest.raises(ValueError, match=message):
        algorithm.learn(1)
    assert rows == [0]
    algorithm.save(tmp_path / "run")
    drawing = RewardGradient.load(tmp_path / "run", env)  # to draw pictures with
    with pytest.raises(ValueError, match=message):
        drawing.learn(1)


def test_a_reward_that_lost_its_gradient_fails_by_name(make_env: Callable, tiny_sd: str) -> None:
    @differentiable
    def detached(images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.detach().mean((1, 2, 3))

    algorithm = RewardGradient(make_env(tiny_sd, 2, detached, prompts=["cat"]), **SMALL)
    with pytest.raises(RewardError, match="pixels of reward 'detached' returned scores without a gradient"):
        algorithm.learn(1)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "more steps than there are": ({"gradient_steps": 6}, "gradient_steps is 6, but sampling takes 5 steps; set grad"),
    "no steps": ({"gradient_steps": 0}, "gradient_steps must be at least 1, got 0"),
    "no updates": ({"updates_per_iteration": 0}, "updates_per_iteration must be at least 1, got 0"),
    "a negative number of draws": ({"draws_per_image": -1}, "draws_per_image must be at least 0, got -1"),
    "unequal updates": ({"updates_per_iteration": 3}, r"updates_per_iteration \(3\) must divide .*; 2 would"),
    "one of one step": ({"random_steps": True}, "random_steps has no effect with gradient_steps 1"),
    "KL without noise": ({"kl_to_start": True}, "The KL to the starting model needs a stochastic sampler"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_fail_or_do_nothing_is_refused(make_env: Callable, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        RewardGradient(make_env(), trainable="full", **SMALL, **options)


def test_variants_have_the_registrys_names() -> None:
    assert RewardGradientConfig() == ALGORITHMS["draft"].config
    for name in ("draft", "draft-lv", "refl"):
        config = ALGORITHMS[name].config
        fields = ("gradient_steps", "random_steps", "one_step", "draws_per_image")
        assert RewardGradientConfig.variant(**{field: getattr(config, field) for field in fields}) == name

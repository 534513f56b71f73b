"""The forward-process family: its loss, gradient and fixed point against closed forms, its presets, and its costs.

On the exact Gaussian the network's output changes with the mean m alone by a factor of the time, ``d eps / d m =
-sqrt(a (1 - a)) / v`` with ``v = a s^2 + 1 - a``, and the noise is independent of the image and its advantage. So with
A the standardised first coordinate, whose std over images is S, ``E[A (output - target)]`` is ``sqrt(a (1 - a)) S / v``
in the first coordinate: the gradient, and where an anchor balances it, is known at every time.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from algorithms import ALGORITHMS, PRESETS, ForwardProcess, ForwardProcessConfig
from algorithms.losses import forward_process_loss, mean_square, time_weights
from algorithms.rollouts import Rollout
from diffusion_gym.transitions import DiffusionSchedule, Schedule, make_schedule
from diffusion_gym.transitions.flow import make_flow_schedule

PREDICTIONS = ["epsilon", "v_prediction", "sample", "flow"]
SMALL: dict[str, Any] = {"images_per_iteration": 16, "images_per_prompt": 8, "num_envs": 16, "eta": 0.0}
NO_ANCHOR: dict[str, Any] = {"surrogate": "regression", "anchor_old": 0.0, "anchor_start": 0.0, "old_decay": 0.0}


def schedule_of(prediction: str) -> Schedule:
    if prediction == "flow":
        return make_flow_schedule({"num_train_timesteps": 1000}, 10, 16, equal_steps=True)
    return make_schedule({"prediction_type": prediction, "beta_schedule": "scaled_linear"}, 10)


@pytest.fixture
def rows() -> Callable[[str], tuple[Schedule, Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """``rows(prediction)``: a schedule, times, x_0, its x_t and target, and advantages of 10 rows, float64."""

    def make(prediction: str) -> tuple[Schedule, Tensor, Tensor, Tensor, Tensor, Tensor]:
        schedule, source = schedule_of(prediction), torch.Generator().manual_seed(0)
        x_0, noise = torch.randn(2, 10, 3, 2, 2, generator=source, dtype=torch.float64)
        x_t, target = schedule.noised(x_0, noise, schedule.timesteps)
        return schedule, schedule.timesteps, x_0, x_t, target, torch.randn(10, generator=source, dtype=torch.float64)

    return make


def predicted_x_0(schedule: Schedule, output: Tensor, x_t: Tensor) -> Tensor:
    """The x_0 that an output at every grid time stands for, from the textbook formulas."""
    if not isinstance(schedule, DiffusionSchedule):
        return x_t - (schedule.timesteps / 1000).reshape(-1, 1, 1, 1) * output
    a = schedule.alphas_cumprod[schedule.timesteps].reshape(-1, 1, 1, 1)
    if schedule.prediction_type == "epsilon":
        return (x_t - (1 - a).sqrt() * output) / a.sqrt()
    return a.sqrt() * x_t - (1 - a).sqrt() * output if schedule.prediction_type == "v_prediction" else output


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_turn_errors_of_the_output_into_errors_of_x_0(rows: Callable, prediction: str) -> None:
    schedule, times, x_0, x_t, target, _ = rows(prediction)
    output = torch.randn_like(target)
    error = predicted_x_0(schedule, output, x_t) - x_0
    normalised = time_weights(schedule, times, output - target, "x_0") * mean_square(output - target)
    torch.testing.assert_close(normalised, mean_square(error) / error.abs().flatten(1).mean(1), rtol=1e-4, atol=0.0)
    signal, noise = (x.flatten() for x in _factors(schedule))
    weighted = time_weights(schedule, times, output - target, "min-snr") * mean_square(output - target)
    expected = (signal / noise).square().clamp(max=5) * mean_square(error)
    torch.testing.assert_close(weighted, expected, rtol=1e-4, atol=0.0)


def _factors(schedule: Schedule) -> tuple[Tensor, Tensor]:
    one, zero = torch.ones(10, 1).double(), torch.zeros(10, 1).double()
    times = schedule.timesteps
    return schedule.noised(one, zero, times)[0], schedule.noised(zero, one, times)[0]


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_nfts_pair_loss_is_the_linear_loss_with_an_anchor(rows: Callable, beta: float) -> None:
    """``(r l(v+) + (1 - r) l(v-)) 5 / b``, as its code has it, less the linear one and ``5 b |d|^2``, is a constant."""
    _, _, _, _, target, advantages = rows("v_prediction")
    old, ones = torch.randn_like(target), torch.ones(10).double()
    r = 0.5 + advantages.clamp(-5, 5) / 5 / 2
    gaps = []
    for _ in range(2):
        d = torch.randn_like(target)
        positive, negative = mean_square(old + beta * d - target), mean_square(old - beta * d - target)
        pair = (r * positive + (1 - r) * negative) * 5 / beta
        linear, _ = forward_process_loss(old + d, old, target, advantages, ones, "linear", 0.0)
        gaps.append(pair - linear - 5 * beta * mean_square(d))
    torch.testing.assert_close(gaps[0], gaps[1])


def test_rams_regression_is_the_linear_loss_with_an_anchor_to_the_start(rows: Callable) -> None:
    """``|v - (v_ref + A (v* - v_old))|^2`` less the linear loss and ``|v - v_ref|^2`` is a constant."""
    _, _, _, _, target, advantages = rows("epsilon")
    old, start, gaps = torch.randn_like(target), torch.randn_like(target), []
    for _ in range(2):
        output = torch.randn_like(target)
        regression = mean_square(output - start - advantages.reshape(-1, 1, 1, 1) * (target - old))
        linear, _ = forward_process_loss(output, old, target, advantages, torch.ones(10).double(), "linear", 0.0)
        gaps.append(regression - linear - mean_square(output - start))
    torch.testing.assert_close(gaps[0], gaps[1])


def test_all_surrogates_have_one_gradient_at_the_old_policy(rows: Callable) -> None:
    _, _, _, _, target, advantages = rows("epsilon")
    old, weights, gradients = torch.randn_like(target), torch.rand(10).double(), []
    for surrogate in ("ratio", "regression", "linear"):
        output = old.clone().requires_grad_()
        loss, log_ratio = forward_process_loss(output, old, target, advantages, weights, surrogate, 0.2)
        assert not log_ratio.any()
        gradients.append(torch.autograd.grad(loss.sum(), output)[0])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_the_ratio_is_clipped_as_ppos() -> None:
    """Errors fell from 1 to 0: ratio e. A good image's is held at 1.5, a bad one's is not; and the other way round."""
    old, target, ones = torch.ones(2, 1), torch.zeros(2, 1), torch.ones(2)
    advantages = torch.tensor([1.0, -1.0])
    assert forward_process_loss(target, old, target, advantages, ones, "ratio", 0.5)[0].tolist() == pytest.approx(
        [-1.5, math.e]
    )
    assert forward_process_loss(old, target, target, advantages, ones, "ratio", 0.5)[0].tolist() == pytest.approx(
        [-1 / math.e, 0.5]
    )
    assert forward_process_loss(target, old, target, advantages, ones, "ratio", 0.0)[0].tolist() == pytest.approx(
        [-math.e, math.e]
    )


# -- on the exact Gaussian ---------------------------------------------------------------------------------------------


class Gradients(ForwardProcess):
    """Hands out the gradient of the means instead of stepping."""

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        self.gradient = self.policy.denoiser.means.grad[0].double()
        optimizer.zero_grad()
        return torch.zeros(())


@pytest.mark.parametrize(("surrogate", "paired"), [("regression", False), ("linear", True)])
def test_the_gradient_is_the_exact_one(make_env: Callable, sample: Callable, surrogate: str, paired: bool) -> None:
    """6 rollouts of 1,024 images; of ten times the four noisiest are trained. Within 4 of its own standard errors."""
    n, rollouts, estimates, stds = 1024, 6, [], []
    algorithm = Gradients(
        make_env("exact-gaussian", reward="exact-linear", steps=10), **{**NO_ANCHOR, "surrogate": surrogate},
        trainable="full", images_per_iteration=n, images_per_prompt=8, num_envs=n, chunk_size=n, draws_per_image=2,
        eta=0.0, time_range=(0.65, 1.0), paired_noise=paired, advantages="leave-one-out", advantage_scale="none",
        advantage_clip=100.0,
    )  # fmt: skip
    for k in range(rollouts):
        rollout = sample(algorithm, n, images=range(k * n, (k + 1) * n), whole_trajectory=False)
        algorithm.iteration = k
        algorithm.update(rollout)
        estimates.append(algorithm.gradient)
        stds.append(float(rollout.rewards.std()))
    a = algorithm.policy.transition.schedule.alphas_cumprod[[999, 899, 799, 699]].double()
    v = a * 0.25 + 1 - a
    # Rewards without a std: S^2 in the place of S.
    exact = -torch.tensor([float((a * (1 - a) / v.square()).mean()) * sum(std**2 for std in stds) / rollouts, 0.0])
    stacked = torch.stack(estimates)
    error = stacked.std(0) / math.sqrt(rollouts)
    print(stacked.mean(0).tolist(), error.tolist(), exact.tolist())
    assert error.norm() < 0.2 * exact.norm()  # otherwise the comparison could not fail
    assert ((stacked.mean(0) - exact).abs() < 4 * error).all()


@pytest.mark.parametrize(("model", "everywhere"), [("exact-gaussian", False), ("exact-flow-gaussian", True)])
def test_the_anchor_to_the_start_holds_at_the_tilted_model(make_env: Callable, model: str, everywhere: bool) -> None:
    """At every time ``weight (output - start)`` balances ``A (target - output)``: the mean moves by S / weight.

    For an exact sampler that is the pretrained model tilted by exp(A / weight). S is what the sampler draws. With the
    anchor at other times the shares of both kinds of times, squared slopes ``t^2 / v^2`` of the flow, say by how much.
    """
    weight, n = 0.5, 128
    algorithm = ForwardProcess(
        make_env(model, reward="exact-linear", steps=5), ForwardProcessConfig.preset("ram"), anchor_start=weight,
        anchor_everywhere=everywhere, trainable="full", eta=0.0, images_per_iteration=n, images_per_prompt=n,
        num_envs=n, chunk_size=2 * n, learning_rate=0.05, ema_decay=0.95,
    )  # fmt: skip
    algorithm.policy.denoiser.log_stds.requires_grad_(False)  # which the bias of five steps would change, too
    stds: list[float] = []
    algorithm._describe = lambda rollout: stds.append(float(rollout.rewards.std(correction=0))) or {}  # type: ignore
    algorithm.learn(100 * n * 5)
    expected = sum(stds[-40:]) / 40 / weight
    if everywhere:
        slopes = [float((t / ((1 - t).square() * 0.25 + t.square())).square().mean()) for t in _flow_times(algorithm)]
        expected *= slopes[0] / slopes[1]
    with algorithm.averaged():
        mean = algorithm.policy.denoiser.means[0].tolist()
    print(mean, expected)
    assert mean[0] - 0.5 == pytest.approx(expected, rel=0.1)
    assert mean[1] == pytest.approx(-0.5, abs=0.1)


def _flow_times(algorithm: ForwardProcess) -> tuple[Tensor, Tensor]:
    """The sampler's times, and uniform ones."""
    return algorithm.times.double() / 1000, torch.linspace(0, 1, 10_001, dtype=torch.float64)


# -- the algorithm -----------------------------------------------------------------------------------------------------


def counted(algorithm: ForwardProcess) -> list[int]:
    """Count denoiser rows from now on in the list's one number: a row with gradients as three forwards."""
    rows = [0]

    def hook(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        rows[0] += len(output) * (3 if output.requires_grad else 1)

    algorithm.policy.denoiser.register_forward_hook(hook)
    return rows


PROTOTYPE = {**NO_ANCHOR, "anchor_start": 1.0, "anchor_everywhere": True, "draws_per_image": 1}
#: The recipe of emoji-world: the same anchor to a moving average.
HELD = {**PROTOTYPE, "anchor_start": 0.0, "anchor_old": 1.0, "old_decay": 0.9, "old_warmup": 1.0}


@pytest.mark.parametrize(
    ("options", "per_image"),
    [
        (PRESETS["awm"], 5 + 2 * (3 + 2)),  # 5 steps; two draws of a trained row, old and start
        (PRESETS["nft"], 5 + 2 * (3 + 2)),
        (PRESETS["ram"], 5 + 2 * (3 + 1)),  # the present policy is the old one
        ({**PRESETS["ram"], "updates_per_iteration": 2}, 5 + 2 * (3 + 2)),
        ({**PRESETS["epg"], "passes": 2, "anchor_start": 0.0}, 5 + 2 * 2 * (3 + 1)),
        (PROTOTYPE, 5 + 3 + 3 + 1),
        (HELD, 5 + 3 + 3 + 1),
        ({**PRESETS["nft"], "anchor_everywhere": True}, 5 + 2 * (3 + 1 + 3 + 2)),
        ({**PROTOTYPE, "guidance_scale": 2.0}, 2 * (5 + 3 + 3 + 1)),
        ({**PROTOTYPE, "guidance_scale": 2.0, "cfg_training": False}, 2 * 5 + 3 + 3 + 1),
    ],
)
def test_what_is_billed_is_what_is_computed(make_env: Callable, options: dict[str, Any], per_image: int) -> None:
    algorithm = ForwardProcess(make_env(), trainable="full", **{**SMALL, **options})
    rows = counted(algorithm)
    algorithm.learn(1)
    assert algorithm.costs["forward_equivalents"] == rows[0] == 16 * per_image


@pytest.mark.parametrize("trainable", ["lora", "full"])
def test_the_start_is_the_model_before_training(make_env: Callable, tiny_sd: str, trainable: str) -> None:
    """On a pipeline, with adapters and with all weights: no distance at first, and some after an update."""
    env = make_env(tiny_sd, 2, "compressibility", prompts=["cat", "dog"])
    options = {**PROTOTYPE, "images_per_prompt": 4, "images_per_iteration": 8, "num_envs": 8}
    algorithm = ForwardProcess(env, trainable=trainable, learning_rate=0.01, eta=0.0, **options)
    logged: list[float] = []
    algorithm._log = lambda metrics: logged.append(metrics["train/drift_from_start"])  # type: ignore
    algorithm.learn(2 * 8 * 2)
    assert logged[0] == 0.0 < logged[1]


def test_an_anchor_to_the_moving_average_holds_back_and_lets_go(make_env: Callable) -> None:
    """The policy moves less than without the anchor, and keeps moving, because the average follows."""
    means = []
    for options, updates in (({"old_decay": 0.0, "anchor_old": 0.0, "anchor_everywhere": False}, 3), ({}, 3), ({}, 40)):
        algorithm = ForwardProcess(
            make_env("exact-gaussian", reward="exact-linear", steps=5), trainable="full", learning_rate=0.05,
            **{**SMALL, **HELD, "anchor_start": 0.0, "anchor_old": 20.0, **options},
        )  # fmt: skip
        means.append(float(algorithm.learn(updates * 16 * 5).policy.denoiser.means[0, 0].detach()))
    free, held, later = means
    assert 0.5 < held < 0.5 + 0.5 * (free - 0.5)
    assert later > held + 0.01


def test_nft_samples_with_its_old_policy_and_exports_the_new(make_env: Callable) -> None:
    """After two iterations the old policy lags; the next rollout is its own, and the new weights are left in place."""
    config = ForwardProcessConfig.preset("nft", old_decay=0.9, old_warmup=0.5, learning_rate=0.1, **SMALL)
    algorithm = ForwardProcess(make_env(), config, trainable="full").learn(2 * 16 * 5)
    assert algorithm.old is not None
    trained = algorithm.policy.denoiser.means.detach().clone()
    assert not torch.allclose(algorithm.old.tensors["means"], trained)
    rollout = algorithm.collect(algorithm._setup_learn(80, None)[1])
    assert torch.equal(algorithm.policy.denoiser.means.detach(), trained)
    algorithm.old.load(algorithm.policy.trainable_parameters())
    assert not torch.equal(algorithm.collect(algorithm._setup_learn(80, None)[1]).final_latents, rollout.final_latents)


def test_images_of_a_prompt_share_paired_noise(make_env: Callable, sample: Callable[..., Rollout]) -> None:
    algorithm = ForwardProcess(make_env(), trainable="full", paired_noise=True, **SMALL)
    times, noise = algorithm._draw(sample(algorithm, 16), 16, torch.Generator().manual_seed(0))
    times, noise = times.reshape(2, 8, 2), noise.reshape(2, 8, 2, -1)
    assert torch.equal(noise, noise[:, :1].expand_as(noise))
    assert torch.equal(times, times[:, :1].expand_as(times))
    assert len({tuple(row) for row in noise[:, 0].flatten(0, 1).tolist()}) == 4


def test_draws_of_an_image_are_spread_over_the_times(make_env: Callable, sample: Callable[..., Rollout]) -> None:
    """Five draws of five times take each once; two of them are uniform over the range, here the three noisiest."""
    algorithm = ForwardProcess(make_env(), trainable="full", draws_per_image=5, **SMALL)
    times = algorithm._draw(sample(algorithm, 16), 16, torch.Generator().manual_seed(0))[0].reshape(16, 5)
    assert times.sort(1, descending=True).values.tolist() == [[999, 799, 599, 399, 199]] * 16
    algorithm = ForwardProcess(make_env(), trainable="full", time_range=(0.5, 1.0), **SMALL)
    times = algorithm._draw(sample(algorithm, 16), 16_000, torch.Generator().manual_seed(0))[0]
    assert times.unique(return_counts=True)[0].tolist() == [599, 799, 999]
    assert ((times.unique(return_counts=True)[1] - 32_000 / 3).abs() < 400).all()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no draws": ({"draws_per_image": 0}, "draws_per_image must be at least 1, got 0"),
    "no passes": ({"passes": 0}, "passes must be at least 1"),
    "a falling range": ({"time_range": (1.0, 0.5)}, "time_range must be two numbers that rise within"),
    "a range of one": ({"time_range": (0.5,)}, "time_range must be two numbers"),
    "a range that is NaN": ({"time_range": (math.nan, 1.0)}, "time_range must be two numbers"),
    "an empty range": ({"time_range": (0.81, 0.98)}, "none of the sampler's 5 times lies in time_range"),
    "a clip without a ratio": (
        {"surrogate": "linear", "clip_range": 0.2},
        r"clip_range .0.2. has no effect on surrogate 'linear', which has no ratio",
    ),
    "a negative anchor": ({"anchor_start": -1.0}, "anchor_start must be at least 0, got -1.0"),
    "shares of broken groups": ({"updates_per_iteration": 3}, r"must divide the 2 groups .*2 would"),
    "an anchor to itself": ({"old_decay": 0.0}, "anchor_old .* has no effect: with one update"),
    "an unused average": ({**NO_ANCHOR, "old_decay": 0.5}, "the moving average of old_decay is not used"),
    "sampling with itself": ({**NO_ANCHOR, "sample_old": True}, "sample_old has no effect with old_decay 0"),
    "no anchor everywhere": (
        {**NO_ANCHOR, "anchor_everywhere": True},
        "needs an anchor_old or an anchor_start above 0",
    ),
    "an old policy of decay 1": ({"old_decay": 1.0}, r"old_decay must lie in \[0, 1\)"),
    "pairs of one": ({"images_per_prompt": 1, "advantages": "running", "paired_noise": True}, "paired_noise pairs"),
    "KL without noise": ({"kl_to_start": True}, "The KL to the starting model needs a stochastic sampler"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_do_nothing_is_refused(make_env: Callable, case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        ForwardProcess(make_env(), trainable="full", **{**SMALL, **options})


def test_presets_and_the_registry_agree() -> None:
    assert ForwardProcessConfig.preset("awm") == ForwardProcessConfig() == ALGORITHMS["awm"].config
    assert ForwardProcessConfig.preset("nft") == ALGORITHMS["nft"].config
    assert ForwardProcessConfig.variant(**PRESETS["nft"]) == "nft"
    with pytest.raises(ValueError, match=r"unknown preset 'grpo'; expected one of \['awm', 'epg', 'nft', 'ram'\]"):
        ForwardProcessConfig.preset("grpo")


def test_an_evaluation_without_noise_logs_no_kl(make_env: Callable) -> None:
    """The starting model is kept for the anchor, but no step has a density: there is no KL to log, rather than 0."""
    algorithm = ForwardProcess(make_env(), trainable="full", images=4, **SMALL).learn(1)
    assert algorithm.last_evaluation is not None
    assert algorithm.last_evaluation.kl_to_start is None

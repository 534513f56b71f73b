"""Distances to exact targets: closed forms, torch.distributions and numerical integration agree; runs log them."""

import math
from pathlib import Path

import pytest
import torch

from algorithms import DDPO
from benchmarks.runs.exact_targets import (
    DISTANCES,
    Tuned,
    equal_reward_tilt,
    excess_kl,
    expected_reward,
    kl,
    kl_from_start,
    mean_error,
    mode_weight_error,
    read_tuned,
    target_kl,
)
from benchmarks.runs.metrics import check_metric, parse_beta
from benchmarks.runs.run import run
from benchmarks.suite import EXACT_TASKS, Task
from benchmarks.suite.recipes import EXACT
from diffusion_gym.models.exact import EXACT_MODELS
from diffusion_gym.models.gaussian_mixture import GaussianMixture
from diffusion_gym.rewards import Linear, Quadratic

GAUSSIAN, MIXTURE = EXACT_MODELS["exact-gaussian"][0], EXACT_MODELS["exact-mixture"][0]


def gaussian(mean: list[float], std: float) -> GaussianMixture:
    one = torch.ones(1, dtype=torch.float64)
    return GaussianMixture(torch.tensor([mean], dtype=torch.float64), one * std, one)


def test_kl_of_gaussians_is_torchs() -> None:
    p, q = gaussian([0.3, -1.0], 0.4), gaussian([-0.2, 0.5], 0.9)
    normals = [torch.distributions.Normal(g.means[0], g.stds[0]) for g in (p, q)]
    assert kl(p, q) == pytest.approx(float(torch.distributions.kl_divergence(*normals).sum()), rel=1e-12)


def test_kl_by_quadrature_is_that_of_the_closed_form_of_a_grid_and_of_samples() -> None:
    # A Gaussian written as a mixture of two equal halves goes through the quadrature.
    p, q = gaussian([0.3, -1.0], 0.3), gaussian([-0.2, 0.5], 0.9)
    halves = [
        GaussianMixture(g.means.repeat(2, 1), g.stds.repeat(2), torch.full((2,), 0.5, dtype=torch.float64))
        for g in (p, q)
    ]
    assert kl(*halves) == pytest.approx(kl(p, q), abs=1e-9)
    tuned = MIXTURE.tilt_linear(torch.tensor([1.0, 0.5]), 0.7)
    axis = torch.linspace(-8, 8, 641, dtype=torch.float64)  # steps of a twelfth of the smallest std
    points = torch.cartesian_prod(axis, axis)
    gaps = tuned.log_prob(points) - MIXTURE.log_prob(points)
    assert kl(tuned, MIXTURE) == pytest.approx(float((tuned.log_prob(points).exp() * gaps).sum()) * 0.025**2, abs=1e-7)
    x = tuned.sample(100_000, torch.Generator().manual_seed(0))
    terms = tuned.log_prob(x) - MIXTURE.log_prob(x)
    assert kl(tuned, MIXTURE) == pytest.approx(float(terms.mean()), abs=4 * float(terms.std()) / math.sqrt(len(x)))


@pytest.mark.parametrize("reward", [Linear((1.0, -0.5)), Quadratic((0.4, 0.9))])
@pytest.mark.parametrize("mixture", [GAUSSIAN, MIXTURE])
def test_expected_reward_is_the_mean_over_samples(mixture: GaussianMixture, reward: Linear | Quadratic) -> None:
    x = mixture.sample(50_000, torch.Generator().manual_seed(0))
    if isinstance(reward, Linear):
        values = x @ reward.direction.double()
    else:
        values = -(x - reward.target.double()).square().sum(1)
    assert expected_reward(mixture, reward) == pytest.approx(
        float(values.mean()), abs=4 * float(values.std()) / math.sqrt(len(x))
    )


@pytest.mark.parametrize("reward", [Linear(), Quadratic()])
@pytest.mark.parametrize("start", [GAUSSIAN, MIXTURE])
def test_a_tilted_policy_has_no_distance_to_its_target(start: GaussianMixture, reward: Linear | Quadratic) -> None:
    untuned = Tuned(start, start, reward)
    policy = Tuned(untuned.target(0.8), start, reward)
    for distance in (target_kl, mean_error, mode_weight_error):
        assert distance(policy, 0.8) == pytest.approx(0, abs=1e-6)
        assert distance(untuned, 0.8) > 0.1 or len(start.weights) == 1
    assert excess_kl(policy, 1.0) == pytest.approx(0, abs=1e-6)
    assert kl_from_start(policy, 1.0) > 0.1


def test_excess_kl_is_what_pythagoras_says() -> None:
    """KL(policy | start) = KL(policy | tilted) + KL(tilted | start) where policy and tilted have the same reward."""
    policy = GaussianMixture(
        MIXTURE.means + torch.tensor([0.3, 0.2]), MIXTURE.stds * 0.8, torch.tensor([0.2, 0.5, 0.2, 0.1]).double()
    )
    tuned = Tuned(policy, MIXTURE, Linear())
    nearest = equal_reward_tilt(tuned)
    assert expected_reward(nearest, Linear()) == pytest.approx(expected_reward(policy, Linear()), abs=1e-9)
    assert kl(policy, MIXTURE) == pytest.approx(excess_kl(tuned, 1.0) + kl(nearest, MIXTURE), abs=1e-6)


def test_a_policy_below_the_start_is_measured_from_the_start() -> None:
    worse = Tuned(gaussian([-0.5, -0.5], 0.5), GAUSSIAN, Linear())
    assert excess_kl(worse, 1.0) == kl_from_start(worse, 1.0) > 0


@pytest.mark.parametrize("text", ["exact-target-kl?beta=0", "exact-target-kl?beta=x", "exact-mean-error?alpha=1"])
def test_bad_options_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="takes one option, beta=NUMBER"):
        check_metric(text)
    assert parse_beta("exact-target-kl?beta=0.5") == 0.5


def test_other_models_and_prompts_are_refused() -> None:
    import gymnasium

    import diffusion_gym

    def algorithm(**changes: object) -> DDPO:
        options = {"model": "exact-mixture", "reward": "exact-linear", "num_inference_steps": 2, **changes}
        return DDPO(
            gymnasium.make(diffusion_gym.ENV_ID, **options), trainable="full", num_envs=4, images_per_iteration=4
        )

    assert read_tuned(algorithm()).start is not None
    with pytest.raises(ValueError, match="need an exact model with exact-linear or exact-quadratic"):
        read_tuned(algorithm(reward=lambda images, prompts: torch.zeros(len(prompts))))
    with pytest.raises(ValueError, match="are for the prompt 'anywhere'"):
        read_tuned(algorithm(prompts=["north"]))


def test_a_run_comes_nearer_to_its_target_and_logs_it(tmp_path: Path) -> None:
    """DDPO-IS halves the KL to the target; the metrics have no sampling error, so the start's are known."""
    task = EXACT_TASKS["gaussian-linear"]
    spec = EXACT.spec(Task(task.config, reward_queries=768), "ddpo-is", 0)
    record = run(spec, tmp_path)
    first, last = (record.evaluations[index].metrics for index in (0, -1))
    assert set(first) == {*task.config.metrics, "diversity"}  # which every evaluation has
    assert {name.partition("?")[0] for name in task.config.metrics} <= set(DISTANCES)
    # The target's mean is std^2 / beta = 0.25 / 0.5 away, which is a KL of 0.5^2 / (2 * 0.25).
    assert first["exact-target-kl?beta=0.5"] == pytest.approx(0.5, abs=1e-6)
    assert first["exact-mean-error?beta=0.5"] == pytest.approx(0.5, abs=1e-6)
    assert first["exact-excess-kl"] == first["exact-kl-from-start"] == pytest.approx(0, abs=1e-9)
    assert last["exact-target-kl?beta=0.5"] < 0.25
    assert last["exact-kl-from-start"] > 0.05

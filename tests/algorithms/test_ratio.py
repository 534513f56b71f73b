"""The invariant everyone fights over: before the first update the importance ratio is 1, bit for bit.

Checked on the training path itself (``DDPO.update`` on a rollout with its stored log-probs): images shuffled, guidance
on, the last chunk smaller, on one thread and on two. ``make ratio-test`` runs these with each instruction set.
"""

from collections.abc import Callable

import pytest
import torch

from algorithms import DDPO

pytestmark = pytest.mark.ratio


@pytest.mark.parametrize("model", ["exact-gaussian", "exact-mixture", "exact-flow-gaussian", "exact-flow-mixture"])
@pytest.mark.parametrize("noise", [0, 1])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_ratio_is_one_on_exact_models(
    make_env: Callable, largest_log_ratios: Callable, model: str, noise: int, guidance: float
) -> None:
    """Latents of 8 bytes, so that chunks begin anywhere in memory."""
    sampler = (("flow-sde", "cps") if "flow" in model else ("ddim", "ddpm"))[noise]
    env = make_env(model, prompts=["anywhere", "centre" if "gaussian" in model else "north"])
    algorithm = DDPO(env, trainable="full", sampler=sampler, guidance_scale=guidance, updates_per_iteration=1)
    assert set(largest_log_ratios(algorithm).values()) == {0.0}


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("sampler", "prediction_type"), [("ddim", "epsilon"), ("ddpm", "v_prediction")])
def test_ratio_is_one_on_stable_diffusion(
    make_env: Callable, largest_log_ratios: Callable, build_tiny_sd: Callable, trainable: str, guidance: float,
    sampler: str, prediction_type: str,
) -> None:  # fmt: skip
    env = make_env(build_tiny_sd(prediction_type), steps=3, reward="compressibility", prompts=["cat", "dog"])
    algorithm = DDPO(env, trainable=trainable, sampler=sampler, guidance_scale=guidance, updates_per_iteration=1)
    assert set(largest_log_ratios(algorithm).values()) == {0.0}


@pytest.mark.parametrize("targets", [("attention",), ("all",)])
def test_ratio_is_one_on_the_embedded_model(
    make_env: Callable, largest_log_ratios: Callable, targets: tuple[str, ...]
) -> None:
    env = make_env("emoji-animals", steps=2, reward="compressibility", prompts=["cat", "dog"])
    algorithm = DDPO(env, targets=targets, updates_per_iteration=1)
    assert set(largest_log_ratios(algorithm, ((16, 1), (16, 2), (3, 1), (3, 2))).values()) == {0.0}


@pytest.mark.parametrize(("num_envs", "fraction"), [(12, 1.0), (6, 0.5), (4, 1.0)])
def test_every_update_scores_what_was_sampled(make_env: Callable, tiny_sd: str, num_envs: int, fraction: float) -> None:
    """Through ``learn``: 12 images, 3 updates of 4, chunks of 3, any rounds; steps too small to change a weight.

    A chunk that mixed images of two updates, or that was scored in another order, would round differently.
    """
    env = make_env(tiny_sd, steps=4, reward="compressibility", prompts=["cat", "dog"])
    algorithm = DDPO(
        env, trainable="full", guidance_scale=3.0, images_per_iteration=12, num_envs=num_envs, chunk_size=3,
        updates_per_iteration=3, learning_rate=1e-30, weight_decay=0.0, timestep_fraction=fraction,
    )  # fmt: skip
    logged: list[dict[str, float]] = []
    algorithm._log = lambda metrics: logged.append(dict(metrics))
    algorithm.learn(2 * 12 * 4)
    assert [metrics["train/log_ratio_abs_max"] for metrics in logged] == [0.0, 0.0]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_another_chunk_size_stays_within_the_promise(
    make_env: Callable, sample: Callable, tiny_sd: str, guidance: float
) -> None:
    """Kernels round by the batch's shape: scored in chunks of 3 what was sampled in chunks of 8, at most 1e-3 nats."""
    env = make_env(tiny_sd, steps=4, reward="compressibility", prompts=["cat", "dog"])
    made = [
        DDPO(env, trainable="full", guidance_scale=guidance, num_envs=8, images_per_iteration=8,
             updates_per_iteration=1, chunk_size=size) for size in (8, 3)
    ]  # fmt: skip
    assert made[1].update(sample(made[0], 8))["train/log_ratio_abs_max"] <= 1e-3


def test_ratio_leaves_one_after_an_update(make_env: Callable, sample: Callable) -> None:
    """The other direction: a measure that is always 0 would pass every test above."""
    algorithm = DDPO(make_env(), trainable="full", num_envs=8, images_per_iteration=8, updates_per_iteration=1)
    rollout = sample(algorithm, 8)
    first, second = algorithm.update(rollout), algorithm.update(rollout)
    assert first["train/log_ratio_abs_max"] == first["train/approx_kl"] == 0.0
    assert second["train/log_ratio_abs_max"] > 1e-4
    assert second["train/approx_kl"] > 0


def test_where_kernels_depend_on_the_place_a_shuffled_chunk_would_be_off() -> None:
    """The cause, traced: elementwise kernels finish a tensor with scalar code, which rounds differently.

    Where a processor has such kernels, rows that are no multiple of its vector, moved within a chunk, change. The test
    says so or is skipped, so that nobody takes the chunks' order for a formality.
    """
    x = 4 * torch.randn(3, 1, 5, 7, generator=torch.Generator().manual_seed(0))
    moved = torch.nn.functional.silu(x.roll(1, 0)).roll(-1, 0)
    if torch.equal(moved, torch.nn.functional.silu(x)):
        pytest.skip("on this processor SiLU of a row does not depend on the row's place")
    torch.testing.assert_close(moved, torch.nn.functional.silu(x), rtol=1e-6, atol=1e-7)

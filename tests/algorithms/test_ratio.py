"""The invariant everyone fights over: before the first update the importance ratio is 1, to the bit.

Checked on the training path itself (``DDPO.update`` on a rollout with its stored log-probs): images shuffled,
timesteps folded into the batch, guidance on, the last chunk padded.
"""

from collections.abc import Callable

import pytest
import torch

from algorithms import DDPO


def disturb(algorithm: DDPO) -> None:
    """Make adapters start at a nonzero update, so that an adapter left out somewhere would show."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in algorithm.policy.trainable_parameters().values():
            value.add_(0.02 * torch.randn(value.shape, generator=source))


def first_log_ratio(algorithm: DDPO, sample: Callable, n: int) -> float:
    """Largest |joint log-ratio| over all transitions of the first update."""
    return algorithm.update(sample(algorithm, n))["train/log_ratio_abs_max"]


@pytest.mark.parametrize("model", ["exact-gaussian", "exact-mixture", "exact-flow-gaussian", "exact-flow-mixture"])
@pytest.mark.parametrize("noise", [0, 1])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
def test_ratio_is_one_on_exact_models(
    make_env: Callable, sample: Callable, model: str, noise: int, guidance: float
) -> None:
    """12 images in rounds of 3, T = 5, chunks of 16: 60 or 48 transitions, so DDIM's last chunk is padded."""
    sampler = (("flow-sde", "cps") if "flow" in model else ("ddim", "ddpm"))[noise]
    env = make_env(model, prompts=["anywhere", "centre" if "gaussian" in model else "north"])
    algorithm = DDPO(
        env, trainable="full", sampler=sampler, guidance_scale=guidance, num_envs=3, images_per_iteration=12,
        updates_per_iteration=1,
    )  # fmt: skip
    disturb(algorithm)
    assert first_log_ratio(algorithm, sample, 12) == 0.0


@pytest.mark.parametrize("trainable", ["lora", "full"])
@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_ratio_is_one_on_stable_diffusion(
    make_env: Callable, sample: Callable, build_tiny_sd: Callable, trainable: str, guidance: float, sampler: str,
    prediction_type: str,
) -> None:  # fmt: skip
    """6 images in rounds of 3, T = 3: sampled 3 rows at a time, scored 4 at a time in 18 or 12 transitions."""
    env = make_env(build_tiny_sd(prediction_type), steps=3, reward="compressibility", prompts=["cat", "dog"])
    algorithm = DDPO(
        env, trainable=trainable, sampler=sampler, guidance_scale=guidance, num_envs=3, images_per_iteration=6,
        updates_per_iteration=1, chunk_size=4,
    )  # fmt: skip
    disturb(algorithm)
    assert first_log_ratio(algorithm, sample, 6) == 0.0


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

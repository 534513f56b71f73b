"""RWR's own choice: which prediction is fitted where sampling is guided ("CFG training"), and what that costs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import RWR
from algorithms.rollouts import Rollout

IMAGES, BATCH, UPDATES = 4, 8, 2


@pytest.fixture
def build(make_env: Callable, tiny_sd: str) -> Callable[..., RWR]:
    def make(**changes: Any) -> RWR:
        return RWR(
            make_env(tiny_sd, 2, "compressibility", prompts=["cat"]), trainable="full", images_per_iteration=IMAGES,
            images_per_prompt=IMAGES, num_envs=IMAGES, chunk_size=4, batch_size=BATCH, updates_per_iteration=UPDATES,
            **changes,
        )  # fmt: skip

    return make


def test_cfg_training_decides_which_prediction_is_fitted(
    build: Callable[..., RWR], sample: Callable[..., Rollout], digest: Callable[[Any], str]
) -> None:
    """Given the same images: without it, bit for bit what RWR that never guides would fit, for half the forwards."""
    guided, conditional = build(guidance_scale=3.0), build(guidance_scale=3.0, cfg_training=False)
    plain = build(guidance_scale=1.0)
    rollout = sample(guided, IMAGES)
    for algorithm in (guided, conditional, plain):
        algorithm.update(rollout)
    assert digest(conditional) == digest(plain) != digest(guided)
    trained = [algorithm.costs["forward_equivalents"] for algorithm in (guided, conditional, plain)]
    assert trained == [2 * 3 * BATCH * UPDATES, 3 * BATCH * UPDATES, 3 * BATCH * UPDATES]


def test_a_checkpoint_without_cfg_training_is_loaded(
    build: Callable[..., RWR], digest: Callable[[Any], str], tmp_path: Path
) -> None:
    algorithm = build(guidance_scale=3.0, cfg_training=False)
    algorithm.save(tmp_path / "saved.zip")
    loaded = RWR.load(tmp_path / "saved.zip", algorithm.get_env())
    assert not loaded.config.cfg_training
    assert digest(loaded) == digest(algorithm)


def test_sampling_is_guided_either_way(build: Callable[..., RWR], sample: Callable[..., Rollout]) -> None:
    with_it, without, plain = (
        sample(build(guidance_scale=scale, cfg_training=each), IMAGES).final_latents
        for scale, each in ((3.0, True), (3.0, False), (1.0, True))
    )
    assert torch.equal(with_it, without)
    assert not torch.equal(with_it, plain)

"""What training leaves behind loads into plain diffusers and makes the same images there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from algorithms import DDPO, DDPOConfig, DenoisingPolicy, PolicyConfig
from algorithms.policy import Rows
from diffusion_gym import LoRAConfig

STEPS, PROMPTS = 4, ["a cat", "dog"]
LORA = LoRAConfig(rank=2, alpha=16.0)  # scaled by 8: ignoring alpha would shrink the update eightfold


def tuned(make_env: Callable, tiny_sd: str, **policy: Any) -> DDPO:
    """A short run at a learning rate that visibly changes the images."""
    env = make_env(tiny_sd, steps=STEPS, reward="compressibility", prompts=PROMPTS)
    config = DDPOConfig(images_per_iteration=8, num_envs=8, learning_rate=0.01, policy=PolicyConfig(**policy))
    return DDPO(env, config).learn(3 * 8 * STEPS)


def policy_latents(algorithm: DDPO, start: Tensor, **policy: Any) -> Tensor:
    """The tuned denoiser sampled by this package at eta 0."""
    model = algorithm.mdp.model
    sampler = DenoisingPolicy(model, STEPS, PolicyConfig(eta=0.0, guidance_scale=5.0, **policy))
    sampler.denoiser = algorithm.policy.denoiser
    conditioning, x = model.encode_prompts(PROMPTS), start
    for step in range(STEPS):
        x, _ = sampler.sample(Rows(x, torch.full((len(x),), step), conditioning), torch.zeros_like(x))
    return x


def pipeline_latents(pipe: StableDiffusionPipeline, start: Tensor) -> Tensor:
    """Plain diffusers at eta 0; its latents before the VAE."""
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPTS, latents=start.clone(), num_inference_steps=STEPS, guidance_scale=5.0, eta=0.0, output_type="latent"
    ).images  # fmt: skip


def load(folder: str) -> StableDiffusionPipeline:
    """A pipeline without this package's help."""
    return StableDiffusionPipeline.from_pretrained(
        folder, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )  # fmt: skip


@pytest.fixture
def start() -> Tensor:
    """Initial latents for two images."""
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_lora_loads_into_plain_diffusers(make_env: Callable, tiny_sd: str, tmp_path: Path, start: Tensor) -> None:
    """``load_lora_weights`` restores the update with its alpha; without it the latents are far off."""
    algorithm = tuned(make_env, tiny_sd, trainable="lora", lora=LORA)
    algorithm.export(tmp_path / "lora")
    expected = policy_latents(algorithm, start, trainable="lora", lora=LORA)
    pipe = load(tiny_sd)
    untuned = pipeline_latents(pipe, start)
    pipe.load_lora_weights(str(tmp_path / "lora"))
    loaded = pipeline_latents(pipe, start)
    scale = float((expected - untuned).abs().max())
    assert scale > 0.05  # latents are of order 1: the tuning did change something
    assert float((loaded - expected).abs().max()) < 1e-3 * scale


def test_lora_gives_the_same_pictures(make_env: Callable, tiny_sd: str, tmp_path: Path, start: Tensor) -> None:
    """Decoded: at most one grey level apart, by the rounding to uint8."""
    algorithm = tuned(make_env, tiny_sd, trainable="lora", lora=LORA)
    algorithm.export(tmp_path / "lora")
    pipe = load(tiny_sd)
    pipe.load_lora_weights(str(tmp_path / "lora"))
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        PROMPTS, latents=start.clone(), num_inference_steps=STEPS, guidance_scale=5.0, eta=0.0, output_type="pt"
    ).images  # fmt: skip
    ours = algorithm.mdp.model.decode(policy_latents(algorithm, start, trainable="lora", lora=LORA))
    assert ours.shape == theirs.shape == (2, 3, 16, 16)
    assert float(((theirs * 255).round() - ours.float()).abs().max()) <= 1


def test_full_weights_are_a_pipeline_folder(make_env: Callable, tiny_sd: str, tmp_path: Path, start: Tensor) -> None:
    algorithm = tuned(make_env, tiny_sd, trainable="full")
    algorithm.export(tmp_path / "full")
    loaded = pipeline_latents(load(str(tmp_path / "full")), start)
    expected = policy_latents(algorithm, start, trainable="full")
    scale = float((expected - pipeline_latents(load(tiny_sd), start)).abs().max())
    assert scale > 0.05
    assert float((loaded - expected).abs().max()) < 1e-3 * scale


def test_training_leaves_the_shared_model_alone(make_env: Callable, tiny_sd: str) -> None:
    """No adapter is put into a cached pipeline in place: a second policy starts from the pretrained weights."""
    env = make_env(tiny_sd, steps=STEPS, reward="compressibility", prompts=PROMPTS)
    unet = env.unwrapped.mdp.model.pipe.unet
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    for trainable in ("lora", "full"):
        tuned(make_env, tiny_sd, trainable=trainable)
    after = unet.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)

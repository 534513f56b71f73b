"""The pixel-space DDPM against diffusers' DDPMPipeline, and what a model without prompts refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms import DDPO, DenoisingPolicy, PolicyConfig
from algorithms.policy import Rows
from diffusion_gym import LoRAConfig, load_model

STEPS = 4


@pytest.fixture
def ddpm(build: Callable[[str], Any]) -> Any:
    """The tiny pipeline."""
    return build("ddpm")


def _copy(folder: str, tmp_path: Path, file: str, **changes: Any) -> str:
    """Copy the pipeline, with another value in one of its JSON files."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    path = target / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(target)


def _sample(folder: str, seed: int, config: PolicyConfig) -> Tensor:
    """Draw one image with the noise that a pipeline draws from one generator."""
    model, source = load_model(folder), torch.Generator().manual_seed(seed)
    policy, conditioning = DenoisingPolicy(model, STEPS, config), model.encode_prompts([""])
    x = torch.randn(1, *model.latent_shape, generator=source)
    for step in range(STEPS):
        noisy = bool(policy.transition.has_density[step])
        noise = torch.randn(x.shape, generator=source) if noisy else None
        x, _ = policy.sample(Rows(x, torch.tensor([step]), conditioning), noise)
    return x


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_ancestral_sampling_is_the_ddpm_pipelines(ddpm: Any, tmp_path: Path, variance_type: str) -> None:
    """The pipeline's own sampler, noise and all: x_0 clipped to [-1, 1], the last step to time 0 without noise."""
    folder = _copy(ddpm.folder, tmp_path, "scheduler/scheduler_config.json", variance_type=variance_type)
    pipe = ddpm.plain(folder)
    expected = pipe(
        batch_size=1, generator=torch.Generator().manual_seed(3), num_inference_steps=STEPS, output_type="pt"
    ).images
    latents = _sample(folder, 3, PolicyConfig(trainable="full", sampler="ddpm"))
    torch.testing.assert_close((latents / 2 + 0.5).clamp(0, 1), expected, rtol=1e-4, atol=1e-5)
    images = load_model(folder).decode(latents)
    assert (images.float() - (expected * 255).round()).abs().max() <= 1
    assert expected.std() > 0.05


def test_a_ddim_pipelines_folder_is_the_same_family(ddpm: Any, tmp_path: Path) -> None:
    from diffusers import DDIMPipeline, DDIMScheduler

    pipe = ddpm.plain()
    DDIMPipeline(pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config)).save_pretrained(tmp_path)
    config = PolicyConfig(trainable="full", eta=0.5)
    assert torch.equal(_sample(str(tmp_path), 1, config), _sample(ddpm.folder, 1, config))


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_the_end_of_a_grid_that_ends_at_0(ddpm: Any, tmp_path: Path, spacing: str) -> None:
    """It looks like the last step, and ``predict`` denoises it as one, as documented; no environment takes that."""
    folder = _copy(ddpm.folder, tmp_path, "scheduler/scheduler_config.json", timestep_spacing=spacing)
    env = gymnasium.make("DiffusionDenoise-v0", model=folder, num_inference_steps=STEPS)
    policy = DenoisingPolicy(env.unwrapped.mdp.model, STEPS, PolicyConfig(trainable="full"))
    observation, _ = env.reset(seed=0)
    last, ended = observation, False
    while not ended:
        last = observation
        observation, _, ended, _, info = env.step(policy.predict(observation, deterministic=True)[0])
    assert last["timestep"] == observation["timestep"] == 0
    assert info["step_index"] == STEPS
    action, _ = policy.predict(observation, deterministic=True)
    expected, _ = policy.predict({**last, "latent": observation["latent"]}, deterministic=True)
    assert np.array_equal(action, expected)
    assert not np.array_equal(action, observation["latent"])
    with pytest.raises(RuntimeError, match="the episode is over"):
        env.step(action)


def test_latents_are_pixels(ddpm: Any) -> None:
    model = ddpm.model
    assert model.latent_shape == model.image_shape == (3, 16, 16)
    assert dict(model.conditioning_shapes) == {"prompt_embedding": (1, 1)}
    latents = torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]).reshape(5, 1, 1, 1).expand(5, 3, 16, 16)
    assert model.decode(latents)[:, 0, 0, 0].tolist() == [0, 0, 128, 255, 255]


def test_prompts_reach_the_reward_alone(ddpm: Any, make_env: Callable) -> None:
    seen: list[str] = []

    def reward(images: Tensor, prompts: list[str]) -> Tensor:
        seen.extend(prompts)
        return torch.ones(len(prompts))

    env = make_env(ddpm.folder, steps=1, prompts=["a red square"], reward=reward)
    observation, info = env.reset(seed=0)
    assert observation["prompt_embedding"].tolist() == [[0.0]]
    env.step(observation["latent"])
    assert seen == [info["prompt"]] == ["a red square"]
    assert make_env(ddpm.folder, prompts=None).unwrapped.mdp.prompts == ("an image",)


def test_guidance_is_refused(ddpm: Any, make_env: Callable) -> None:
    with pytest.raises(ValueError, match=r"is unconditional: .* Leave guidance_scale at 1"):
        DDPO(make_env(ddpm.folder), guidance_scale=2.0)
    DDPO(make_env(ddpm.folder), guidance_scale=0.0, trainable="full")  # none, as in diffusers


def test_merged_adapters_are_in_the_exported_unet(ddpm: Any, tmp_path: Path) -> None:
    """Also convolutions; no trace of peft is left in the folder's names, and the adapters go on training after it."""
    config = LoRAConfig(rank=2, alpha=8.0, targets=("all",))
    denoiser = ddpm.model.build_denoiser(config)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in denoiser.named_parameters():
            if "lora_B" in name:
                value.copy_(0.1 * torch.randn(value.shape, generator=source))
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    ddpm.model.export(denoiser, tmp_path, config)
    pipe = ddpm.plain(tmp_path)
    assert set(pipe.unet.state_dict()) == set(ddpm.model.pipe.unet.state_dict())
    latents, times = torch.randn(2, 3, 16, 16, generator=source), torch.tensor([900, 10])
    with torch.no_grad():
        expected = denoiser(latents, times, {})
        torch.testing.assert_close(pipe.unet(latents, times).sample, expected, rtol=1e-4, atol=1e-5)
        assert (ddpm.plain().unet(latents, times).sample - expected).abs().max() > 1e-2
    after = denoiser.state_dict()
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("variance_type", ["learned", "learned_range"])
def test_a_learned_variance_is_refused(ddpm: Any, tmp_path: Path, variance_type: str) -> None:
    folder = _copy(ddpm.folder, tmp_path, "scheduler/scheduler_config.json", variance_type=variance_type)
    with pytest.raises(ValueError, match=rf"predicts a variance .*variance_type='{variance_type}'.* fixed variance"):
        load_model(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"out_channels": 6}, "6 output channels for 3"),
        ({"in_channels": 1, "out_channels": 1}, "1 input and 1 output channels; expected 3 and 3"),
        ({"num_class_embeds": 10}, "conditioned on classes"),
    ],
)
def test_other_networks_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    sizes: dict[str, Any] = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}
    blocks: dict[str, Any] = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=16, attention_head_dim=4, **sizes, **blocks, **changes)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path))

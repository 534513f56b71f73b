"""What Stable Diffusion 3 has beside the others: three encoders, T5 optional, a velocity, and a scheduler of flows."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from algorithms import DenoisingPolicy, PolicyConfig
from diffusion_gym import load_model
from diffusion_gym.transitions import CPS, FlowSDE

PROMPTS = ["a cat", "dog", ""]


@pytest.fixture
def sd3(build: Callable[[str], Any]) -> Any:
    """The tiny pipeline."""
    return build("sd3")


def _copy(folder: str, tmp_path: Path, **changes: Any) -> Path:
    """Copy the pipeline, with other values in its index."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    path = target / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return target


@pytest.mark.parametrize("name", ["sd3", "sd3-without-t5"])
def test_conditioning_is_the_pipelines(build: Callable[[str], Any], name: str) -> None:
    """CLIP's 16 tokens, both encoders side by side and padded to T5's width, then T5's; the pooled ones joined."""
    built = build(name)
    tokens = 16 if name == "sd3" else 256
    embedding, negative, pooled, negative_pooled = built.plain().encode_prompt(
        PROMPTS, None, None, device="cpu", max_sequence_length=tokens
    )
    encoded, empty = built.model.encode_prompts(PROMPTS), built.model.encode_unconditional()
    torch.testing.assert_close(encoded["prompt_embedding"], embedding, rtol=0, atol=1e-5)
    torch.testing.assert_close(encoded["pooled_prompt_embedding"], pooled, rtol=0, atol=1e-5)
    torch.testing.assert_close(empty["prompt_embedding"], negative[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(empty["pooled_prompt_embedding"], negative_pooled[:1], rtol=0, atol=1e-5)
    assert {name: tuple(value.shape[1:]) for name, value in encoded.items()} == built.model.conditioning_shapes
    assert built.model.conditioning_shapes == {
        "prompt_embedding": (16 + tokens, 72), "pooled_prompt_embedding": (48,)
    }  # fmt: skip
    t5 = encoded["prompt_embedding"][:, 16:]
    assert (t5.abs().max() > 0.1) == (name == "sd3")
    if name == "sd3":
        assert (t5[0] - t5[1]).abs().max() > 0.1


def test_times_and_each_key_of_the_conditioning_reach_the_transformer(sd3: Any) -> None:
    model = sd3.model
    denoiser, times = model.build_denoiser(), torch.tensor([500.0])
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    encoded = model.encode_prompts(["a cat"])
    with torch.no_grad():
        base = denoiser(latents, times, encoded)
        assert (denoiser(latents, times + 0.5, encoded) - base).abs().max() > 1e-5, "times are not rounded"
        for name, value in encoded.items():
            assert (denoiser(latents, times, {**encoded, name: value + 1}) - base).abs().max() > 1e-4, name


def test_default_sampler_is_flow_sde_and_a_diffusion_sampler_is_refused(sd3: Any) -> None:
    assert isinstance(DenoisingPolicy(sd3.model, 4, PolicyConfig()).transition, FlowSDE)
    assert isinstance(DenoisingPolicy(sd3.model, 4, PolicyConfig(sampler="cps")).transition, CPS)
    with pytest.raises(ValueError, match=r"'ddim' does not fit this flow-matching model; .* \['flow-sde', 'cps'\]"):
        DenoisingPolicy(sd3.model, 4, PolicyConfig(sampler="ddim"))


def test_networks_in_bfloat16(sd3: Any) -> None:
    """Conditioning and images as in float32, to bfloat16's 8 bits; the policy's latents stay float32."""
    model = load_model(sd3.folder, dtype="bfloat16")
    policy = DenoisingPolicy(model, 4, PolicyConfig())
    conditioning = model.encode_prompts(["a cat"])
    assert all(value.dtype == torch.float32 for value in conditioning.values())
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = policy.model_output(latents, torch.tensor([750.0]), conditioning)
        exact = sd3.model.build_denoiser()(latents, torch.tensor([750.0]), sd3.model.encode_prompts(["a cat"]))
    assert output.dtype == torch.float32
    assert (output - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2", "tokenizer_3"])
def test_a_missing_tokenizer_is_named(sd3: Any, tmp_path: Path, part: str) -> None:
    target = _copy(sd3.folder, tmp_path)
    shutil.rmtree(target / part)
    with pytest.raises(ValueError, match=part):
        load_model(str(target))


def test_a_diffusion_models_scheduler_is_refused(sd3: Any, tmp_path: Path) -> None:
    folder = _copy(sd3.folder, tmp_path, scheduler=["diffusers", "DDIMScheduler"])
    DDIMScheduler().save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match=r"is a DDIMScheduler.*expected one of FlowMatchEulerDiscreteScheduler"):
        load_model(str(folder))

"""What the families have beside the others whose prompts a language model reads: Qwen-Image, Z-Image, Flux.2-klein."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms import DDPO, DenoisingPolicy, PolicyConfig
from benchmarks.runs.memory import estimate_memory
from diffusion_gym import load_model
from diffusion_gym.models.flux import pack
from diffusion_gym.models.language import LanguagePipeline
from tests.builders.language_pipelines import build_flux_2_klein
from tests.builders.tokenizers import TOKENS

NAMES = ["qwen-image", "z-image", "flux-2-klein"]


def _latents(model: Any, n: int) -> torch.Tensor:
    return torch.randn(n, *model.latent_shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_read_up_to_its_last_token(build: Callable[[str], Any], name: str) -> None:
    """What follows changes neither the embedding nor the key by which prompts are told apart."""
    model = build(name).model
    assert model.longest_prompt == TOKENS
    prompts = ["z" * 40, "z" * 40 + "y", "zy"]
    first, longer, short = model.read_of(prompts)
    assert first == longer != short
    encoded = [model.encode_prompts([prompt])["prompt_embedding"] for prompt in prompts]
    assert torch.equal(encoded[0], encoded[1])
    assert not torch.equal(encoded[0], encoded[2])


@pytest.mark.parametrize("name", ["qwen-image", "z-image"])
def test_padding_is_not_read(build: Callable[[str], Any], name: str) -> None:
    """Prompts of different lengths in one pass are what each is alone, whatever the padding holds."""
    model = build(name).model
    assert isinstance(model, LanguagePipeline)
    denoiser, times, latents = model.build_denoiser(), torch.full((3,), 500.0), _latents(model, 3)
    given = model.encode_prompts(["a cat", "dog", ""])
    padding = given["prompt_padding"]
    assert len(set(padding.sum(1).tolist())) == 3, "all lengths differ"
    assert (given["prompt_embedding"][padding == 1] == 0).all()
    other = given["prompt_embedding"] + 7.0 * padding[..., None]
    with torch.no_grad():
        together = denoiser(latents, times, given)
        assert torch.equal(denoiser(latents, times, {**given, "prompt_embedding": other}), together)
        alone = [
            denoiser(latents[i : i + 1], times[:1], {key: value[i : i + 1] for key, value in given.items()})
            for i in range(3)
        ]
        unmasked = denoiser(latents, times, {**given, "prompt_padding": torch.zeros_like(padding)})
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-4, atol=1e-5)
    assert (unmasked - together).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_memory_is_measured_with_the_longest_prompt(build: Callable, make_env: Callable, name: str) -> None:
    """Its rows of zeros have no padding; a rollout keeps embedding and padding of each image."""
    settings = {"images_per_iteration": 2, "updates_per_iteration": 1, "num_envs": 2, "chunk_size": 2}
    algorithm = DDPO(make_env(build(name).folder), **settings)
    assert float(algorithm.policy.blank_rows(2).conditioning.get("prompt_padding", torch.zeros(1)).sum()) == 0
    estimate, shapes = estimate_memory(algorithm), algorithm.mdp.model.conditioning_shapes
    floats = sum(torch.Size(shape).numel() for shape in shapes.values())
    latents = torch.Size(algorithm.mdp.model.latent_shape).numel()
    assert estimate.rollout == 2 * (4 * 4 * latents + 3 * 4 + 4 * floats + 4 + 3 * 16 * 16)
    assert estimate.working > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_vae_names_the_size(altered: Callable[..., str], name: str) -> None:
    """20 pixels are 10 latents a side, 5 tokens: an odd number, and for Z-Image no multiple of 32."""
    model = load_model(altered(name, lambda pipe: pipe.vae.register_to_config(sample_size=20)))
    assert model.image_shape == (3, 20, 20)
    assert model.latent_shape == ((16, 5, 5) if name == "flux-2-klein" else (4, 10, 10))


def test_guidance_of_qwen_image_keeps_each_tokens_norm(build: Callable[[str], Any]) -> None:
    model = build("qwen-image").model
    uncond, cond = _latents(model, 4).chunk(2)
    guided = model.guide(uncond, cond, 3.0)
    torch.testing.assert_close(pack(guided).norm(dim=-1), pack(cond).norm(dim=-1))
    plain = uncond + 3.0 * (cond - uncond)
    cosine = torch.nn.functional.cosine_similarity(pack(guided), pack(plain), dim=-1)
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_a_distilled_klein_has_no_guidance(tmp_path: Path) -> None:
    """Its pipeline would ignore the scale without a word that a program hears."""
    build_flux_2_klein(tmp_path, distilled=True)
    model = load_model(str(tmp_path))
    assert DenoisingPolicy(model, 4, PolicyConfig()).forwards_per_row == 1
    with pytest.raises(ValueError, match="was distilled to few steps and has no guidance; leave guidance_scale at 1"):
        DenoisingPolicy(model, 4, PolicyConfig(guidance_scale=4.0))


def test_a_missing_tokenizer_is_named(build: Callable[[str], Any], tmp_path: Path) -> None:
    target = tmp_path / "copy"
    shutil.copytree(build("qwen-image").folder, target)
    shutil.rmtree(target / "tokenizer")
    with pytest.raises(ValueError, match="tokenizer"):
        load_model(str(target))

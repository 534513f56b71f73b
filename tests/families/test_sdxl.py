"""What SDXL has beside Stable Diffusion: two encoders, the pooled embedding, the size, zeros without a prompt."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diffusion_gym import load_model
from diffusion_gym.models.stable_diffusion_xl import StableDiffusionXL

PROMPTS = ["a cat", "dog", ""]


@pytest.fixture
def sdxl(build: Callable[[str], Any]) -> Any:
    """The tiny pipeline."""
    return build("sdxl")


def _copy(folder: str, tmp_path: Path, file: str, **changes: Any) -> str:
    """Copy the pipeline, with another value in one of its JSON files."""
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    path = target / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return str(target)


def test_conditioning_is_the_pipelines(sdxl: Any) -> None:
    pipe, encoded = sdxl.plain(), sdxl.model.encode_prompts(PROMPTS)
    embedding, _, pooled, _ = pipe.encode_prompt(PROMPTS, device="cpu", do_classifier_free_guidance=False)
    torch.testing.assert_close(encoded["prompt_embedding"], embedding, rtol=0, atol=0)
    torch.testing.assert_close(encoded["pooled_prompt_embedding"], pooled, rtol=0, atol=0)
    ids = pipe._get_add_time_ids((16, 16), (0, 0), (16, 16), torch.float32, pipe.text_encoder_2.config.projection_dim)
    assert encoded["time_ids"].tolist() == ids.tolist() * 3 == [[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]] * 3
    assert {name: tuple(value.shape[1:]) for name, value in encoded.items()} == sdxl.model.conditioning_shapes
    assert sdxl.model.conditioning_shapes["prompt_embedding"] == (16, 64)
    assert all(value.dtype == torch.float32 for value in encoded.values())


@pytest.mark.parametrize("zeros", [True, False])
def test_unconditional_is_the_pipelines(sdxl: Any, tmp_path: Path, zeros: bool) -> None:
    """Zeros where the pipeline's flag says so, as ``negative_prompt=None`` gives; otherwise the empty prompt."""
    folder = _copy(sdxl.folder, tmp_path, "model_index.json", force_zeros_for_empty_prompt=zeros)
    _, embedding, _, pooled = sdxl.plain(folder).encode_prompt(["cat"], device="cpu", do_classifier_free_guidance=True)
    encoded = load_model(folder).encode_unconditional()
    torch.testing.assert_close(encoded["prompt_embedding"], embedding, rtol=0, atol=1e-6)
    torch.testing.assert_close(encoded["pooled_prompt_embedding"], pooled, rtol=0, atol=1e-6)
    assert (encoded["prompt_embedding"] == 0).all() == zeros
    assert encoded["time_ids"].tolist() == [[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]]


def test_each_key_of_the_conditioning_reaches_the_unet(sdxl: Any) -> None:
    model = sdxl.model
    denoiser, times = model.build_denoiser(), torch.tensor([500])
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    encoded = model.encode_prompts(["a cat"])
    with torch.no_grad():
        base = denoiser(latents, times, encoded)
        for name, value in encoded.items():
            assert (denoiser(latents, times, {**encoded, name: value + 1}) - base).abs().max() > 1e-4, name


def test_vae_stays_float32_beside_float16(sdxl: Any, tmp_path: Path) -> None:
    """SDXL's VAE overflows in float16 (``force_upcast``); the pipeline upcasts it for decoding, as is done here."""
    model = load_model(sdxl.folder, dtype="float16")
    assert isinstance(model, StableDiffusionXL)
    assert model.pipe.vae.dtype == torch.float32
    assert {model.pipe.unet.dtype, model.pipe.text_encoder.dtype} == {torch.float16}
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    assert (model.decode(latents).int() - sdxl.model.decode(latents).int()).abs().max() <= 1  # stored weights rounded
    fixed = load_model(_copy(sdxl.folder, tmp_path, "vae/config.json", force_upcast=False), dtype="float16")
    assert isinstance(fixed, StableDiffusionXL)
    assert fixed.pipe.vae.dtype == torch.float16


def test_latents_mean_and_std_of_the_vae(sdxl: Any, tmp_path: Path) -> None:
    """Some SDXL models normalise each channel; the pipeline undoes it before decoding."""
    numbers = {"latents_mean": [-1.5, 0.5, 0.0, 1.0], "latents_std": [2.0, 3.0, 4.0, 5.0]}
    model = load_model(_copy(sdxl.folder, tmp_path, "vae/config.json", **numbers))
    latents = torch.randn(2, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(numbers[f"latents_{name}"]).reshape(1, 4, 1, 1) for name in ("mean", "std"))
    pipe = sdxl.plain()
    with torch.no_grad():
        pixels = pipe.vae.decode(latents * std / pipe.vae.config.scaling_factor + mean).sample
    pictures = pipe.image_processor.postprocess(pixels, output_type="pt")
    images = model.decode(latents)
    assert (images.float() - (pictures * 255).round()).abs().max() <= 1
    with torch.no_grad():
        mode = pipe.vae.encode(images.float() / 127.5 - 1).latent_dist.mode()
    torch.testing.assert_close(
        model.encode_images(images), (mode - mean) / std * pipe.vae.config.scaling_factor, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("part", ["tokenizer", "tokenizer_2"])
def test_a_missing_tokenizer_is_named(sdxl: Any, tmp_path: Path, part: str) -> None:
    target = tmp_path / "broken"
    shutil.copytree(sdxl.folder, target)
    shutil.rmtree(target / part)
    with pytest.raises(ValueError, match=part):
        load_model(str(target))


def test_a_missing_text_encoder_is_named(sdxl: Any, tmp_path: Path) -> None:
    folder = _copy(sdxl.folder, tmp_path, "model_index.json", text_encoder=[None, None], tokenizer=[None, None])
    with pytest.raises(ValueError, match="lacks a text encoder"):
        load_model(folder)

"""What PixArt-Sigma has beside the others: T5's padding that is masked, small letters, a variance that is left out."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from diffusion_gym import load_model

PROMPTS = ["A cat, two  dogs", "dog", ""]


@pytest.fixture
def pixart(build: Callable[[str], Any]) -> Any:
    """The tiny pipeline."""
    return build("pixart-sigma")


def test_conditioning_is_the_pipelines(pixart: Any) -> None:
    """With its default of 300 tokens, though the tokenizer names 16; the empty prompt as its guidance reads it."""
    embedding, mask, negative, negative_mask = pixart.plain().encode_prompt(PROMPTS, device="cpu")
    encoded, empty = pixart.model.encode_prompts(PROMPTS), pixart.model.encode_unconditional()
    torch.testing.assert_close(encoded["prompt_embedding"], embedding, rtol=0, atol=1e-5)
    assert torch.equal(encoded["prompt_padding"], 1.0 - mask)
    torch.testing.assert_close(empty["prompt_embedding"], negative[:1], rtol=0, atol=1e-5)
    assert torch.equal(empty["prompt_padding"], 1.0 - negative_mask[:1])
    assert pixart.model.conditioning_shapes == {"prompt_embedding": (300, 24), "prompt_padding": (300,)}


def test_padding_is_masked_and_the_prompt_is_not(pixart: Any) -> None:
    model = pixart.model
    denoiser, times = model.build_denoiser(), torch.tensor([500])
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    encoded = model.encode_prompts(["a cat"])
    padding = encoded["prompt_padding"][..., None]
    with torch.no_grad():
        base = denoiser(latents, times, encoded)
        assert base.shape == latents.shape, "the variance's channels are left out"
        for changed, name in ((padding, "padding"), (1 - padding, "the prompt")):
            embedding = encoded["prompt_embedding"] + changed
            difference = denoiser(latents, times, {**encoded, "prompt_embedding": embedding}) - base
            assert (difference.abs().max() > 1e-4) == (name == "the prompt"), name


def test_prompts_that_differ_in_capitals_are_one_to_the_model(pixart: Any) -> None:
    one, same, other = pixart.model.read_of(["A Cat", "a cat ", "a dog"])
    assert one == same != other


def test_a_transformer_that_takes_the_size_is_refused(altered: Callable[..., str]) -> None:
    """As PixArt-Alpha's does at 1,024 pixels: its pipeline gives the size, and PixArt-Sigma's none."""
    from diffusers import PixArtTransformer2DModel

    sizes = {"attention_head_dim": 8, "num_attention_heads": 2, "num_layers": 1, "cross_attention_dim": 16}
    given = PixArtTransformer2DModel(**sizes, sample_size=8, caption_channels=24, use_additional_conditions=True)
    with pytest.raises(ValueError, match=r"altered' takes the picture's size .*expected one of PixArt-Sigma"):
        load_model(altered("pixart-sigma", transformer=given))

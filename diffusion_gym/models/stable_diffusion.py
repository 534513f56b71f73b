"""The Stable Diffusion 1.x and 2.x family: one UNet conditioned on one CLIP text encoder (epsilon or v prediction)."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import PROMPT_EMBEDDING, Conditioning
from diffusion_gym.models.pipeline import PipelineDenoiser
from diffusion_gym.models.text import TrainableTextModel
from diffusion_gym.recommended import STABLE_DIFFUSION


class UNetDenoiser(PipelineDenoiser):
    """A UNet2DConditionModel behind the denoiser's signature."""

    component: ClassVar[str] = "unet"
    unet: Any

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon or v, (n, c, h, w)."""
        dtype = self.dtype
        embedding = conditioning[PROMPT_EMBEDDING].to(dtype)
        return self.unet(latents.to(dtype), timesteps, encoder_hidden_states=embedding, return_dict=False)[0]


class StableDiffusion(TrainableTextModel):
    """A StableDiffusionPipeline folder or hub id."""

    text_encoders: ClassVar[Mapping[str, str]] = MappingProxyType({"text_encoder": "prompt_tokens"})
    denoiser_class: ClassVar[type[PipelineDenoiser]] = UNetDenoiser
    recommended = STABLE_DIFFUSION
    load_options: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )

    def _check_parts(self) -> None:
        check_not_distilled(self.name, self.pipe.unet)

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        return {PROMPT_EMBEDDING: (self.pipe.tokenizer.model_max_length, self.pipe.text_encoder.config.hidden_size)}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts with the pipeline's own tokenizer and text encoder; (n, L, D), float32."""
        embedding, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return {PROMPT_EMBEDDING: embedding.float()}

    def encode_tokens(self, encoders: Mapping[str, Any], conditioning: Conditioning) -> Conditioning:
        """Return the encoder's last hidden states, (n, L, D), with gradients."""
        return {PROMPT_EMBEDDING: encoders["text_encoder"](conditioning["prompt_tokens"])[0]}


def check_not_distilled(name: str, unet: Any) -> None:
    """Raise ValueError for a UNet that takes the guidance scale as an input (latent consistency models)."""
    if unet.config.time_cond_proj_dim is not None:
        raise ValueError(
            f"the UNet of {name!r} is guidance-distilled (time_cond_proj_dim={unet.config.time_cond_proj_dim}), as "
            "latent consistency models are, which is not supported; use the model that it was distilled from."
        )

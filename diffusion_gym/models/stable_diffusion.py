"""The Stable Diffusion 1.x and 2.x family: one UNet conditioned on one CLIP text encoder (epsilon or v prediction)."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import GUIDANCE, PROMPT_EMBEDDING, Conditioning
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
        return self.unet(
            latents.to(dtype),
            timesteps,
            encoder_hidden_states=embedding,
            timestep_cond=embedded_guidance(self.unet, conditioning, len(latents)),
            return_dict=False,
        )[0]


class StableDiffusion(TrainableTextModel):
    """A StableDiffusionPipeline folder or hub id."""

    text_encoders: ClassVar[Mapping[str, str]] = MappingProxyType({"text_encoder": "prompt_tokens"})
    denoiser_class: ClassVar[type[PipelineDenoiser]] = UNetDenoiser
    recommended = STABLE_DIFFUSION
    load_options: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    )

    @property
    def embeds_guidance(self) -> bool:
        """Return whether the UNet takes the guidance scale as an input, as latent consistency models do."""
        return self.pipe.unet.config.time_cond_proj_dim is not None

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


def embedded_guidance(unet: Any, conditioning: Conditioning, n: int) -> Tensor | None:
    """Return the guidance scale as the pipelines embed it, (n, ``time_cond_proj_dim``), of a UNet that takes it.

    The scale w is ``conditioning["guidance"]`` (n,), or 1 where that is absent. Sines and cosines of ``1,000 (w - 1)``.
    """
    size = unet.config.time_cond_proj_dim
    if size is None:
        return None
    parameter = next(unet.parameters())
    scale = conditioning.get(GUIDANCE, torch.ones(n, device=parameter.device))
    frequencies = torch.exp(-math.log(10_000) / (size // 2 - 1) * torch.arange(size // 2, device=parameter.device))
    angles = 1000 * (scale - 1)[:, None] * frequencies
    embedded = torch.cat([angles.sin(), angles.cos()], 1)
    return torch.nn.functional.pad(embedded, (0, size % 2)).to(parameter.dtype)

"""The SDXL family: one UNet conditioned on two CLIP text encoders, a pooled embedding and the image's size."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import POOLED_PROMPT_EMBEDDING, PROMPT_EMBEDDING, Conditioning
from diffusion_gym.models.pipeline import PipelineDenoiser, PipelineModel
from diffusion_gym.models.stable_diffusion import check_not_distilled

#: Original height and width, top and left of the crop, target height and width (Podell et al. 2023, section 2.2).
TIME_IDS = "time_ids"


class SDXLDenoiser(PipelineDenoiser):
    """SDXL's UNet2DConditionModel behind the denoiser's signature."""

    component: ClassVar[str] = "unet"

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon or v, (n, c, h, w)."""
        dtype = self.dtype
        added = {
            "text_embeds": conditioning[POOLED_PROMPT_EMBEDDING].to(dtype),
            "time_ids": conditioning[TIME_IDS].to(dtype),
        }
        embedding = conditioning[PROMPT_EMBEDDING].to(dtype)
        return self.network(
            latents.to(dtype), timesteps, encoder_hidden_states=embedding, added_cond_kwargs=added, return_dict=False
        )[0]


class StableDiffusionXL(PipelineModel):
    """A StableDiffusionXLPipeline folder or hub id."""

    denoiser_class: ClassVar[type[PipelineDenoiser]] = SDXLDenoiser
    load_options: ClassVar[Mapping[str, Any]] = MappingProxyType({"add_watermarker": False})
    float32_vae: ClassVar[bool] = True

    def _check_parts(self) -> None:
        if self.pipe.text_encoder is None or self.pipe.text_encoder_2 is None:
            raise ValueError(
                f"{self.name!r} lacks a text encoder; expected SDXL's two (the refiner, which has one, refines images "
                "and cannot make them from noise)."
            )
        for number in ("", "_2"):
            encoder = getattr(self.pipe, f"text_encoder{number}")
            self._check_tokenizer(f"tokenizer{number}", encoder.config.max_position_embeddings)
        check_not_distilled(self.name, self.pipe.unet)

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        first, second = self.pipe.text_encoder.config, self.pipe.text_encoder_2.config
        return {
            PROMPT_EMBEDDING: (self.pipe.tokenizer.model_max_length, first.hidden_size + second.hidden_size),
            POOLED_PROMPT_EMBEDDING: (second.projection_dim,),
            TIME_IDS: (6,),
        }

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts with both encoders: (n, L, D), (n, D2), and (n, 6) for a whole image, not cropped; float32."""
        embedding, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts), None, self.device, 1, do_classifier_free_guidance=False
        )
        _, height, width = self.image_shape
        time_ids = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=self.device)
        return {
            PROMPT_EMBEDDING: embedding.float(),
            POOLED_PROMPT_EMBEDDING: pooled.float(),
            TIME_IDS: time_ids.repeat(len(prompts), 1),
        }

    def encode_unconditional(self) -> Conditioning:
        """Return zeros, or the empty prompt where the pipeline's ``force_zeros_for_empty_prompt`` is off."""
        encoded = self.encode_prompts([""])
        if self.pipe.config.force_zeros_for_empty_prompt:
            for name in (PROMPT_EMBEDDING, POOLED_PROMPT_EMBEDDING):
                encoded[name] = torch.zeros_like(encoded[name])
        return encoded

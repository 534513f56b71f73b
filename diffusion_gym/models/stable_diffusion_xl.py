"""The SDXL family: one UNet conditioned on two CLIP text encoders, a pooled embedding and the image's size."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import POOLED_PROMPT_EMBEDDING, PROMPT_EMBEDDING, Conditioning
from diffusion_gym.models.pipeline import PipelineDenoiser
from diffusion_gym.models.stable_diffusion import embedded_guidance
from diffusion_gym.models.text import NO_PROMPT, TrainableTextModel
from diffusion_gym.recommended import STABLE_DIFFUSION_XL

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
            latents.to(dtype),
            timesteps,
            encoder_hidden_states=embedding,
            timestep_cond=embedded_guidance(self.network, conditioning, len(latents)),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]


class StableDiffusionXL(TrainableTextModel):
    """A StableDiffusionXLPipeline folder or hub id."""

    text_encoders: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"text_encoder": "prompt_tokens", "text_encoder_2": "prompt_tokens_2"}
    )
    denoiser_class: ClassVar[type[PipelineDenoiser]] = SDXLDenoiser
    recommended = STABLE_DIFFUSION_XL
    load_options: ClassVar[Mapping[str, Any]] = MappingProxyType({"add_watermarker": False})
    float32_vae: ClassVar[bool] = True

    def _check_parts(self) -> None:
        if self.pipe.text_encoder is None or self.pipe.text_encoder_2 is None:
            raise ValueError(
                f"{self.name!r} lacks a text encoder; expected SDXL's two (the refiner, which has one, refines images "
                "and cannot make them from noise)."
            )

    @property
    def embeds_guidance(self) -> bool:
        """Return whether the UNet takes the guidance scale as an input, as latent consistency models do."""
        return self.pipe.unet.config.time_cond_proj_dim is not None

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

    def encode_tokens(self, encoders: Mapping[str, Any], conditioning: Conditioning) -> Conditioning:
        """Return both encoders' last hidden states but one, (n, L, D), and the second's pooled output, (n, D2).

        Where the tokens are :data:`NO_PROMPT`, both are zeros.
        """
        hidden = []
        for encoder, name in self.text_encoders.items():
            output = encoders[encoder](conditioning[name].clamp(min=0), output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        given = (conditioning["prompt_tokens"][:, :1] != NO_PROMPT).to(hidden[0].dtype)
        return {
            PROMPT_EMBEDDING: torch.cat(hidden, -1) * given[..., None],
            POOLED_PROMPT_EMBEDDING: output.text_embeds * given,
        }

    @property
    def zero_unconditional(self) -> bool:  # type: ignore[override]
        """Return the pipeline's ``force_zeros_for_empty_prompt``."""
        return bool(self.pipe.config.force_zeros_for_empty_prompt)

    def encode_unconditional(self) -> Conditioning:
        """Return zeros, or the empty prompt where the pipeline's ``force_zeros_for_empty_prompt`` is off."""
        encoded = self.encode_prompts([""])
        if self.zero_unconditional:
            for name in (PROMPT_EMBEDDING, POOLED_PROMPT_EMBEDDING):
                encoded[name] = torch.zeros_like(encoded[name])
        return encoded

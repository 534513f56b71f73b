"""The Flux family (dev and schnell): a flow-matching transformer on packed latents, a CLIP and a T5 text encoder."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import GUIDANCE, POOLED_PROMPT_EMBEDDING, PROMPT_EMBEDDING, Conditioning
from diffusion_gym.models.pipeline import TRANSFORMER_LORA_GROUPS, PipelineDenoiser, PipelineModel, t5_tokens
from diffusion_gym.models.schedulers import FLOW_SCHEDULERS
from diffusion_gym.models.sizes import sized
from diffusion_gym.recommended import FLUX
from diffusion_gym.transitions import FlowSchedule, make_flow_schedule

#: Tokens that T5 reads of a prompt, as the pipeline has it.
_T5_TOKENS = 512
#: The pipeline divides by this, whatever the scheduler's num_train_timesteps; the transformer multiplies again.
_TIME_SCALE = 1000


def pack(latents: Tensor) -> Tensor:
    """Return a token for each 2 x 2 patch: (n, c, h, w) -> (n, h/2 w/2, 4 c)."""
    n, c, h, w = latents.shape
    return latents.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, -1, 4 * c)


def unpack(tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Return the latents of tokens: undoes :func:`pack` for ``shape`` (c, h, w)."""
    c, h, w = shape
    n = len(tokens)
    return tokens.reshape(n, h // 2, w // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c, h, w)


class FluxDenoiser(PipelineDenoiser):
    """A FluxTransformer2DModel behind the denoiser's signature; latents go in and come out unpacked."""

    component: ClassVar[str] = "transformer"

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity, (n, c, h, w); a guidance-distilled model reads ``guidance`` (n,), 1 where absent."""
        dtype, embedding = self.dtype, conditioning[PROMPT_EMBEDDING]
        n, c, h, w = latents.shape
        guidance = None
        if self.network.config.guidance_embeds:
            guidance = conditioning.get(GUIDANCE, torch.ones(n, device=latents.device))
        velocity = self.network(
            hidden_states=pack(latents).to(dtype),
            timestep=timesteps.to(dtype) / _TIME_SCALE,
            guidance=guidance,
            encoder_hidden_states=embedding.to(dtype),
            pooled_projections=conditioning[POOLED_PROMPT_EMBEDDING].to(dtype),
            txt_ids=torch.zeros(embedding.shape[1], 3, device=latents.device, dtype=dtype),
            img_ids=_image_ids(h // 2, w // 2, latents.device).to(dtype),
            return_dict=False,
        )[0]
        return unpack(velocity, (c, h, w))


class Flux(PipelineModel):
    """A FluxPipeline folder or hub id.

    The transformer names no size; without height and width images are as large as those its VAE was trained on (1,024
    pixels when published).
    """

    denoiser_class: ClassVar[type[PipelineDenoiser]] = FluxDenoiser
    lora_groups: ClassVar[Mapping[str, tuple[str, ...]]] = TRANSFORMER_LORA_GROUPS
    schedulers: ClassVar[Sequence[str]] = FLOW_SCHEDULERS
    recommended = FLUX

    @property
    def embeds_guidance(self) -> bool:
        """Return whether the transformer takes the guidance scale as an input (dev, not schnell)."""
        return bool(self.pipe.transformer.config.guidance_embeds)

    def schedule(self, num_inference_steps: int) -> FlowSchedule:
        """Return the pipeline's grid: equal steps, shifted by the resolution where the scheduler says so."""
        _, h, w = self.latent_shape
        return make_flow_schedule(self.scheduler_config, num_inference_steps, (h // 2) * (w // 2), equal_steps=True)

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any]:
        """Return prompt, picture size, T5's tokens and guidance scale: dev's input, or true guidance."""
        _, height, width = self.image_shape
        tokens = t5_tokens(self.pipe.tokenizer_2, _T5_TOKENS)
        arguments = {"prompt": prompt, "height": height, "width": width, "max_sequence_length": tokens}
        if self.embeds_guidance:
            return {**arguments, "guidance_scale": guidance_scale}
        true_guidance = {"negative_prompt": "", "true_cfg_scale": guidance_scale}
        return arguments | (true_guidance if guidance_scale != 1.0 else {})

    def _shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        scale = self.pipe.vae_scale_factor
        # A VAE that names no size (AutoencoderTiny) draws what the pipeline does.
        size = getattr(self.pipe.vae.config, "sample_size", None) or self.pipe.default_sample_size * scale
        patch = 2 * scale  # of 2 x 2 latents
        side = size // patch * patch
        height, width = sized(self, (side, side), patch)
        channels = self.pipe.transformer.config.in_channels // 4
        return (channels, height // scale, width // scale), (3, height, width)

    @property
    def prompt_readers(self) -> Mapping[str, int]:
        """Return CLIP's tokenizer, and T5's."""
        t5 = t5_tokens(self.pipe.tokenizer_2, _T5_TOKENS)
        return {"tokenizer": int(self.pipe.tokenizer_max_length), "tokenizer_2": t5}

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            PROMPT_EMBEDDING: (t5_tokens(self.pipe.tokenizer_2, _T5_TOKENS), self.pipe.text_encoder_2.config.d_model),
            POOLED_PROMPT_EMBEDDING: (self.pipe.text_encoder.config.hidden_size,),
        }

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts: T5's tokens (n, L, D) and CLIP's pooled embedding (n, D2), float32."""
        embedding, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            device=self.device,
            max_sequence_length=t5_tokens(self.pipe.tokenizer_2, _T5_TOKENS),
        )
        return {PROMPT_EMBEDDING: embedding.float(), POOLED_PROMPT_EMBEDDING: pooled.float()}


def _image_ids(rows: int, columns: int, device: torch.device) -> Tensor:
    """Return each token's (0, row, column), (rows columns, 3), from which its rotary embedding is made."""
    grid = torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device))
    return torch.cat([torch.zeros_like(grid[:, :1]), grid], 1)

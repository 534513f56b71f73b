"""The Stable Diffusion 3 family (3 and 3.5): a flow-matching transformer and three text encoders, T5 optional."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import POOLED_PROMPT_EMBEDDING, PROMPT_EMBEDDING, Conditioning
from diffusion_gym.models.pipeline import TRANSFORMER_LORA_GROUPS, PipelineDenoiser, PipelineModel, t5_tokens
from diffusion_gym.models.probe import check_channels, check_sample_size
from diffusion_gym.models.schedulers import FLOW_SCHEDULERS
from diffusion_gym.models.sizes import sized
from diffusion_gym.recommended import STABLE_DIFFUSION_3
from diffusion_gym.transitions import FlowSchedule, make_flow_schedule

#: Tokens that T5 reads of a prompt, as the pipeline has it; CLIP reads 77.
_T5_TOKENS = 256


class SD3Denoiser(PipelineDenoiser):
    """An SD3Transformer2DModel behind the denoiser's signature."""

    component: ClassVar[str] = "transformer"

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity, (n, c, h, w)."""
        dtype = self.dtype
        return self.network(
            hidden_states=latents.to(dtype),
            timestep=timesteps,
            encoder_hidden_states=conditioning[PROMPT_EMBEDDING].to(dtype),
            pooled_projections=conditioning[POOLED_PROMPT_EMBEDDING].to(dtype),
            return_dict=False,
        )[0]


class StableDiffusion3(PipelineModel):
    """A StableDiffusion3Pipeline folder or hub id; without its T5 encoder the pipeline reads zeros in its place."""

    denoiser_class: ClassVar[type[PipelineDenoiser]] = SD3Denoiser
    lora_groups: ClassVar[Mapping[str, tuple[str, ...]]] = TRANSFORMER_LORA_GROUPS
    schedulers: ClassVar[Sequence[str]] = FLOW_SCHEDULERS
    recommended = STABLE_DIFFUSION_3

    def _shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        network = self.pipe.transformer.config
        scale = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        check_sample_size(self.name, self.denoiser_config)
        check_channels(self.name, self.pipe.transformer, self.pipe.vae)
        own = network.sample_size * scale
        height, width = sized(self, (own, own), network.patch_size * scale)
        largest = (network.pos_embed_max_size or math.inf) * network.patch_size * scale
        if max(height, width) > largest:
            raise ValueError(
                f"{self.name!r} has positions for images of up to {largest} x {largest} pixels (pos_embed_max_size "
                f"{network.pos_embed_max_size}); got height {height} and width {width}."
            )
        return (network.in_channels, height // scale, width // scale), (3, height, width)

    def schedule(self, num_inference_steps: int) -> FlowSchedule:
        """Return the scheduler's own grid; where its shift follows the resolution, that of this model's images."""
        _, h, w = self.latent_shape
        patch = self.pipe.transformer.config.patch_size
        return make_flow_schedule(self.scheduler_config, num_inference_steps, (h // patch) * (w // patch))

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any]:
        """Return the prompt, the picture's size, T5's tokens and the guidance scale."""
        _, height, width = self.image_shape
        tokens = t5_tokens(self.pipe.tokenizer_3, _T5_TOKENS)
        size = {"height": height, "width": width, "max_sequence_length": tokens}
        return {"prompt": prompt, **size, "guidance_scale": guidance_scale}

    def _load_options(self, source: str) -> Mapping[str, Any]:
        """Return None for the parts of T5 that a folder was saved without; diffusers asks for it."""
        from diffusers import DiffusionPipeline, SD3Transformer2DModel

        if (Path(source) / "transformer").is_dir():  # without a size it could not even be made
            check_sample_size(self.name, SD3Transformer2DModel.load_config(source, subfolder="transformer"))
        saved = DiffusionPipeline.load_config(source)
        return {part: None for part in ("text_encoder_3", "tokenizer_3") if not any(saved.get(part) or [])}

    @property
    def prompt_readers(self) -> Mapping[str, int]:
        """Return CLIP's tokenizers, and T5's if there is one."""
        clip = dict.fromkeys(("tokenizer", "tokenizer_2"), int(self.pipe.tokenizer_max_length))
        t5 = self.pipe.tokenizer_3
        return clip if t5 is None else {**clip, "tokenizer_3": t5_tokens(t5, _T5_TOKENS)}

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        first, second = self.pipe.text_encoder.config, self.pipe.text_encoder_2.config
        tokens = self.pipe.tokenizer_max_length + t5_tokens(self.pipe.tokenizer_3, _T5_TOKENS)
        return {
            PROMPT_EMBEDDING: (tokens, self.pipe.transformer.config.joint_attention_dim),
            POOLED_PROMPT_EMBEDDING: (first.projection_dim + second.projection_dim,),
        }

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts with all encoders: (n, L, D), CLIP's tokens before T5's, and (n, D2) pooled; float32."""
        embedding, _, pooled, _ = self.pipe.encode_prompt(
            list(prompts),
            None,
            None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=t5_tokens(self.pipe.tokenizer_3, _T5_TOKENS),
        )
        return {PROMPT_EMBEDDING: embedding.float(), POOLED_PROMPT_EMBEDDING: pooled.float()}

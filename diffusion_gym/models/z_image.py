"""The Z-Image family (Z-Image and Turbo): a flow-matching transformer of one stream, and a Qwen3 as text encoder."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.adapters import Groups
from diffusion_gym.models.base import PROMPT_EMBEDDING, PROMPT_PADDING, Conditioning
from diffusion_gym.models.language import TIME_SCALE, LanguagePipeline
from diffusion_gym.models.pipeline import PipelineDenoiser
from diffusion_gym.models.schedulers import FLOW_SCHEDULERS
from diffusion_gym.models.sizes import sized
from diffusion_gym.recommended import Z_IMAGE
from diffusion_gym.transitions import FlowSchedule, make_flow_schedule

#: Height and width of the pipeline's pictures, where the VAE names none.
_PIXELS = 1024
_ATTENTION = ("attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0")


class ZImageDenoiser(PipelineDenoiser):
    """A ZImageTransformer2DModel behind the denoiser's signature."""

    component: ClassVar[str] = "transformer"

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity, (n, c, h, w). The network takes lists, and predicts it in the other direction."""
        dtype = self.dtype
        lengths = (conditioning[PROMPT_PADDING] == 0).sum(1).tolist()
        prompts = zip(conditioning[PROMPT_EMBEDDING].to(dtype), lengths, strict=True)
        towards_image = self.network(
            list(latents.to(dtype)[:, :, None]),
            (TIME_SCALE - timesteps) / TIME_SCALE,
            [embedding[:length] for embedding, length in prompts],
            return_dict=False,
        )[0]
        return -torch.stack(towards_image)[:, :, 0]


class ZImage(LanguagePipeline):
    """A ZImagePipeline folder or hub id.

    The transformer names no size; without height and width images are as large as those its VAE was trained on (1,024
    pixels when published).
    """

    denoiser_class: ClassVar[type[PipelineDenoiser]] = ZImageDenoiser
    lora_groups: ClassVar[Groups] = MappingProxyType(
        {
            "attention": _ATTENTION,
            "all": (*_ATTENTION, "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        }
    )
    schedulers: ClassVar[Sequence[str]] = FLOW_SCHEDULERS
    recommended = Z_IMAGE

    def schedule(self, num_inference_steps: int) -> FlowSchedule:
        """Return the pipeline's grid: equal steps, shifted as the scheduler says."""
        _, h, w = self.latent_shape
        return make_flow_schedule(self.scheduler_config, num_inference_steps, (h // 2) * (w // 2), equal_steps=True)

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any]:
        """Return prompt, picture size, tokens and guidance: the pipeline's ``c + w (c - u)`` has w = scale - 1."""
        return {"prompt": prompt, "guidance_scale": round(max(guidance_scale - 1, 0.0), 9), **self.drawing_arguments()}

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts as a chat's message: hidden states (n, L, D) and their padding (n, L), float32."""
        embeddings, _ = self.pipe.encode_prompt(
            list(prompts), self.device, do_classifier_free_guidance=False, max_sequence_length=self.tokens
        )
        return self.padded(embeddings)

    def _shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        scale = self.pipe.vae_scale_factor
        patch = 2 * scale  # of 2 x 2 latents
        side = (getattr(self.pipe.vae.config, "sample_size", None) or _PIXELS) // patch * patch
        height, width = sized(self, (side, side), patch)
        return (self.pipe.transformer.config.in_channels, height // scale, width // scale), (3, height, width)

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        return {PROMPT_EMBEDDING: (self.tokens, self.embedding_size), PROMPT_PADDING: (self.tokens,)}

"""The Flux.2-klein family: a flow-matching transformer on the VAE's normalised patches, and a Qwen3 as text encoder."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from diffusion_gym.models.adapters import TRANSFORMER_LORA_GROUPS, Groups
from diffusion_gym.models.base import PROMPT_EMBEDDING, Conditioning
from diffusion_gym.models.language import TIME_SCALE, LanguagePipeline
from diffusion_gym.models.pipeline import PipelineDenoiser
from diffusion_gym.models.schedulers import FLOW_SCHEDULERS
from diffusion_gym.models.sizes import sized
from diffusion_gym.recommended import FLUX_2_KLEIN
from diffusion_gym.transitions import FlowSchedule, make_flow_schedule

#: Layers of the text encoder whose hidden states the pipeline joins.
_LAYERS = 3
#: In the blocks of one stream a single layer projects to queries, keys, values and the feed-forward part.
_ATTENTION = (*TRANSFORMER_LORA_GROUPS["attention"], "to_qkv_mlp_proj")
_FEED_FORWARD = ("ff.linear_in", "ff.linear_out", "ff_context.linear_in", "ff_context.linear_out")


class Flux2KleinDenoiser(PipelineDenoiser):
    """A Flux2Transformer2DModel behind the denoiser's signature; each place of the latents is a token."""

    component: ClassVar[str] = "transformer"

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity, (n, c, h, w)."""
        dtype, embedding = self.dtype, conditioning[PROMPT_EMBEDDING]
        rows, columns = latents.shape[2:]
        velocity = self.network(
            hidden_states=latents.flatten(2).transpose(1, 2).to(dtype),
            timestep=timesteps.to(dtype) / TIME_SCALE,  # the transformer multiplies again
            guidance=None,
            encoder_hidden_states=embedding.to(dtype),
            txt_ids=_places(1, 1, embedding.shape[1], latents.device),
            img_ids=_places(rows, columns, 1, latents.device),
            return_dict=False,
        )[0]
        return velocity.transpose(1, 2).reshape(latents.shape)


class Flux2Klein(LanguagePipeline):
    """A Flux2KleinPipeline folder or hub id.

    Latents are the VAE's, each 2 x 2 patch in one place and normalised, as the pipeline has them. The transformer names
    no size; without height and width images are as large as those its VAE was trained on (1,024 pixels when published).
    """

    denoiser_class: ClassVar[type[PipelineDenoiser]] = Flux2KleinDenoiser
    prompt_fields: ClassVar[frozenset[str]] = frozenset()  # the pipeline always guides away from the empty prompt
    lora_groups: ClassVar[Groups] = MappingProxyType({"attention": _ATTENTION, "all": (*_ATTENTION, *_FEED_FORWARD)})
    schedulers: ClassVar[Sequence[str]] = FLOW_SCHEDULERS
    recommended = FLUX_2_KLEIN

    def schedule(self, num_inference_steps: int) -> FlowSchedule:
        """Return the pipeline's grid: equal steps, shifted by the resolution and by the number of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        _, h, w = self.latent_shape
        mu = compute_empirical_mu(h * w, num_inference_steps)
        return make_flow_schedule(self.scheduler_config, num_inference_steps, h * w, equal_steps=True, mu=mu)

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any]:
        """Return prompt, picture size, tokens and guidance scale."""
        return {"prompt": prompt, "guidance_scale": guidance_scale, **self.drawing_arguments()}

    def encode_unconditional(self) -> Conditioning:
        """Return the empty prompt, one row, float32.

        Raises:
            ValueError: a model that was distilled to few steps, which the pipeline draws without guidance.
        """
        if self.pipe.config.is_distilled:
            raise ValueError(
                f"{self.name!r} was distilled to few steps and has no guidance; leave guidance_scale at 1, or take the "
                "base model that it was distilled from."
            )
        return super().encode_unconditional()

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts as a chat's message: hidden states of three layers side by side, (n, L, 3 D), float32."""
        embedding, _ = self.pipe.encode_prompt(list(prompts), self.device, max_sequence_length=self.tokens)
        return {PROMPT_EMBEDDING: embedding.float()}

    @property
    def decodes_whole(self) -> bool:
        """Return False: its VAE's convolutions take any part of the latents."""
        return False

    def _shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        patch = 2 * self.pipe.vae_scale_factor
        side = self.pipe.vae.config.sample_size // patch * patch
        height, width = sized(self, (side, side), patch)
        return (self.pipe.transformer.config.in_channels, height // patch, width // patch), (3, height, width)

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        return {PROMPT_EMBEDDING: (self.tokens, _LAYERS * self.embedding_size)}

    def _to_pixels(self, latents: Tensor) -> Tensor:
        mean, std = self._patch_statistics()
        scaled = pixel_shuffle(latents * std + mean, 2).to(self.pipe.vae.dtype)
        return self.pipe.vae.decode(scaled, return_dict=False)[0].float()

    def _to_latents(self, pixels: Tensor) -> Tensor:
        mean, std = self._patch_statistics()
        mode = self.pipe.vae.encode(pixels.to(self.pipe.vae.dtype)).latent_dist.mode().float()
        return (pixel_unshuffle(mode, 2) - mean) / std

    def _patch_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's patches, (1, 4 c, 1, 1), float32: those of its batch norm."""
        vae = self.pipe.vae
        std = (vae.bn.running_var.float() + vae.config.batch_norm_eps).sqrt()
        return vae.bn.running_mean.float().reshape(1, -1, 1, 1), std.reshape(1, -1, 1, 1)


def _places(rows: int, columns: int, length: int, device: torch.device) -> Tensor:
    """Return each token's (0, row, column, place in the text), (rows columns length, 4), for its rotary embedding."""
    axes = (torch.arange(size, device=device) for size in (1, rows, columns, length))
    return torch.cartesian_prod(*axes)

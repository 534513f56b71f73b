"""The Qwen-Image family: a flow-matching transformer on packed latents, and a Qwen2.5-VL that reads the prompt."""

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.adapters import TRANSFORMER_LORA_GROUPS, Groups
from diffusion_gym.models.base import PROMPT_EMBEDDING, PROMPT_PADDING, Conditioning
from diffusion_gym.models.flux import pack, unpack
from diffusion_gym.models.images import vae_scale
from diffusion_gym.models.language import TIME_SCALE, LanguagePipeline
from diffusion_gym.models.pipeline import PipelineDenoiser
from diffusion_gym.models.schedulers import FLOW_SCHEDULERS
from diffusion_gym.models.sizes import sized
from diffusion_gym.recommended import QWEN_IMAGE
from diffusion_gym.transitions import FlowSchedule, make_flow_schedule

#: The negative prompt of the published examples; the pipeline itself guides only where one is given.
_NO_PROMPT = " "
_FEED_FORWARD = ("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2")


class QwenImageDenoiser(PipelineDenoiser):
    """A QwenImageTransformer2DModel behind the denoiser's signature; latents go in and come out unpacked."""

    component: ClassVar[str] = "transformer"

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict the velocity, (n, c, h, w); no token attends to a prompt's padding."""
        dtype = self.dtype
        n, c, h, w = latents.shape
        velocity = self.network(
            hidden_states=pack(latents).to(dtype),
            timestep=timesteps.to(dtype) / TIME_SCALE,  # the transformer multiplies again
            encoder_hidden_states=conditioning[PROMPT_EMBEDDING].to(dtype),
            encoder_hidden_states_mask=conditioning[PROMPT_PADDING] == 0,
            img_shapes=[[(1, h // 2, w // 2)]] * n,
            return_dict=False,
        )[0]
        return unpack(velocity, (c, h, w))


class QwenImage(LanguagePipeline):
    """A QwenImagePipeline folder or hub id.

    Transformer and VAE name no size; without height and width images are as large as the pipeline draws them (1,024
    pixels) unless the VAE's config.json has a ``sample_size``.
    """

    denoiser_class: ClassVar[type[PipelineDenoiser]] = QwenImageDenoiser
    lora_groups: ClassVar[Groups] = MappingProxyType(
        {**TRANSFORMER_LORA_GROUPS, "all": (*TRANSFORMER_LORA_GROUPS["attention"], *_FEED_FORWARD)}
    )
    schedulers: ClassVar[Sequence[str]] = FLOW_SCHEDULERS
    recommended = QWEN_IMAGE

    def schedule(self, num_inference_steps: int) -> FlowSchedule:
        """Return the pipeline's grid: equal steps, shifted by the resolution where the scheduler says so."""
        _, h, w = self.latent_shape
        return make_flow_schedule(self.scheduler_config, num_inference_steps, (h // 2) * (w // 2), equal_steps=True)

    def guide(self, uncond: Tensor, cond: Tensor, guidance_scale: float) -> Tensor:
        """Return ``u + w (c - u)``, of which each token (2 x 2 latents) is rescaled to the norm that it has in c."""
        _, c, h, w = cond.shape
        guided, of_prompt = pack(super().guide(uncond, cond, guidance_scale)), pack(cond)
        rescaled = guided * (of_prompt.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
        return unpack(rescaled, (c, h, w))

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any]:
        """Return prompt, picture size, tokens and true guidance."""
        return {
            "prompt": prompt,
            "negative_prompt": _NO_PROMPT,
            "true_cfg_scale": guidance_scale,
            **self.drawing_arguments(),
        }

    def encode_unconditional(self) -> Conditioning:
        """Return a prompt of one space, one row, float32."""
        return self.encode_prompts([_NO_PROMPT])

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts: hidden states (n, L, D) after the pipeline's template, and their padding (n, L); float32."""
        embedding, mask = self.pipe.encode_prompt(list(prompts), self.device, max_sequence_length=self.tokens)
        if mask is None:  # all are equally long
            return self.padded(list(embedding))
        return self.padded([row[read.bool()] for row, read in zip(embedding, mask, strict=True)])

    def _expanded(self, prompts: Sequence[str], tokenizer: Any) -> list[str]:
        """Return the prompts themselves: the words of the pipeline's template before them do not count."""
        return list(prompts)

    @property
    def decodes_whole(self) -> bool:
        """Return False: its VAE's convolutions take any part of the latents."""
        return False

    def _shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        scale = self.pipe.vae_scale_factor
        size = getattr(self.pipe.vae.config, "sample_size", None) or self.pipe.default_sample_size * scale
        patch = 2 * scale  # of 2 x 2 latents
        side = size // patch * patch
        height, width = sized(self, (side, side), patch)
        channels = self.pipe.transformer.config.in_channels // 4
        return (channels, height // scale, width // scale), (3, height, width)

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        return {PROMPT_EMBEDDING: (self.tokens, self.embedding_size), PROMPT_PADDING: (self.tokens,)}

    def _to_pixels(self, latents: Tensor) -> Tensor:
        """Decode as a video of one frame."""
        scale, shift = vae_scale(self.pipe.vae)
        frames = (latents.to(self.pipe.vae.dtype) * scale + shift)[:, :, None]
        return self.pipe.vae.decode(frames, return_dict=False)[0][:, :, 0].float()

    def _to_latents(self, pixels: Tensor) -> Tensor:
        """Encode as a video of one frame."""
        scale, shift = vae_scale(self.pipe.vae)
        frames = pixels.to(self.pipe.vae.dtype)[:, :, None]
        return (self.pipe.vae.encode(frames).latent_dist.mode()[:, :, 0].float() - shift) / scale

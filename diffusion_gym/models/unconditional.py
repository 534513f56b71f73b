"""The unconditional pixel-space family: a UNet2DModel that denoises pictures themselves (Ho et al. 2020)."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.models.base import PROMPT_EMBEDDING, Conditioning
from diffusion_gym.models.pipeline import PipelineDenoiser, PipelineModel
from diffusion_gym.models.probe import check_sample_size
from diffusion_gym.recommended import PIXELS


class PixelDenoiser(PipelineDenoiser):
    """A UNet2DModel behind the denoiser's signature."""

    component: ClassVar[str] = "unet"

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon, v or x_0, (n, 3, H, W); the conditioning changes nothing."""
        return self.network(latents.to(self.dtype), timesteps, return_dict=False)[0]


class UnconditionalPixels(PipelineModel):
    """A DDPMPipeline or DDIMPipeline folder or hub id. Latents are pixels in [-1, 1]; only the reward sees prompts."""

    denoiser_class: ClassVar[type[PipelineDenoiser]] = PixelDenoiser
    prompt_fields: ClassVar[frozenset[str]] = frozenset()
    has_lora_loader: ClassVar[bool] = False
    default_prompts: str | tuple[str, ...] = ("an image",)
    recommended = PIXELS

    def _check_parts(self) -> None:
        config, variance = self.pipe.unet.config, self.scheduler_config.get("variance_type") or "fixed_small"
        if variance.startswith("learned") or config.out_channels == 2 * config.in_channels:
            raise ValueError(
                f"the UNet of {self.name!r} predicts a variance beside the noise (variance_type={variance!r}, "
                f"{config.out_channels} output channels for {config.in_channels}); expected a fixed variance, with "
                "variance_type 'fixed_small' or 'fixed_large'."
            )
        if (config.in_channels, config.out_channels) != (3, 3):
            raise ValueError(
                f"the UNet of {self.name!r} has {config.in_channels} input and {config.out_channels} output channels; "
                "expected 3 and 3, because rewards score RGB images."
            )
        if self.pipe.unet.class_embedding is not None:
            raise ValueError(
                f"the UNet of {self.name!r} is conditioned on classes, which {type(self.pipe).__name__} cannot give "
                "it; expected an unconditional UNet2DModel."
            )

    def _shapes(self) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
        check_sample_size(self.name, self.denoiser_config)
        size = self.pipe.unet.config.sample_size
        shape = (3, *((size, size) if isinstance(size, int) else size))
        return shape, shape

    def _conditioning_shapes(self) -> dict[str, tuple[int, ...]]:
        return {PROMPT_EMBEDDING: (1, 1)}

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return zeros, (n, 1, 1), float32: the model reads no prompt."""
        return {PROMPT_EMBEDDING: torch.zeros(len(prompts), 1, 1, device=self.device)}

    def encode_unconditional(self) -> Conditioning:
        """Raise ValueError: there is no prompt that guidance could strengthen."""
        raise ValueError(
            f"{self.name!r} is unconditional: it reads no prompt that guidance could strengthen. Leave "
            "guidance_scale at 1."
        )

    def pipeline_arguments(self, prompt: str, guidance_scale: float) -> dict[str, Any]:
        """Return no arguments: the pipeline takes no prompt."""
        return {}

    def _to_pixels(self, latents: Tensor) -> Tensor:
        return latents

    def _to_latents(self, pixels: Tensor) -> Tensor:
        return pixels

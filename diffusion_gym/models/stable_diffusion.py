"""The Stable Diffusion 1.x and 2.x family: one UNet conditioned on one CLIP text encoder (epsilon or v prediction)."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion_gym._torchvision import repair_torchvision
from diffusion_gym.models.base import PROMPT_EMBEDDING, Conditioning, Denoiser, DiffusionModel, LoRAConfig, ModelDtype
from diffusion_gym.models.loading import DTYPES, no_progress_bars


def _dtype_argument(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """``dtype=``, or ``torch_dtype=`` for a diffusers that does not know the new name (the newer warns of the old)."""
    from diffusers.utils import deprecation_utils

    return {"dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype": dtype}


class UNetDenoiser(Denoiser):
    """A UNet2DConditionModel behind the denoiser's signature."""

    unet: Any  # diffusers types the config attributes dynamically

    def __init__(self, unet: nn.Module) -> None:
        """Args: unet: a UNet2DConditionModel that this denoiser owns."""
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict epsilon or v, (n, c, h, w)."""
        dtype = self.unet.dtype
        embedding = conditioning[PROMPT_EMBEDDING].to(dtype)
        return self.unet(latents.to(dtype), timesteps, encoder_hidden_states=embedding, return_dict=False)[0]


class StableDiffusion(DiffusionModel):
    """A StableDiffusionPipeline folder or hub id."""

    supports_lora: ClassVar[bool] = True

    def __init__(self, name: str, source: str, device: torch.device, dtype: ModelDtype) -> None:
        """Load the pipeline.

        Raises:
            ValueError: diffusers cannot load it (a missing file, a network that is not there).
        """
        repair_torchvision()
        from diffusers import StableDiffusionPipeline

        try:
            with no_progress_bars():
                pipe = StableDiffusionPipeline.from_pretrained(
                    source,
                    **_dtype_argument(DTYPES[dtype]),
                    safety_checker=None,
                    feature_extractor=None,
                    requires_safety_checker=False,
                )
        except (OSError, ValueError) as error:
            raise ValueError(f"diffusers could not load the model {name!r} from {source!r}: {error}") from error
        length = pipe.text_encoder.config.max_position_embeddings
        if pipe.tokenizer.model_max_length > length:
            raise ValueError(
                f"the tokenizer of {name!r} is missing or broken: it allows {pipe.tokenizer.model_max_length} "
                f"tokens, but the text encoder takes {length}. Copy the model's 'tokenizer' folder again."
            )
        self.name, self.device, self.dtype = name, device, dtype
        self.pipe = pipe.to(device)
        self.pipe.set_progress_bar_config(disable=True)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.requires_grad_(False).eval()
        size = pipe.unet.config.sample_size
        self.latent_shape = (pipe.unet.config.in_channels, size, size)
        self.image_shape = (3, size * pipe.vae_scale_factor, size * pipe.vae_scale_factor)
        self.conditioning_shapes = {
            PROMPT_EMBEDDING: (pipe.tokenizer.model_max_length, pipe.text_encoder.config.hidden_size)
        }
        self.scheduler_config = dict(pipe.scheduler.config)

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Encode n texts with the pipeline's own tokenizer and text encoder; (n, L, D), float32."""
        embedding, _ = self.pipe.encode_prompt(list(prompts), self.device, 1, do_classifier_free_guidance=False)
        return {PROMPT_EMBEDDING: embedding.float()}

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode with the VAE; (n, 3, H, W), uint8, rounded as diffusers' image processor does.

        One image at a time (diffusers calls it slicing): it takes the least memory, and an image's pixels do not depend
        on what else is in the batch, which the JPEG rewards would notice.
        """
        vae, images = self.pipe.vae, []
        for chunk in latents.split(1):
            scaled = chunk.to(self.device, vae.dtype) / vae.config.scaling_factor
            pixels = (vae.decode(scaled, return_dict=False)[0].float() / 2 + 0.5).clamp(0, 1)
            images.append((pixels * 255).round().to(torch.uint8))
        return torch.cat(images)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Encode with the VAE (the mode of its posterior); (n, c, h, w), float32, scaled latent units."""
        vae, latents = self.pipe.vae, []
        for chunk in images.split(1):
            pixels = chunk.to(self.device, vae.dtype) / 127.5 - 1
            latents.append(vae.encode(pixels).latent_dist.mode().float() * vae.config.scaling_factor)
        return torch.cat(latents)

    def build_denoiser(self, lora: LoRAConfig | None = None) -> UNetDenoiser:
        """Copy the UNet: float32 and fully trainable, or in the model's dtype, frozen, with float32 adapters.

        Raises:
            ValueError: no layer matches the adapter's targets.
        """
        unet = copy.deepcopy(self.pipe.unet)
        if lora is None:
            return UNetDenoiser(unet.float().requires_grad_(True))
        import peft

        try:
            unet.add_adapter(
                peft.LoraConfig(
                    r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.layers), init_lora_weights="gaussian"
                )
            )
        except ValueError as error:
            raise ValueError(
                f"no layer of {self.name!r} could be adapted with LoRA targets {lora.targets}: {error}"
            ) from error
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return UNetDenoiser(unet)

    def export(self, denoiser: Denoiser, folder: Path, lora: LoRAConfig | None) -> None:
        """Write ``pytorch_lora_weights.safetensors`` (with the adapter's metadata), or a full pipeline folder."""
        from diffusers import StableDiffusionPipeline

        if not isinstance(denoiser, UNetDenoiser):
            raise TypeError(f"expected the denoiser this model built, got {type(denoiser).__name__}.")
        if lora is None:
            unet = copy.deepcopy(denoiser.unet)
            if unet.dtype != DTYPES[self.dtype]:
                unet = unet.to(DTYPES[self.dtype])
            parts = {**self.pipe.components, "unet": unet}
            with no_progress_bars():
                StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
            return
        from diffusers.training_utils import _collate_lora_metadata
        from peft import get_peft_model_state_dict

        StableDiffusionPipeline.save_lora_weights(
            folder,
            unet_lora_layers={k: v.detach().cpu() for k, v in get_peft_model_state_dict(denoiser.unet).items()},
            **_collate_lora_metadata({"unet": denoiser.unet}),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as its name."""
        from diffusion_gym.models import load_model

        return load_model, (self.name, str(self.device), self.dtype)

"""Models of published configurations with random weights, and the same models tiny: nothing is downloaded."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from diffusion_gym.models.base import DTYPES, Conditioning, ModelDtype
from diffusion_gym.models.schedulers import read_scheduler_config
from diffusion_gym.models.stable_diffusion import StableDiffusion
from diffusion_gym.models.stable_diffusion_3 import StableDiffusion3
from diffusion_gym.models.stable_diffusion_xl import StableDiffusionXL

Parts = dict[str, nn.Module]


def stable_diffusion_15(tiny: bool = False) -> Parts:
    """Return the networks of stable-diffusion-v1-5."""
    from diffusers import UNet2DConditionModel

    width = 32 if tiny else 768
    small = _tiny_unet(("CrossAttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "CrossAttnUpBlock2D")) if tiny else {}
    unet = UNet2DConditionModel(**{"sample_size": 64, "cross_attention_dim": width, **small})
    return {"unet": unet, "vae": _vae(512, tiny), "text_encoder": _clip(width, 12)}


def stable_diffusion_xl(tiny: bool = False) -> Parts:
    """Return the networks of stable-diffusion-xl-base-1.0."""
    from diffusers import UNet2DConditionModel

    first, second = (32, 64) if tiny else (768, 1280)
    small = _tiny_unet(("DownBlock2D", "CrossAttnDownBlock2D"), ("CrossAttnUpBlock2D", "UpBlock2D")) if tiny else {}
    if tiny:
        small |= {"transformer_layers_per_block": (1, 2), "addition_time_embed_dim": 8}
    sizes: dict[str, Any] = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "addition_time_embed_dim": 256,
        **small,
    }
    unet = UNet2DConditionModel(
        **sizes,
        cross_attention_dim=first + second,
        use_linear_projection=True,
        addition_embed_type="text_time",
        projection_class_embeddings_input_dim=second + 6 * sizes["addition_time_embed_dim"],
    )
    encoders = {"text_encoder": _clip(first, 12), "text_encoder_2": _clip(second, 32 if not tiny else 1, True)}
    return {"unet": unet, "vae": _vae(1024, tiny), **encoders}


def stable_diffusion_35_medium(tiny: bool = False) -> Parts:
    """Return the networks of stable-diffusion-3.5-medium without T5, which the denoiser reads and nothing here runs."""
    from diffusers import SD3Transformer2DModel

    first, second = (32, 64) if tiny else (768, 1280)
    sizes: dict[str, Any] = (
        {"sample_size": 8, "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16, "pos_embed_max_size": 8}
        if tiny
        else {"sample_size": 128, "num_layers": 24, "num_attention_heads": 24, "pos_embed_max_size": 384}
    )
    transformer = SD3Transformer2DModel(
        **{"attention_head_dim": 64, **sizes},
        in_channels=16,
        out_channels=16,
        patch_size=2,
        joint_attention_dim=first + second if tiny else 4096,
        caption_projection_dim=32 if tiny else 1536,
        pooled_projection_dim=first + second,
        qk_norm="rms_norm",
        dual_attention_layers=(0,) if tiny else tuple(range(13)),
    )
    vae = _vae(1024, tiny, latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False)
    encoders = {"text_encoder": _clip(first, 12, True), "text_encoder_2": _clip(second, 32 if not tiny else 1, True)}
    return {"transformer": transformer, "vae": vae, **encoders}


def _tiny_unet(down: tuple[str, ...], up: tuple[str, ...]) -> dict[str, Any]:
    blocks: dict[str, Any] = {"down_block_types": down, "up_block_types": up, "block_out_channels": (16, 32)}
    return {"sample_size": 8, "layers_per_block": 1, "attention_head_dim": 4, "norm_num_groups": 8, **blocks}


def _vae(size: int, tiny: bool = False, **config: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    channels = (8, 16) if tiny else (128, 256, 512, 512)
    quantised = {"use_post_quant_conv": False} if config.get("use_quant_conv") is False else {}
    return AutoencoderKL(
        sample_size=16 if tiny else size,
        block_out_channels=channels,
        layers_per_block=1 if tiny else 2,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        norm_num_groups=8 if tiny else 32,
        **config,
        **quantised,
    )


def _clip(width: int, layers: int, projection: bool = False) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tiny = width < 768
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=1 if tiny else layers,
        num_attention_heads=1 if tiny else width // 64,
        projection_dim=width,
    )
    return CLIPTextModelWithProjection(config) if projection else CLIPTextModel(config)


class _RandomWeights:
    """Before a family's class: random weights on the device they run on, and prompts whose embeddings are noise."""

    build: Callable[..., Parts]
    schedulers: Sequence[str]
    scheduler_config: Mapping[str, Any]
    zero_unconditional = True
    prompt_readers: Mapping[str, int] = {}

    def __init__(self, device: str, dtype: ModelDtype, tiny: bool) -> None:
        """Make the networks; the same weights for the same device and torch."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.set_default_dtype(DTYPES[dtype])
            try:
                with torch.device(device):
                    parts = type(self).build(tiny=tiny)
            finally:
                torch.set_default_dtype(torch.float32)
        for part in parts.values():
            part.requires_grad_(False).eval().to(device, DTYPES[dtype])
        scheduler = flow_or_ddim_scheduler("transformer" in parts)
        tokenizers = {"tokenizer": SimpleNamespace(model_max_length=77), "tokenizer_3": None}
        self.pipe: Any = SimpleNamespace(
            **parts, **tokenizers, components=parts, tokenizer_max_length=77, scheduler=scheduler
        )
        self.name, self.device, self.dtype = type(self).build.__name__, torch.device(device), dtype
        self.vae_tiling = False
        kind = type(scheduler).__name__
        self.scheduler_config = read_scheduler_config(self.name, kind, scheduler.config, self.schedulers)
        self.latent_shape, self.image_shape = self._shapes()  # type: ignore[attr-defined]
        self.conditioning_shapes = self._conditioning_shapes()  # type: ignore[attr-defined]

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Return normal noise."""
        shapes = self.conditioning_shapes.items()
        return {name: torch.randn(len(prompts), *shape, device=self.device) for name, shape in shapes}

    def encode_unconditional(self) -> Conditioning:
        """Return noise too."""
        return self.encode_prompts([""])


def flow_or_ddim_scheduler(flow: bool) -> Any:
    """Return the scheduler of Stable Diffusion 3.5 (``flow``) or of 1.5 and SDXL."""
    from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

    if flow:
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    return DDIMScheduler(1000, 0.00085, 0.012, "scaled_linear", clip_sample=False, steps_offset=1)


class _StableDiffusion15(_RandomWeights, StableDiffusion):
    build = staticmethod(stable_diffusion_15)


class _StableDiffusionXL(_RandomWeights, StableDiffusionXL):
    build = staticmethod(stable_diffusion_xl)


class _StableDiffusion35(_RandomWeights, StableDiffusion3):
    build = staticmethod(stable_diffusion_35_medium)


@dataclass(frozen=True)
class Published:
    """A published model: its title, and how it is made of random weights (device, dtype, tiny)."""

    title: str
    make: Callable[[str, ModelDtype, bool], Any]


MODELS = {
    "sd15": Published("Stable Diffusion 1.5", _StableDiffusion15),
    "sdxl": Published("SDXL", _StableDiffusionXL),
    "sd35-medium": Published("Stable Diffusion 3.5 medium", _StableDiffusion35),
}

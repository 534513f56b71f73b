"""Each family's tiny pipeline, and how plain diffusers draws with it.

A new family is one builder in ``pipelines.py``, one function that draws, and one line in :data:`FAMILIES`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffusion_gym import load_model
from diffusion_gym.models import DiffusionModel
from tests.builders import language_pipelines, pipelines
from tests.builders.tokenizers import TOKENS


def _mode(pipe: Any, pixels: Tensor) -> Tensor:
    """Return what the VAE encodes pictures in [-1, 1] to, in latent units."""
    mode, config = pipe.vae.encode(pixels).latent_dist.mode(), pipe.vae.config
    return (mode - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor


@dataclass(frozen=True)
class Family:
    """What the tests must know of a family.

    Attributes:
        build: writes the pipeline into a folder.
        draw: plain diffusers: (pipeline, prompts, generators, output "latent" or "pt", steps, guidance, eta, size,
            negative prompts) -> final latents (n, c, h, w), or pictures (n, 3, H, W) in [0, 1]; a size is (height,
            width) in pixels.
        guidance: a scale other than 1, or 1 for a family without prompts.
        eta: noise that the pipeline itself can add, or None.
        lora_file: whether diffusers loads a LoRA into it.
        load_options: what plain diffusers must be told to load it.
        encode: plain diffusers: (pipeline, pictures (n, 3, H, W) in [-1, 1]) -> latents (n, c, h, w).
    """

    build: Callable[[Path], None]
    draw: Callable[..., Tensor]
    guidance: float = 3.0
    eta: float | None = 1.0
    lora_file: bool = True
    load_options: dict[str, Any] = field(default_factory=dict)
    encode: Callable[[Any, Tensor], Tensor] = _mode


def _draw_from_text(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    eta: float = 0.0,
    size: tuple[int, int] = (16, 16),
    negative: Sequence[str] | None = None,
    rescale: float = 0.0,
) -> Tensor:
    call = {"num_inference_steps": steps, "guidance_scale": guidance, "guidance_rescale": rescale, "eta": eta}
    call |= {"height": size[0], "width": size[1], "negative_prompt": negative, "output_type": output}
    return pipe(list(prompts), generator=generators, **call).images


def _draw_sd3(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    size: tuple[int, int] = (16, 16),
    negative: Sequence[str] | None = None,
) -> Tensor:
    tokens = 256 if pipe.tokenizer_3 is None else TOKENS
    call = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "output_type": output,
        "max_sequence_length": tokens,
    }
    call |= {"height": size[0], "width": size[1], "negative_prompt": negative}
    return pipe(list(prompts), generator=generators, **call).images


def _draw_flux(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    size: tuple[int, int] = (16, 16),
    negative: Sequence[str] | None = None,
) -> Tensor:
    """Guidance is the transformer's input in dev, and true guidance away from the empty prompt in schnell."""
    call = {"num_inference_steps": steps, "output_type": output, "height": size[0], "width": size[1]}
    if pipe.transformer.config.guidance_embeds:
        call["guidance_scale"] = guidance
    else:
        call |= {"true_cfg_scale": guidance, "negative_prompt": negative or [""] * len(prompts)}
    images = pipe(list(prompts), generator=generators, max_sequence_length=TOKENS, **call).images
    return images if output == "pt" else pipe._unpack_latents(images, *size, pipe.vae_scale_factor)


def _draw_pixart(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    eta: float = 0.0,
    size: tuple[int, int] = (16, 16),
    negative: Sequence[str] | None = None,
) -> Tensor:
    """Without the search for a published size next to the 16 pixels, and the prompt's rewriting (with bs4)."""
    call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": output, "eta": eta}
    call |= {"height": size[0], "width": size[1], "negative_prompt": negative or ""}
    as_given = {"clean_caption": False, "use_resolution_binning": False}
    return pipe(list(prompts), generator=generators, **as_given, **call).images


def _draw_edits(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    eta: float = 0.0,
    image_guidance: float = 1.0,
    size: tuple[int, int] = (16, 16),
    negative: Sequence[str] | None = None,
) -> Tensor:
    """The picture's size is that of the image."""
    call = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": output, "eta": eta}
    call |= {"image_guidance_scale": image_guidance, "negative_prompt": negative}
    images = [pipelines.source_image(text).resize(size[::-1]) for text in prompts]
    return pipe(list(prompts), images, generator=generators, **call).images


def _draw_qwen_image(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    size: tuple[int, int] = (16, 16),
    negative: Sequence[str] | None = None,
) -> Tensor:
    call = {"num_inference_steps": steps, "output_type": output, "height": size[0], "width": size[1]}
    if guidance > 1.0:
        call |= {"true_cfg_scale": guidance, "negative_prompt": negative or [" "] * len(prompts)}
    images = pipe(list(prompts), generator=generators, max_sequence_length=TOKENS, **call).images
    return images if output == "pt" else pipe._unpack_latents(images, *size, pipe.vae_scale_factor)[:, :, 0]


def _encode_qwen_image(pipe: Any, pixels: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(getattr(pipe.vae.config, name)).reshape(1, -1, 1, 1) for name in ("latents_mean", "latents_std")
    )
    return (pipe.vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0] - mean) / std


def _draw_z_image(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    size: tuple[int, int] = (16, 16),
    negative: Sequence[str] | None = None,
) -> Tensor:
    """The pipeline's scale counts from 0: its prediction is c + w (c - u)."""
    call = {"num_inference_steps": steps, "output_type": output, "height": size[0], "width": size[1]}
    call |= {"guidance_scale": guidance - 1, "max_sequence_length": TOKENS, "negative_prompt": negative}
    return pipe(list(prompts), generator=generators, **call).images


def _draw_flux_2_klein(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    size: tuple[int, int] = (16, 16),
) -> Tensor:
    call = {"num_inference_steps": steps, "output_type": output, "height": size[0], "width": size[1]}
    call |= {"guidance_scale": guidance, "max_sequence_length": TOKENS}
    images = pipe(prompt=list(prompts), generator=generators, **call).images
    return images if output == "pt" else _normalised_patches(pipe, images)


def _encode_flux_2_klein(pipe: Any, pixels: Tensor) -> Tensor:
    return _normalised_patches(pipe, pipe.vae.encode(pixels).latent_dist.mode())


def _normalised_patches(pipe: Any, latents: Tensor) -> Tensor:
    norm = pipe.vae.bn
    std = (norm.running_var + pipe.vae.config.batch_norm_eps).sqrt()
    return (pipe._patchify_latents(latents) - norm.running_mean.reshape(1, -1, 1, 1)) / std.reshape(1, -1, 1, 1)


def _draw_unconditional(
    pipe: Any,
    prompts: Sequence[str],
    generators: list[torch.Generator],
    output: str,
    steps: int,
    guidance: float,
    eta: float = 0.0,
) -> Tensor:
    from diffusers import DDIMPipeline, DDIMScheduler

    assert guidance == 1.0
    pipe = DDIMPipeline(pipe.unet, DDIMScheduler.from_config(pipe.scheduler.config))
    pipe.set_progress_bar_config(disable=True)
    call = {"batch_size": len(prompts), "generator": generators, "num_inference_steps": steps, "eta": eta}
    pictures = pipe(**call, output_type="pt").images
    return pictures if output == "pt" else pictures * 2 - 1


FAMILIES = {
    "sd": Family(pipelines.build_sd, _draw_from_text),
    "sdxl": Family(pipelines.build_sdxl, _draw_from_text),
    "sd3": Family(pipelines.build_sd3, _draw_sd3, eta=None),
    "flux": Family(pipelines.build_flux, _draw_flux, eta=None),
    "pixart-sigma": Family(pipelines.build_pixart_sigma, _draw_pixart, lora_file=False),
    "instruct-pix2pix": Family(pipelines.build_instruct_pix2pix, _draw_edits),
    "qwen-image": Family(language_pipelines.build_qwen_image, _draw_qwen_image, eta=None, encode=_encode_qwen_image),
    "z-image": Family(language_pipelines.build_z_image, _draw_z_image, eta=None),
    "flux-2-klein": Family(
        language_pipelines.build_flux_2_klein, _draw_flux_2_klein, eta=None, encode=_encode_flux_2_klein
    ),
    "ddpm": Family(pipelines.build_ddpm, _draw_unconditional, guidance=1.0, lora_file=False),
}


#: Pipelines that differ from a family's in one thing; their images are compared with diffusers'. sd-v trains, too.
VARIANTS = {
    # At zero terminal SNR and eta 1 diffusers takes the root of a rounding error below 0, and draws NaN.
    "sd-v": Family(pipelines.build_sd_v, _draw_from_text, eta=0.9),
    "flux-schnell": Family(pipelines.build_flux_schnell, _draw_flux, eta=None),
    "sd3-without-t5": Family(
        pipelines.build_sd3_without_t5, _draw_sd3, eta=None, load_options={"text_encoder_3": None, "tokenizer_3": None}
    ),
    "sd3-dynamic-shift": Family(pipelines.build_sd3_dynamic, _draw_sd3, eta=None),
}


def prompts_of(folder: str, prompts: Sequence[Any]) -> list[Any]:
    """Return the prompts of a tiny pipeline: of one that edits, each with the image that lies in its folder."""
    drawn = []
    for prompt in prompts:
        record = {"prompt": prompt} if isinstance(prompt, str) else prompt
        image = Path(folder) / f"{record['prompt']}.png"
        drawn.append({"image": image, **record} if image.is_file() else prompt)
    return drawn


@dataclass(frozen=True)
class Built:
    """A family whose pipeline lies in ``folder``."""

    family: Family
    folder: str

    @property
    def model(self) -> DiffusionModel:
        """The pipeline as this package sees it."""
        return load_model(self.folder)

    def plain(self, folder: str | Path | None = None) -> Any:
        """Load the pipeline as somebody does who never heard of this package."""
        from diffusers import DiffusionPipeline

        pipe = DiffusionPipeline.from_pretrained(folder or self.folder, **self.family.load_options)
        pipe.set_progress_bar_config(disable=True)
        return pipe

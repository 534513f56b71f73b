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
from tests.builders import pipelines
from tests.builders.tokenizers import TOKENS


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
    """

    build: Callable[[Path], None]
    draw: Callable[..., Tensor]
    guidance: float = 3.0
    eta: float | None = 1.0
    lora_file: bool = True
    load_options: dict[str, Any] = field(default_factory=dict)


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

"""How predictions without and with the prompt become the guided one, and what guidance leads away from."""

import warnings
from collections.abc import Callable

from torch import Tensor

from algorithms.config.base import PolicyConfig
from diffusion_gym.models import DiffusionModel


def guidance(model: DiffusionModel, config: PolicyConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what makes the guided prediction (n, ...) of the two without and with the prompt, each (n, ...).

    Raises:
        ValueError: it is to be rescaled, which the model's pipeline does not do.
    """
    if not config.guidance_rescale:
        return lambda uncond, cond: model.guide(uncond, cond, config.guidance_scale)
    if model.embeds_guidance:
        raise ValueError(
            f"the model {model.name!r} takes the guidance scale as an input, so there is nothing to rescale; leave "
            f"guidance_rescale out, got {config.guidance_rescale}."
        )
    if not model.rescales_guidance:
        raise ValueError(
            f"the pipeline of {model.name!r} has no guidance_rescale, as those of Stable Diffusion and SDXL have; "
            f"leave it out, got {config.guidance_rescale}."
        )

    def rescaled(uncond: Tensor, cond: Tensor) -> Tensor:  # Lin et al. 2023, equations 15 and 16
        guided = model.guide(uncond, cond, config.guidance_scale)
        axes = list(range(1, guided.ndim))
        same_std = guided * (cond.std(axes, keepdim=True) / guided.std(axes, keepdim=True))
        return config.guidance_rescale * same_std + (1 - config.guidance_rescale) * guided

    return rescaled


def check_negative_prompts(model: DiffusionModel, config: PolicyConfig, by_prompt: bool) -> None:
    """Raise ValueError for a negative prompt that the model has no place for, or that another one would replace."""
    if config.negative_prompt is not None and "negative_prompt" not in model.fields_read:
        why = "takes the guidance scale as an input" if model.embeds_guidance else "has a pipeline without any"
        raise ValueError(
            f"the model {model.name!r} {why}, so it reads no negative_prompt; leave {config.negative_prompt!r} out."
        )
    if by_prompt and config.negative_prompt is not None:
        raise ValueError(
            f"some prompts have a 'negative_prompt' of their own beside negative_prompt {config.negative_prompt!r} for "
            "all; leave out one of the two."
        )
    if by_prompt and config.guidance_scale <= 1:
        raise ValueError(
            "some prompts have a 'negative_prompt', which needs guidance; set guidance_scale above 1 (5 is usual), "
            f"got {config.guidance_scale:g}."
        )


def check_image_guidance(model: DiffusionModel, config: PolicyConfig, guided: bool) -> None:
    """Raise ValueError for a guidance by images that the model does not have; warn of one that is off."""
    scale = config.image_guidance_scale
    if scale > 1 and not model.image_conditioning:
        raise ValueError(
            f"image_guidance_scale {scale:g} is for models that edit an image, and {model.name!r} does not; leave it "
            "at 1."
        )
    if scale > 1 and not guided:
        warnings.warn(
            f"image_guidance_scale {scale:g} does nothing without guidance, as in diffusers: give a guidance_scale "
            f"above 1, got {config.guidance_scale:g}, or image_guidance_scale 1.",
            stacklevel=3,
        )

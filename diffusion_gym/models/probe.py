"""Checks when a model is loaded: it runs once, so that parts that do not fit are an error then, and not hours later."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion_gym.errors import first_run
from diffusion_gym.models.schedulers import FLOW_SCHEDULERS

if TYPE_CHECKING:
    from diffusion_gym.models.pipeline import PipelineModel

#: Settings of a denoiser that decide what it takes; an error names them.
_INPUT_SETTINGS = (
    *("in_channels", "out_channels", "sample_size", "patch_size", "cross_attention_dim", "joint_attention_dim"),
    *("pooled_projection_dim", "class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim"),
)
#: Height and width of the latents that are decoded, or less: a VAE's convolutions take any size, and of Stable
#: Diffusion's 64 x 64 a processor's thread would take seconds.
_SIDE = 16
_FITTING = "parts that belong together, of a model that needs nothing but noise and a text"


def check_sample_size(name: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError where a denoiser's settings do not say how large its latents are; name: the model's."""
    size = config.get("sample_size", 1)
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(
            f"the {config['_class_name']} of {name!r} has the sample_size {size!r}; expected the height and width of "
            "its latents in its config.json (64 for pictures of 512 pixels)."
        )


def check_channels(name: str, network: Any, vae: Any, inputs: int = 1) -> None:
    """Raise ValueError unless a denoiser takes the latents of the VAE and nothing beside them.

    Args:
        name: the model's.
        network: the denoiser.
        vae: its VAE.
        inputs: how many latents it takes, one after the other in its channels.
    """
    channels = vae.config.latent_channels
    if inputs > 1 and network.config.in_channels != inputs * channels:
        raise ValueError(
            f"the {type(network).__name__} of {name!r} takes {network.config.in_channels} channels, and the latents of "
            f"its VAE have {channels}; expected {inputs * channels}: those of {inputs} latents."
        )
    if inputs == 1 and network.config.in_channels != channels:
        raise ValueError(
            f"the {type(network).__name__} of {name!r} takes {network.config.in_channels} channels, and the latents of "
            f"its VAE have {channels}; expected a model that draws pictures from noise and a text alone (one that "
            "inpaints or edits pictures takes more)."
        )


@torch.no_grad()
def check_runs(model: "PipelineModel") -> None:
    """Encode a prompt, denoise one row at one time, decode and encode one picture, of large ones a corner.

    Raises:
        ValueError: one of them fails, gives another shape than the model says, or values that are not finite.
    """
    loaded = repr(model.name)
    part = getattr(model.pipe, model.denoiser_class.component)
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    time = torch.tensor([model.scheduler_config.get("num_train_timesteps", 1000) // 2], device=model.device)
    if model.scheduler_config["_class_name"] in FLOW_SCHEDULERS:
        time = time.float()
    prompt = "a cat" if isinstance(model.default_prompts, str) else model.default_prompts[0]

    with first_run(loaded, "encoding a prompt", _FITTING):
        conditioning = model.encode_prompts([prompt])
    for key, shape in model.conditioning_shapes.items():
        what = f"the {key.replace('_', ' ')}"
        _check_shape(loaded, what, conditioning[key], shape)
        check_finite(model.name, what, model.dtype, conditioning[key].isfinite().all())
    given = ", ".join(f"{name} {tuple(v.shape)}" for name, v in {"latents": latents, **conditioning}.items())
    settings = {key: part.config[key] for key in _INPUT_SETTINGS if part.config.get(key) is not None}
    network = type(part).__name__
    with first_run(loaded, f"a step of its {network} ({given}; its settings are {settings})", _FITTING):
        output = model.denoiser_class(part)(latents, time, conditioning)
    _check_shape(loaded, f"the prediction of its {network}", output, model.latent_shape)
    check_finite(model.name, f"a prediction of its {network}", model.dtype, output.isfinite().all())
    _check_images(model, loaded, latents)


def _check_images(model: "PipelineModel", loaded: str, latents: Tensor) -> None:
    (c, h, w), (_, height, width) = model.latent_shape, model.image_shape
    rows, columns = (h, w) if model.decodes_whole else (min(h, _SIDE), min(w, _SIDE))
    corner = latents[:, :, :rows, :columns]
    with first_run(loaded, f"decoding latents {tuple(corner.shape)}", _FITTING):
        images = model.decode(corner)
    _check_shape(loaded, "the picture that its VAE decodes", images, (3, rows * height // h, columns * width // w))
    with first_run(loaded, f"encoding a picture {tuple(images.shape)}", _FITTING):
        encoded = model.encode_images(images)
    _check_shape(loaded, "what its VAE encodes", encoded, (c, rows, columns))


def check_finite(name: str, what: str, dtype: object, finite: Tensor) -> None:
    """Raise ValueError, with the way out, unless ``finite`` is true; waits for the device.

    Args:
        name: the model's.
        what: has values.
        dtype: it was computed in.
        finite: (), bool.
    """
    if bool(finite):
        return
    computed = str(dtype).removeprefix("torch.")
    if computed == "float16":
        way_out = "float16 ends at 65,504; load the model with dtype='bfloat16' or 'float32'"
    else:
        way_out = "its weights hold NaN, or values beyond all bounds; download or copy the model's folder again"
    raise ValueError(f"{what} of {name!r} in {computed} is not finite (NaN or infinite): {way_out}.")


def _check_shape(loaded: str, what: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != (1, *shape):
        raise ValueError(
            f"{loaded} was loaded, but {what} has the shape {tuple(value.shape)}, expected {(1, *shape)}. Its parts do "
            "not belong together, or sizes in its settings do not divide."
        )

"""A model runs once when it is loaded, so that one whose parts do not fit is an error then, and not hours later."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from diffusion_gym.errors import summary
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
#: Inpainting models see the masked picture and the mask beside the latents; instruct-pix2pix sees the picture.
_MORE_CHANNELS = {9: " (it inpaints)", 8: " (it edits pictures, as instruct-pix2pix does, or upscales them)"}


def check_sample_size(name: str, config: Mapping[str, Any]) -> None:
    """Raise ValueError where a denoiser's settings do not say how large its latents are; name: the model's."""
    size = config.get("sample_size", 1)
    sides = size if isinstance(size, list | tuple) and len(size) == 2 else [size]
    if not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(
            f"the {config['_class_name']} of {name!r} has {'no' if size is None else repr(size) + ' for its'} "
            "sample_size; expected the height and width of its latents in its config.json (64 for pictures of 512 "
            "pixels)."
        )


def check_channels(name: str, network: Any, vae: Any) -> None:
    """Raise ValueError unless a denoiser takes the latents of the VAE and nothing beside them; name: the model's."""
    channels = vae.config.latent_channels
    if network.config.in_channels != channels:
        raise ValueError(
            f"the {type(network).__name__} of {name!r} takes {network.config.in_channels} channels"
            f"{_MORE_CHANNELS.get(network.config.in_channels, '')}, and the latents of its VAE have {channels}; "
            "expected a model that draws pictures from noise and a text alone."
        )


@torch.no_grad()
def check_runs(model: "PipelineModel") -> None:
    """Encode a prompt, denoise one row at one time, decode and encode one picture, of large ones a corner.

    Raises:
        ValueError: one of them fails, gives another shape than the model says, or values that are not finite.
    """
    part = getattr(model.pipe, model.denoiser_class.component)
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0)).to(model.device)
    time = torch.tensor([model.scheduler_config.get("num_train_timesteps", 1000) // 2], device=model.device)
    if model.scheduler_config["_class_name"] in FLOW_SCHEDULERS:
        time = time.float()
    prompt = "a cat" if isinstance(model.default_prompts, str) else model.default_prompts[0]

    conditioning = _run(model, "encoding a prompt", lambda: model.encode_prompts([prompt]))
    for key, shape in model.conditioning_shapes.items():
        _check_shape(model, f"the {key.replace('_', ' ')}", conditioning[key], shape)
        check_finite(model, f"the {key.replace('_', ' ')}", model.dtype, conditioning[key].isfinite().all())
    given = {"latents": latents, **conditioning}
    settings = {key: part.config[key] for key in _INPUT_SETTINGS if part.config.get(key) is not None}
    output = _run(
        model,
        f"a step of its {type(part).__name__} ({_shapes(given)}; its settings are {settings})",
        lambda: model.denoiser_class(part)(latents, time, conditioning),
    )
    _check_shape(model, f"the prediction of its {type(part).__name__}", output, model.latent_shape)
    check_finite(model, f"a prediction of its {type(part).__name__}", model.dtype, output.isfinite().all())
    (c, h, w), (_, height, width) = model.latent_shape, model.image_shape
    rows, columns = (h, w) if model.decodes_whole else (min(h, _SIDE), min(w, _SIDE))
    corner = latents[:, :, :rows, :columns]
    images = _run(model, f"decoding latents {tuple(corner.shape)}", lambda: model.decode(corner))
    _check_shape(model, "the picture that its VAE decodes", images, (3, rows * height // h, columns * width // w))
    encoded = _run(model, f"encoding a picture {tuple(images.shape)}", lambda: model.encode_images(images))
    _check_shape(model, "what its VAE encodes", encoded, (c, rows, columns))


def check_finite(model: "PipelineModel", what: str, dtype: object, finite: Tensor) -> None:
    """Raise ValueError, with the way out, unless ``finite`` is true; waits for the device.

    Args:
        model: what it is of.
        what: has values.
        dtype: it was computed in.
        finite: (), bool.
    """
    if not bool(finite):
        computed = str(dtype).removeprefix("torch.")
        raise ValueError(
            f"{what} of {model.name!r} in {computed} is not finite (NaN or infinite): {way_out(computed)}."
        )


def way_out(dtype: str) -> str:
    """Say what to do about values that are not finite."""
    if dtype == "float16":
        return "float16 ends at 65,504; load the model with dtype='bfloat16' or 'float32'"
    return "its weights hold NaN, or values beyond all bounds; download or copy the model's folder again"


def _run(model: "PipelineModel", what: str, step: Callable[[], Any]) -> Any:
    try:
        return step()
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the libraries raise many unrelated types
        if isinstance(error, ValueError) and repr(model.name) in str(error):
            raise  # in our own words already
        raise ValueError(
            f"the model {model.name!r} was loaded, and cannot run: {what} failed ({summary(error)}). Expected parts "
            "that belong together, of a model that needs nothing but noise and a text."
        ) from error


def _check_shape(model: "PipelineModel", what: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != (1, *shape):
        raise ValueError(
            f"the model {model.name!r} was loaded, and cannot run: {what} has the shape {tuple(value.shape)}, expected "
            f"{(1, *shape)}. Its parts do not belong together, or sizes in its settings do not divide."
        )


def _shapes(given: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in given.items())

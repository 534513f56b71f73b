"""Pretrained models by name, folder or hub id; each is one adapter around a diffusers pipeline."""

from collections.abc import MutableMapping
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch

from diffusion_gym.models.base import (
    DTYPES,
    Conditioning,
    Denoiser,
    DiffusionModel,
    LoRAConfig,
    ModelDtype,
    ModelSettings,
)
from diffusion_gym.models.loading import load_pipeline_model, state_of, weights_state
from diffusion_gym.paths import expanded
from diffusion_gym.recommended import Recommended, recommended_for

__all__ = [
    "Conditioning",
    "Denoiser",
    "DiffusionModel",
    "LoRAConfig",
    "ModelDtype",
    "ModelSettings",
    "Recommended",
    "check_device",
    "load_model",
    "recommended_for",
]

#: What :func:`load_model` was given, and the state of the files -> the model, for as long as somebody holds it.
_loaded: MutableMapping[tuple[Any, ...], DiffusionModel] = WeakValueDictionary()


def load_model(
    name: str | Path | DiffusionModel, device: str = "cpu", dtype: ModelDtype = "float32", **settings: Any
) -> DiffusionModel:
    """Load a pretrained model, and run it once; later calls with the same arguments share it while somebody holds it.

    A folder whose files have changed is loaded again; who holds the model that was loaded from it before keeps that.

    Args:
        name: ``"emoji-animals"`` (shipped with this package), an exact model (``"exact-gaussian"``,
            ``"exact-mixture"``; as flows ``"exact-flow-gaussian"``, ``"exact-flow-mixture"``), a folder in diffusers'
            layout (full weights, or a variant such as fp16), or a hub id such as
            ``"stable-diffusion-v1-5/stable-diffusion-v1-5"``. A model object is returned as it is.
        device: a torch device, or "auto": "cuda" where torch sees a GPU, and "cpu" elsewhere.
        dtype: of the frozen networks (text encoder, VAE, UNet): ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        settings: fields of :class:`ModelSettings`: ``height`` and ``width`` of the images in pixels; ``start_from``, a
            LoRA that is merged into the weights, or with ``start_from_mode="train"`` trained on; ``scheduler``, a class
            or folder in the place of the model's; ``model_variant``, such as ``"fp16"``; ``model_config``, of a
            single-file checkpoint; ``vae_tiling``, which decodes images larger than the VAE's tiles (usually 512
            pixels) in overlapping tiles, to save memory, and leaves faint differences where tiles meet.

    Raises:
        TypeError: an unknown setting.
        ValueError: an unknown name, device, dtype or model family, a setting that the model does not have, or a model
            that cannot run.
    """
    asked = ModelSettings.of(**settings)
    if isinstance(name, DiffusionModel):
        other = [setting for setting, value in asked.given.items() if value != getattr(name.settings, setting)]
        if other:
            raise ValueError(
                f"the model {name.name!r} is loaded already, without {other[0]}={asked.given[other[0]]!r}; give it to "
                "load_model, or give the model's name."
            )
        return name
    if isinstance(name, str | Path):
        name = expanded(name)
    if not isinstance(name, str):
        raise TypeError(f"model must be a name, a folder or a DiffusionModel, got {type(name).__name__}.")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; expected one of {sorted(DTYPES)}.")
    key = (name, str(check_device(device)), dtype, asked, (state_of(name), weights_state(asked.start_from)))
    model = _loaded.get(key)
    if model is None:
        model = _loaded[key] = _load(*key[:-1])
    return model


def _load(name: str, device: str, dtype: ModelDtype, settings: ModelSettings) -> DiffusionModel:
    from diffusion_gym.models.exact import EXACT_FLOW_MODELS, EXACT_MODELS, ExactFlowModel, ExactModel

    given = [setting for setting in settings.given if setting != "vae_tiling"]  # there are no tiles to join
    if given and name in (*EXACT_MODELS, *EXACT_FLOW_MODELS):
        raise ValueError(f"the exact model {name!r} takes no {given[0]}, only a diffusers pipeline does; leave it out.")
    if name in EXACT_MODELS:
        return ExactModel(name, *EXACT_MODELS[name], torch.device(device))
    if name in EXACT_FLOW_MODELS:
        return ExactFlowModel(name, *EXACT_FLOW_MODELS[name], torch.device(device))
    return load_pipeline_model(name, torch.device(device), dtype, settings)


def check_device(device: str) -> torch.device:
    """Return the device; "auto" is CUDA's where torch sees a GPU, and the CPU elsewhere.

    MPS must be asked for: it is not tested here.

    Raises:
        ValueError: torch does not know it, or this machine does not have it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"unknown device {device!r}; expected for example 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from error
    if parsed.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"device {device!r} was asked for, but torch sees no CUDA device; use device='cpu', or install a "
            f"CUDA build of torch (this one is {torch.__version__})."
        )
    if parsed.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"device {device!r} needs a Mac with Apple silicon, and torch sees none; use device='cpu'.")
    if parsed.type == "cuda" and parsed.index is not None and parsed.index >= torch.cuda.device_count():
        raise ValueError(
            f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices, counted from 0."
        )
    return parsed

"""Pretrained models by name, folder or hub id; each is one adapter around a diffusers pipeline."""

import os
from functools import lru_cache
from pathlib import Path

import torch

from diffusion_gym.models.base import DTYPES, Conditioning, Denoiser, DiffusionModel, LoRAConfig, ModelDtype
from diffusion_gym.models.loading import load_pipeline_model

__all__ = ["Conditioning", "Denoiser", "DiffusionModel", "LoRAConfig", "ModelDtype", "check_device", "load_model"]


def load_model(
    name: str | Path | DiffusionModel, device: str = "cpu", dtype: ModelDtype = "float32", vae_tiling: bool = False
) -> DiffusionModel:
    """Load a pretrained model once; later calls with the same arguments share it.

    Args:
        name: ``"emoji-animals"`` (shipped with this package), an exact model (``"exact-gaussian"``,
            ``"exact-mixture"``; as flows ``"exact-flow-gaussian"``, ``"exact-flow-mixture"``), a folder in diffusers'
            layout, or a hub id such as ``"stable-diffusion-v1-5/stable-diffusion-v1-5"``. A model object is returned
            as it is.
        device: a torch device.
        dtype: of the frozen networks (text encoder, VAE, UNet): ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        vae_tiling: decode images larger than the VAE's tiles (usually 512 pixels) in overlapping tiles, which takes
            less memory and leaves faint differences where tiles meet.

    Raises:
        ValueError: an unknown name, device, dtype or model family.
    """
    if isinstance(name, DiffusionModel):
        return name
    if isinstance(name, str | Path):
        name = os.path.expanduser(name)  # noqa: PTH111 - Path's raises for a name that nobody has
    else:
        raise TypeError(f"model must be a name, a folder or a DiffusionModel, got {type(name).__name__}.")
    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}; expected one of {sorted(DTYPES)}.")
    return _load(name, str(check_device(device)), dtype, vae_tiling)


@lru_cache(maxsize=4)
def _load(name: str, device: str, dtype: ModelDtype, vae_tiling: bool) -> DiffusionModel:
    from diffusion_gym.models.exact import EXACT_FLOW_MODELS, EXACT_MODELS, ExactFlowModel, ExactModel

    if name in EXACT_MODELS:
        return ExactModel(name, *EXACT_MODELS[name], torch.device(device))
    if name in EXACT_FLOW_MODELS:
        return ExactFlowModel(name, *EXACT_FLOW_MODELS[name], torch.device(device))
    return load_pipeline_model(name, torch.device(device), dtype, vae_tiling)


def check_device(device: str) -> torch.device:
    """Return the device.

    Raises:
        ValueError: torch does not know it, or this machine does not have it.
    """
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"unknown device {device!r}; expected for example 'cpu', 'cuda', 'cuda:1' or 'mps'."
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

"""Checkpoints in one file, with the names of the original code, made of tiny pipelines."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

#: Inside a block of the UNet, and of the VAE: diffusers' name -> the original's.
_UNET_BLOCK = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_VAE_BLOCK = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}


def write_single_file(pipe: Any, file: Path, ckpt: bool = False) -> None:
    """Write a Stable Diffusion 1 pipeline of two blocks as its original code would have."""
    tensors = {f"model.diffusion_model.{_unet_name(name)}": value for name, value in pipe.unet.state_dict().items()}
    for name, value in pipe.vae.state_dict().items():
        original = _vae_name(name, len(pipe.vae.config.block_out_channels))
        is_convolution = ".mid.attn_1." in original and value.ndim == 2
        tensors[f"first_stage_model.{original}"] = value[:, :, None, None] if is_convolution else value
    for name, value in pipe.text_encoder.state_dict().items():
        prefix = "cond_stage_model.transformer." + ("" if name.startswith("text_model.") else "text_model.")
        tensors[prefix + name] = value
    whole: dict[str, Tensor] = {name: value.contiguous().clone() for name, value in tensors.items()}
    torch.save({"state_dict": whole}, file) if ckpt else save_file(whole, file)


def _unet_name(name: str) -> str:
    """Return the original name of a UNet's tensor: two blocks down with one layer each, two up with two."""
    for ours, original in _UNET.items():
        if name.startswith(f"{ours}."):
            return original + name.removeprefix(ours)
    part, *rest = name.split(".", 1)
    if part == "mid_block":
        kind, index, inner = rest[0].split(".", 2)
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}"
    else:
        block, kind, index, inner = rest[0].split(".", 3)
        layer = int(block) * 2 + int(index)
        if part == "down_blocks":
            place = f"input_blocks.{2 * int(block) + 2 if kind == 'downsamplers' else layer + 1}"
            place += ".0" if kind != "attentions" else ".1"
            inner = inner.replace("conv.", "op.") if kind == "downsamplers" else inner
        else:
            place = f"output_blocks.{2 * int(block) + 1 if kind == 'upsamplers' else layer}"
            place += {"resnets": ".0", "attentions": ".1"}.get(kind, ".1" if block == "0" else ".2")
    if kind == "resnets":
        inner = _renamed(inner, _UNET_BLOCK)
    return f"{place}.{inner}"


def _vae_name(name: str, blocks: int) -> str:
    side, _, rest = name.partition(".")
    if side not in ("encoder", "decoder"):
        return name
    rest = rest.replace("conv_norm_out", "norm_out")
    part, _, inner = rest.partition(".")
    if part == "mid_block":
        kind, index, inner = inner.split(".", 2)
        place = "mid.attn_1" if kind == "attentions" else f"mid.block_{int(index) + 1}"
        return f"{side}.{place}.{_renamed(inner, _VAE_ATTENTION | _VAE_BLOCK)}"
    if part not in ("down_blocks", "up_blocks"):
        return f"{side}.{rest}"
    block, kind, index, inner = inner.split(".", 3)
    way, number = ("down", int(block)) if part == "down_blocks" else ("up", blocks - 1 - int(block))
    place = f"block.{index}" if kind == "resnets" else f"{way}sample"
    return f"{side}.{way}.{number}.{place}.{_renamed(inner, _VAE_BLOCK)}"


def _renamed(name: str, names: dict[str, str]) -> str:
    for ours, original in names.items():
        if name.startswith(f"{ours}."):
            return original + name.removeprefix(ours)
    return name

"""Weights sharded over the ranks (FSDP) by torch's ``fully_shard``: each rank holds its part of every tensor.

A forward or backward pass gathers a block's weights for as long as it takes, and the backward pass hands each rank its
part of the gradient, so optimizer moments and averages are sharded as well.
"""

from typing import Any

import torch
from torch import Tensor, nn


def shard(module: nn.Module, device_type: str, size: int) -> None:
    """Shard a module's parameters over all ranks, in place. Collective.

    Blocks that diffusers and transformers declare unsplittable are gathered one at a time, the rest at once.

    Args:
        module: the same weights on every rank.
        device_type: of the weights, on which ranks exchange them.
        size: number of ranks.

    Raises:
        ValueError: this torch cannot, or a rank would still hold all weights.
    """
    try:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ValueError(f"FSDP needs torch 2.6 or later, got {torch.__version__}; launch with --multi_gpu.") from error
    mesh = init_device_mesh(device_type, (size,))
    parts: list[Any] = list(module.modules())
    blocks = {name for part in parts for name in getattr(part, "_no_split_modules", None) or ()}
    for part in reversed(parts):  # inner blocks first
        if part is module or type(part).__name__ in blocks:
            # Without it the outermost weights would stay as they were gathered, while others are put in their place.
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    check_sharded(module, size)


def check_sharded(module: nn.Module, size: int) -> None:
    """Raise ValueError unless every parameter is sharded, and this rank holds less than the whole of them."""
    named = dict(module.named_parameters())
    whole = [name for name, value in named.items() if not is_sharded(value)]
    here, total = sum(local(value).numel() for value in named.values()), sum(value.numel() for value in named.values())
    if whole or here == total:
        found = f"{whole[0]!r} is whole on every rank" if whole else f"this rank holds all {total} values"
        raise ValueError(
            f"FSDP was asked for, and expected to leave each of {size} ranks a part of the weights, but {found}. "
            "Launch with --multi_gpu, so that every rank holds all weights."
        )


def is_sharded(value: Tensor) -> bool:
    """Return whether a tensor is sharded over ranks (torch's DTensor)."""
    return hasattr(value, "full_tensor")


def local(value: Any) -> Tensor:
    """Return this rank's part of a tensor; all of it if it is not sharded."""
    return value.detach().to_local() if is_sharded(value) else value


def whole(value: Any) -> Tensor:
    """Return a sharded tensor's whole value, and any other tensor as it is. Collective."""
    return value.detach().full_tensor() if is_sharded(value) else value


def laid_out_as(value: Tensor, like: Any) -> Tensor:
    """Return a copy of a tensor on the device, and in the parts, of another of its shape. Ranks exchange nothing.

    Args:
        value: whole, and the same on every rank, or in such parts already.
        like: a tensor, sharded or not.
    """
    if not is_sharded(value) and not is_sharded(like) and value.shape == like.shape:
        return torch.empty_like(like.detach(), dtype=value.dtype).copy_(value.detach())  # in its memory format too
    if is_sharded(value) or not is_sharded(like):
        return value.detach().to(like.device, copy=True)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        value.detach().to(like.device), like.device_mesh, like.placements, src_data_rank=None
    ).clone()

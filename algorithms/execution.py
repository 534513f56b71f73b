"""How a denoiser's forward pass is executed: as one compiled graph, or with convolutions in the channels-last layout.

Sampling and scoring must round alike, so that the importance ratio is exactly 1 before the first update.
"""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from algorithms.memory import is_out_of_memory
from diffusion_gym.errors import reason
from diffusion_gym.models.base import Conditioning, Denoiser

if TYPE_CHECKING:
    from algorithms.policy import DenoisingPolicy

#: What ``torch.compile`` makes the kernels with; tests put one without a C++ compiler in its place.
BACKEND = "inductor"
#: Of one network's code: one for each shape, each model in the process, and each state of its adapters. torch's own
#: limit is 8, beyond which it fails.
_MOST_GRAPHS = 1024


def check_compile(device: torch.device) -> None:
    """Raise ValueError where ``torch.compile`` cannot work, as without a C++ compiler; a small function is tried."""
    try:
        torch.compile(lambda x: x + 1, fullgraph=True, backend=BACKEND)(torch.ones(2, device=device))
    except Exception as error:  # of many unrelated types
        raise ValueError(
            f"compile needs torch.compile, which does not work here ({reason(error)}); install what it needs (a "
            "C++ compiler such as g++ on a CPU, Triton on a GPU), or leave out --policy.compile."
        ) from error


def run_compiled(
    denoiser: nn.Module, rows: int, latents: Tensor, timesteps: Tensor, conditioning: Conditioning
) -> Tensor:
    """Return the denoiser's prediction, (n, c, h, w), from its compiled graph, which the first call makes.

    One graph serves sampling and scoring: a graph without gradients has other kernels, which round otherwise. So
    gradients are recorded here in any case, and dropped where the caller records none.

    Args:
        denoiser: its networks are compiled in place; names of weights, copies and exports know nothing of it.
        rows: the batch is filled up to a multiple of it with copies of its last row, so that shapes are fixed.
        latents: (n, c, h, w).
        timesteps: (n,).
        conditioning: name -> (n, ...).

    Raises:
        ValueError: torch cannot make one graph of a network.
    """
    from torch._dynamo.exc import TorchDynamoException

    networks = _networks(denoiser)
    for network in networks:
        if network._compiled_call_impl is None:
            network.compile(fullgraph=True, dynamic=False, backend=BACKEND)
    n, missing = len(latents), -len(latents) % rows

    def filled(value: Tensor) -> Tensor:
        return torch.cat([value, value[-1:].expand(missing, *value.shape[1:])])

    recorded = torch.is_grad_enabled()
    limits = {"cache_size_limit": _MOST_GRAPHS, "accumulated_cache_size_limit": _MOST_GRAPHS}
    try:
        with torch.enable_grad(), torch._dynamo.config.patch(limits):
            given = {name: filled(value) for name, value in conditioning.items()}
            output = denoiser(filled(latents), filled(timesteps), given)[:n]
    except TorchDynamoException as error:
        if is_out_of_memory(error):
            raise
        names = ", ".join(type(network).__name__ for network in networks)
        raise ValueError(
            f"torch.compile could not make one graph of {names} ({reason(error)}); leave out --policy.compile."
        ) from error
    return output if recorded else output.detach()


@contextlib.contextmanager
def eager(policy: "DenoisingPolicy") -> Iterator[None]:
    """Let a policy run without its compiled graph inside a ``with`` block, to count tensors or operations."""
    compiles, networks = policy.compiles, _networks(policy.denoiser)
    graphs = [network._compiled_call_impl for network in networks]
    policy.compiles = False
    for network in networks:
        network._compiled_call_impl = None
    try:
        yield
    finally:
        policy.compiles = compiles
        for network, graph in zip(networks, graphs, strict=True):
            network._compiled_call_impl = graph


def use_channels_last(denoiser: nn.Module, name: str) -> None:
    """Lay out the weights of a denoiser's two-dimensional convolutions with the channels last, in place.

    Frozen weights are shared with the model ``name``, which stays as it is: they become copies.

    Raises:
        ValueError: the denoiser has no such weights.
    """
    found = False
    for module in denoiser.modules():
        for key, value in module.named_parameters(recurse=False):
            if value.ndim != 4:
                continue
            found, laid_out = True, value.data.contiguous(memory_format=torch.channels_last)
            if value.requires_grad:
                value.data = laid_out
            elif laid_out.data_ptr() != value.data_ptr():
                module.register_parameter(key, nn.Parameter(laid_out, requires_grad=False))
    if not found:
        raise ValueError(
            f"channels_last is for denoisers with two-dimensional convolutions, and that of {name!r} has none; leave "
            "out --policy.channels-last."
        )


def _networks(denoiser: nn.Module) -> list[nn.Module]:
    """Return what is compiled of a denoiser: the networks that it calls, or itself if it has none."""
    found: list[nn.Module] = []
    for child in denoiser.children():
        found += _networks(child) if isinstance(child, Denoiser | nn.ModuleDict) else [child]
    return found or [denoiser]

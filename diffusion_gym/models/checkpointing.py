"""Gradient checkpointing of diffusers' and transformers' networks that stay in evaluation mode."""

from typing import Any

from torch import nn


def enable_gradient_checkpointing(network: nn.Module) -> None:
    """Recompute the activations inside blocks in the backward pass (Chen et al. 2016, arXiv 1604.06174).

    Args:
        network: holds networks of diffusers or transformers; all stay in evaluation mode.

    Raises:
        ValueError: it has no such network, or one that cannot be checkpointed.
    """
    found = False
    modules: list[Any] = list(network.modules())
    for module in modules:
        if hasattr(module, "enable_gradient_checkpointing"):
            module.enable_gradient_checkpointing()
            found = True
        elif hasattr(module, "activation_checkpointing_enable"):  # transformers, from 5 on
            module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
            found = True
        elif hasattr(module, "gradient_checkpointing_enable"):
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            found = True
    if not found:
        raise ValueError(
            f"gradient checkpointing needs networks of diffusers or transformers, got {type(network).__name__}; leave "
            "out gradient_checkpointing."
        )
    for module in modules:
        if getattr(module, "gradient_checkpointing", False):
            # Transformers checkpoints a block only when the block itself is in training mode. The flag of the block
            # alone is set: the dropout inside has flags of its own and stays off, as it was in sampling.
            module.training = True

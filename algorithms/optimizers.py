"""AdamW over the trained weights, with moments of 32 or of 8 bits."""

import importlib.util
from collections.abc import Iterable

import torch
from torch import nn

from algorithms.config.base import AlgorithmConfig


def check_optimizer(config: AlgorithmConfig) -> None:
    """Raise ValueError where the optimizer's package is not installed."""
    if config.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "optimizer 'adamw8bit' needs the package bitsandbytes, which is not installed: "
            "pip install 'diffusion-denoise-gym[bitsandbytes]'; or take optimizer 'adamw'."
        )


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: AlgorithmConfig, learning_rate: float | None = None
) -> torch.optim.Optimizer:
    """Return a fresh optimizer over the parameters, at the configuration's learning rate if no other is given.

    The moments of bitsandbytes have 8 bits where a tensor has at least 4,096 values, and 32 where it is smaller.

    Raises:
        ValueError: the optimizer's package is not installed.
    """
    check_optimizer(config)
    settings = {
        "lr": config.learning_rate if learning_rate is None else learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)  # type: ignore[arg-type]
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **settings)

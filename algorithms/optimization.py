"""Gradient steps: the optimizer, the loss scale of float16, clipping, and updates that are skipped."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algorithms.config.base import AlgorithmConfig
from algorithms.parallel.ranks import Ranks
from algorithms.weight_average import WeightAverage


class DivergedError(RuntimeError):
    """Training cannot continue: more gradients in a row than allowed were not finite."""


@dataclass
class SkippedUpdates:
    """Updates whose gradient was not finite."""

    total: int = 0
    """Since training began."""
    in_a_row: int = 0
    """Since the last update that was made, not counting overflows in float16."""


class GradientSteps:
    """Backward passes and optimizer steps.

    Attributes:
        skipped: counts of skipped updates.
        made: updates made.
        after_backward: called after every backward pass, for a progress bar.
    """

    def __init__(
        self, ranks: Ranks, config: AlgorithmConfig, loss_scaler: torch.amp.GradScaler, average: WeightAverage | None
    ) -> None:
        """Args: average: takes in the weights after each update."""
        self._ranks, self._config, self._average = ranks, config, average
        self.loss_scaler = loss_scaler
        self.skipped, self.made = SkippedUpdates(), 0
        self.after_backward: Callable[[], None] = lambda: None

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradient to what is accumulated; in float16 the loss is scaled up first."""
        if self._ranks.sharded:  # the backward pass takes the ranks' mean of the gradients, whose sum is meant
            loss = loss * self._ranks.size
        self.loss_scaler.scale(loss).backward()
        self.after_backward()

    def step(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Sum the gradients over the ranks, clip them, and step; return their norm before clipping. Collective.

        A gradient that is not finite skips the update: weights and moments stay as they were, and the scale of
        float16 is halved.

        Raises:
            DivergedError: more than ``config.max_skipped_updates`` updates were skipped in a row.
        """
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self._ranks.sum_gradients(parameters)
        self.loss_scaler.unscale_(optimizer)
        norm: Any = torch.nn.utils.clip_grad_norm_(parameters, self._config.max_grad_norm)
        norm = norm.full_tensor() if self._ranks.sharded else norm
        finite, overflowed = bool(norm.isfinite()), self.loss_scaler.get_scale() > 1
        if finite:
            self.loss_scaler.step(optimizer)
            if self._average is not None:
                self._average.update()
            self.made += 1
            self.skipped.in_a_row = 0
        self.loss_scaler.update()
        optimizer.zero_grad(set_to_none=True)
        if not finite:
            self.skipped.total += 1
            self.skipped.in_a_row += not overflowed
            if self.skipped.in_a_row > self._config.max_skipped_updates:
                raise DivergedError(self._diverged(float(norm)))
        return norm

    def _diverged(self, norm: float) -> str:
        return (
            f"{self.skipped.in_a_row} updates in a row were skipped, because the norm of their gradient was {norm}; "
            f"expected a finite one, and max_skipped_updates allows {self._config.max_skipped_updates}. The weights "
            "and moments are those before them. Look for rewards of extreme size, lower learning_rate or clip_range, "
            "or compute in float32 (autocast 'none'); then resume from the last checkpoint."
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts and the loss scale, JSON-serialisable."""
        return {
            "made": self.made,
            "skipped": asdict(self.skipped),
            "loss_scaler": self.loss_scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.made = state["made"]
        self.skipped.total, self.skipped.in_a_row = state["skipped"]["total"], state["skipped"]["in_a_row"]
        if state["loss_scaler"]:
            self.loss_scaler.load_state_dict(state["loss_scaler"])


def check_optimizer(config: AlgorithmConfig) -> None:
    """Raise ValueError where the optimizer's package is not installed."""
    if config.optimizer == "adamw8bit" and importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError(
            "optimizer 'adamw8bit' needs the package bitsandbytes, which is not installed: "
            "pip install 'diffusion-denoise-gym[bitsandbytes]'; or take optimizer 'adamw'."
        )


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: AlgorithmConfig, learning_rate: float
) -> torch.optim.Optimizer:
    """Return a fresh AdamW over the parameters.

    bitsandbytes keeps 8-bit moments where a tensor has at least 4,096 values, and 32-bit ones where it is smaller.

    Raises:
        ValueError: the optimizer's package is not installed.
    """
    check_optimizer(config)
    settings: dict[str, Any] = {
        "lr": learning_rate,
        "betas": (config.adam_beta1, config.adam_beta2),
        "weight_decay": config.weight_decay,
    }
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, **settings)
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **settings)

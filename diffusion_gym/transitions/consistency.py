"""Latent consistency models: the grid and the step of diffusers' LCMScheduler, which noises its prediction again.

Luo et al. 2023 (arXiv 2310.04378), algorithm 3. Notation as in ``diffusion.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.transitions.base import check_steps, noise_levels
from diffusion_gym.transitions.diffusion import DiffusionSchedule, DiffusionTransition, check_thresholding


@dataclass(frozen=True)
class ConsistencySchedule(DiffusionSchedule):
    """The grid of an LCMScheduler, chosen from the ``original_inference_steps`` that the model was distilled on.

    Attributes:
        skip, out: (T,), float64, the boundary condition: the model's x_0 is ``out x_0 + skip x_t``.
    """

    skip: Tensor
    out: Tensor
    kind: ClassVar[str] = "consistency"
    samplers: ClassVar[tuple[str, ...]] = ("lcm",)


def make_consistency_schedule(config: Mapping[str, Any], steps: int) -> ConsistencySchedule:
    """Return the grid of diffusers' own LCMScheduler.

    Args:
        config: its configuration.
        steps: T, from 1 to its ``original_inference_steps``.

    Raises:
        ValueError: T out of range, or dynamic thresholding.
    """
    from diffusers import LCMScheduler

    check_steps(steps, int(config.get("original_inference_steps", 50)))
    check_thresholding(config)
    scheduler = LCMScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    bounds = [scheduler.get_scalings_for_boundary_condition_discrete(int(t)) for t in scheduler.timesteps]
    skip, out = torch.tensor(bounds, dtype=torch.float64).T
    return ConsistencySchedule(
        timesteps=scheduler.timesteps.long(),
        num_train_timesteps=len(scheduler.alphas_cumprod),
        alphas_cumprod=scheduler.alphas_cumprod.float(),
        final_alpha_cumprod=1.0,
        prediction_type=scheduler.config.prediction_type,
        clip_range=float(scheduler.config.clip_sample_range) if scheduler.config.clip_sample else None,
        variance_type="fixed_small",
        skip=skip,
        out=out,
    )


class LCM(DiffusionTransition):
    """``mean = sqrt(a_p) f + sqrt(1 - a_p - s^2) epsilon``, ``f = out x_0 + skip x_t`` and ``s = eta sqrt(1 - a_p)``.

    At eta 1 it is diffusers' step: all noise is new. The last step returns f, and has no density; so one step has none.
    """

    direction: Tensor
    skip: Tensor
    out: Tensor

    def __init__(self, schedule: ConsistencySchedule, eta: float | Sequence[float] = 1.0) -> None:
        """Args: eta: in [0, 1], for all steps or for each. Raises ValueError otherwise."""
        levels = noise_levels(
            eta, schedule.num_inference_steps, 1.0, "0: deterministic, 1: all noise is new, as in LCM"
        )
        a_t = schedule.alphas_cumprod.double()[schedule.timesteps]
        a_p = torch.cat([a_t[1:], torch.ones(1, dtype=torch.float64)])
        std = torch.tensor(levels, dtype=torch.float64) * (1 - a_p).sqrt()
        super().__init__(schedule, a_p, std)
        self._buffer("direction", (1 - a_p - std**2).clamp(min=0).sqrt())
        self._buffer("skip", schedule.skip)
        self._buffer("out", schedule.out)

    def mean(self, x_0: Tensor, epsilon: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        """Return the noised prediction without its new noise."""
        f = self.out[step] * x_0 + self.skip[step] * x_t
        return self.sqrt_a_p[step] * f + self.direction[step] * epsilon

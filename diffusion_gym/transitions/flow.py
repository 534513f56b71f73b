"""Flow-matching models (rectified flow): their schedule, and stochastic steps that keep exact log-probabilities.

The path is ``x_t = (1 - t) x_0 + t noise`` with t from 1 (noise) to 0 (image); the network predicts its velocity
``v = noise - x_0`` (Liu et al. 2022, arXiv 2209.03003). diffusers calls t sigma. The model's own sampler follows the
ODE ``dx = v dt`` and has no density; the two samplers here add noise to it, and at eta 0 both are its Euler step.
"""

import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from diffusion_gym.transitions.base import Schedule, Transition, check_steps, noise_levels
from diffusion_gym.transitions.gaussian import Gaussian, per_row

#: A time this near to 1 counts as 1, where Flow-SDE's noise is infinite: float32 grids end within 1e-7 of it.
_AT_ONE = 1 - 1e-6


@dataclass(frozen=True)
class FlowSchedule(Schedule):
    """The grid of a flow-matching model.

    Attributes:
        timesteps: (T,), float32, ``t * num_train_timesteps`` of each step's start.
        num_train_timesteps: the scale of the times that the denoiser sees.
        sigmas: (T + 1,), float32, t from noise to image, the last one 0.
        shift: of uniform times toward noise, ``t = shift u / (1 + (shift - 1) u)``; 1 leaves them.
    """

    sigmas: Tensor
    shift: float
    kind: ClassVar[str] = "flow-matching"
    samplers: ClassVar[tuple[str, ...]] = ("flow-sde", "cps")

    def __post_init__(self) -> None:
        """Raise ValueError for a grid that does not fall: a step's std would be 0 or NaN."""
        falling = bool((self.sigmas[1:] < self.sigmas[:-1]).all()) and bool((self.timesteps.diff() < 0).all())
        if not (falling and 0 < float(self.sigmas[0]) <= 1 and float(self.sigmas[-1]) >= 0):
            raise ValueError(
                f"the {self.num_inference_steps} times of this flow model's grid must fall from at most 1 to 0, got "
                f"{self.sigmas[:6].tolist()} and so on; change the scheduler's shift (shift {self.shift:g}), its "
                "shift_terminal or the number of steps."
            )

    def draw_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n training times, (n,), float32: uniform u, shifted as the grid is.

        Esser et al. 2024 (arXiv 2403.03206), equation 23, shift the times in training and in sampling alike. Their
        weighting of the middle times (logit-normal) is left out.
        """
        u = torch.rand(n, generator=generator)
        return self.shift * u / (1 + (self.shift - 1) * u) * self.num_train_timesteps

    def noised(self, x_0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x_t = (1 - t) x_0 + t noise``, and the target: the velocity ``noise - x_0``."""
        t = per_row(times.to(x_0.device) / self.num_train_timesteps, x_0)
        return (1 - t) * x_0 + t * noise, noise - x_0


def make_flow_schedule(
    scheduler_config: Mapping[str, Any],
    num_inference_steps: int,
    image_sequence_length: int,
    equal_steps: bool = False,
    mu: float | None = None,
) -> FlowSchedule:
    """Return the grid of diffusers' own FlowMatchEulerDiscreteScheduler.

    Args:
        scheduler_config: configuration of a FlowMatchEulerDiscreteScheduler (``pipe.scheduler.config``).
        num_inference_steps: T, from 1 to the number of training times.
        image_sequence_length: image tokens the transformer sees; with ``use_dynamic_shifting`` the shift follows it.
        equal_steps: before the shift the times are 1, 1 - 1/T, ..., 1/T, as the Flux pipeline has it; False is the
            scheduler's own spacing, from 1 to the smallest training time (the Stable Diffusion 3 pipeline).
        mu: what ``use_dynamic_shifting`` shifts by; None is linear in the image tokens, between the scheduler's bounds.

    Raises:
        ValueError: T out of range, inverted sigmas, or one step with shift_terminal.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    steps = check_steps(num_inference_steps, int(scheduler_config.get("num_train_timesteps", 1000)))
    if scheduler_config.get("invert_sigmas", False):
        raise ValueError("invert_sigmas is not supported: the samplers take t from 1 (noise) to 0. Set it to False.")
    with np.errstate(all="ignore"):  # times that are NaN are refused below, in our own words
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler_config))
    config = scheduler.config
    if config.shift_terminal and steps == 1:
        raise ValueError("with shift_terminal one step is not defined (its time is both 1 and the terminal); take 2.")
    shift = float(config.shift)
    if config.use_dynamic_shifting:
        mu = _resolution_shift(config, image_sequence_length) if mu is None else mu
        shift = math.exp(mu) if config.time_shift_type == "exponential" else mu
    sigmas = np.linspace(1.0, 1 / steps, steps).tolist() if equal_steps else None
    with np.errstate(all="ignore"):
        scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)
    return FlowSchedule(
        timesteps=scheduler.timesteps.float(),
        num_train_timesteps=int(config.num_train_timesteps),
        sigmas=scheduler.sigmas.float(),
        shift=shift,
    )


def _resolution_shift(config: Any, tokens: int) -> float:
    """Return the pipelines' ``calculate_shift``: mu is linear in the number of image tokens."""
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return config.base_shift + slope * (tokens - config.base_image_seq_len)


class FlowTransition(Transition, ABC):
    """A step whose mean is ``x_coefficient x_t + v_coefficient v``; at eta 0 the Euler step ``x_t + dt v``."""

    schedule: FlowSchedule
    sigma: Tensor
    x_coefficient: Tensor
    v_coefficient: Tensor

    def __init__(self, schedule: FlowSchedule, x_coefficient: Tensor, v_coefficient: Tensor, std: Tensor) -> None:
        """Args: schedule; x_coefficient, v_coefficient, std: (T,), float64."""
        super().__init__(schedule, std)
        self._buffer("sigma", schedule.sigmas[:-1])
        self._buffer("x_coefficient", x_coefficient)
        self._buffer("v_coefficient", v_coefficient)

    def forward(self, model_output: Tensor, x_t: Tensor, step_index: Tensor) -> Gaussian:
        """Return p(x_{t'} | x_t) from the velocity; see :meth:`Transition.forward`."""
        of_x, of_v = self.x_coefficient[step_index], self.v_coefficient[step_index]
        mean = per_row(of_x, x_t) * x_t + per_row(of_v, x_t) * model_output.float()
        return Gaussian(mean, self.std[step_index])

    def predicted_x_0(self, model_output: Tensor, x_t: Tensor, step_index: Tensor) -> Tensor:
        """Return ``x_t - t v``; see :meth:`Transition.predicted_x_0`."""
        return x_t - per_row(self.sigma[step_index], x_t) * model_output.float()


class FlowSDE(FlowTransition):
    """Flow-GRPO (Liu et al. 2025, arXiv 2505.05470), equation 9: the SDE with the flow's marginals, Euler-Maruyama.

    ``sigma_t = eta sqrt(t / (1 - t))``; with ``dt = t' - t < 0`` the mean is
    ``x (1 + sigma_t^2 / (2t) dt) + v (1 + sigma_t^2 (1 - t) / (2t)) dt`` and the std ``sigma_t sqrt(|dt|)``. At t = 1
    sigma_t is infinite; as in Flow-GRPO's code, 1 - t is there taken at the grid's second time (the cap). All steps
    have a density, also the last. As T grows its samples approach those of the ODE.
    """

    def __init__(self, schedule: FlowSchedule, eta: float | Sequence[float] = 0.7) -> None:
        """Args: eta: the noise level a, at least 0, for all steps or for each. Raises ValueError otherwise."""
        levels = noise_levels(eta, schedule.num_inference_steps, math.inf, "Flow-SDE; 0.7 in Flow-GRPO")
        t, after = schedule.sigmas[:-1].double(), schedule.sigmas[1:].double()
        dt = after - t
        capped = torch.where(t >= _AT_ONE, after[0].clamp(max=_AT_ONE), t)
        half = torch.tensor([a**2 for a in levels], dtype=torch.float64) / (2 * (1 - capped))  # sigma_t^2 / (2t)
        super().__init__(schedule, 1 + half * dt, (1 + half * (1 - t)) * dt, (2 * half * t * dt.abs()).sqrt())


class CPS(FlowTransition):
    """Coefficient-preserving sampling (Wang and Yu 2025, arXiv 2509.05952): DDIM's idea for flows.

    With ``x_0 = x - t v``, ``x_1 = x + (1 - t) v`` and ``s = t' sin(eta pi / 2)`` the mean is
    ``(1 - t') x_0 + sqrt(t'^2 - s^2) x_1`` and the std s, so that noise of the two kinds adds up to t'. The last step
    (t' = 0) is deterministic and has no density. Unlike Flow-SDE it narrows the distribution, however many the steps.
    """

    def __init__(self, schedule: FlowSchedule, eta: float | Sequence[float] = 0.7) -> None:
        """Args: eta: in [0, 1], for all steps or for each. Raises ValueError otherwise."""
        levels = noise_levels(eta, schedule.num_inference_steps, 1.0, "0: the ODE, 1: all of x_1 is fresh noise")
        t, after = schedule.sigmas[:-1].double(), schedule.sigmas[1:].double()
        std = after * torch.tensor([math.sin(level * math.pi / 2) for level in levels], dtype=torch.float64)
        kept = (after**2 - std**2).clamp(min=0).sqrt()
        super().__init__(schedule, (1 - after) + kept, (1 - t) * kept - t * (1 - after), std)

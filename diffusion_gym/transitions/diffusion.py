"""Discrete-time diffusion models: their schedule, and the DDIM and DDPM steps.

Notation follows Song et al. 2021 (DDIM, arXiv 2010.02502): ``a_t`` is the cumulative product of alphas
(``alphas_cumprod`` in diffusers), ``a_p`` the one at the previous (less noisy) time, ``s`` the standard deviation.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffusion_gym.transitions.base import Schedule, Transition, check_steps, noise_levels
from diffusion_gym.transitions.gaussian import Gaussian, per_row

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class DiffusionSchedule(Schedule):
    """The grid of a discrete-time diffusion model, ``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) epsilon``.

    Attributes:
        timesteps: (T,), int64, in sampling order, from noise to image.
        num_train_timesteps: the number of times the model was trained on.
        alphas_cumprod: (num_train_timesteps,), float32, ``a_t`` of every training time.
        final_alpha_cumprod: ``a`` after the last step, used where the previous time is negative (DDIM).
        prediction_type: what the network predicts: ``epsilon``, ``v_prediction`` or ``sample``.
        clip_range: bound on the predicted x_0 (``clip_sample_range``), or None where ``clip_sample`` is off.
        variance_type: DDPM's ``fixed_small`` or ``fixed_large``.
    """

    alphas_cumprod: Tensor
    final_alpha_cumprod: float
    prediction_type: str
    clip_range: float | None
    variance_type: str
    kind: ClassVar[str] = "diffusion"
    samplers: ClassVar[tuple[str, ...]] = ("ddim", "ddpm")

    def draw_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n training times uniformly, (n,), int64, as the model was trained (Ho et al. 2020, algorithm 1)."""
        return torch.randint(self.num_train_timesteps, (n,), generator=generator)

    def noised(self, x_0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise``, and the target: epsilon, v or x_0."""
        a = per_row(self.alphas_cumprod[times.cpu()].to(x_0.device), x_0)
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * noise
        if self.prediction_type == "epsilon":
            return x_t, noise
        if self.prediction_type == "v_prediction":
            return x_t, a.sqrt() * noise - (1 - a).sqrt() * x_0
        return x_t, x_0


def make_schedule(scheduler_config: Mapping[str, Any], num_inference_steps: int) -> DiffusionSchedule:
    """Return the grid of diffusers' own DDIMScheduler with any scheduler's configuration.

    Args:
        scheduler_config: a diffusers scheduler configuration (``pipe.scheduler.config``).
        num_inference_steps: T, from 1 to the number of training times.

    Raises:
        ValueError: T out of range, or a setting under which a step is not a Gaussian of fixed variance.
    """
    from diffusers import DDIMScheduler

    limit = int(scheduler_config.get("num_train_timesteps", 1000))
    steps = check_steps(num_inference_steps, limit)
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}.")
    check_thresholding(scheduler_config)
    scheduler = DDIMScheduler.from_config(dict(scheduler_config))
    if len(scheduler.alphas_cumprod) == limit:  # as many as trained_betas names
        scheduler.set_timesteps(steps)
    _check_grid(scheduler, limit, steps)
    return DiffusionSchedule(
        timesteps=scheduler.timesteps.long(),
        num_train_timesteps=len(scheduler.alphas_cumprod),
        alphas_cumprod=scheduler.alphas_cumprod.float(),
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        prediction_type=prediction_type,
        clip_range=float(scheduler.config.clip_sample_range) if scheduler.config.clip_sample else None,
        variance_type=scheduler_config.get("variance_type") or "fixed_small",  # DPM-Solver's own is None
    )


def check_thresholding(scheduler_config: Mapping[str, Any]) -> None:
    """Raise ValueError for dynamic thresholding."""
    if scheduler_config.get("thresholding", False):
        raise ValueError(
            "dynamic thresholding is not supported: it couples the dimensions of x_0. Set thresholding=False."
        )


def _check_grid(scheduler: Any, limit: int, steps: int) -> None:
    """Raise ValueError for a grid or a noise schedule whose steps are not Gaussians."""
    config, times, a = scheduler.config, scheduler.timesteps, scheduler.alphas_cumprod
    if len(a) != limit or not bool(((a >= 0) & (a <= 1)).all()):
        raise ValueError(
            f"the noise schedule must give each of the {limit} training times an a_t in [0, 1], got {len(a)} from "
            f"{float(a.max()):g} to {float(a.min()):g}. Check betas and trained_betas of the scheduler."
        )
    if len(times) != steps or int(times.max()) >= limit or not bool((times.diff() < 0).all()):
        raise ValueError(
            f"num_inference_steps={steps} with {config.timestep_spacing!r} spacing and steps_offset="
            f"{config.steps_offset} gives {len(times)} times, {int(times[0])} to {int(times[-1])}; expected {steps} "
            f"falling times below {limit}. Take fewer steps, or a divisor of {limit}."
        )
    if config.prediction_type == "epsilon" and bool((a[times] == 0).any()):
        raise ValueError(
            "epsilon prediction says nothing about x_0 at zero terminal SNR (rescale_betas_zero_snr); the model must "
            "predict v, or the grid must leave out the last training time (timestep_spacing='leading')."
        )


class DiffusionTransition(Transition):
    """A step whose mean is affine in the predicted x_0 and either epsilon or x_t."""

    schedule: DiffusionSchedule
    sqrt_a: Tensor
    sqrt_b: Tensor
    sqrt_a_p: Tensor

    def __init__(self, schedule: DiffusionSchedule, a_p: Tensor, std: Tensor) -> None:
        """Args: schedule; a_p, std: (T,), float64."""
        super().__init__(schedule, std)
        a_t = schedule.alphas_cumprod.double()[schedule.timesteps]
        self._buffer("sqrt_a", a_t.sqrt())
        self._buffer("sqrt_b", (1 - a_t).sqrt())
        self._buffer("sqrt_a_p", a_p.sqrt())

    def predict(self, model_output: Tensor, x_t: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted x_0 and epsilon, each (n, ...), float32 (x_0 clipped where the schedule says so).

        ``step`` is the step's index, int64, in a shape that broadcasts over ``x_t``.
        """
        output = model_output.float()
        sqrt_a, sqrt_b = self.sqrt_a[step], self.sqrt_b[step]
        if self.schedule.prediction_type == "epsilon":
            x_0, epsilon = (x_t - sqrt_b * output) / sqrt_a, output
        elif self.schedule.prediction_type == "v_prediction":
            x_0, epsilon = sqrt_a * x_t - sqrt_b * output, sqrt_a * output + sqrt_b * x_t
        else:
            x_0, epsilon = output, (x_t - sqrt_a * output) / sqrt_b
        if self.schedule.clip_range is not None:
            x_0 = x_0.clamp(-self.schedule.clip_range, self.schedule.clip_range)
        return x_0, epsilon

    def forward(self, model_output: Tensor, x_t: Tensor, step_index: Tensor) -> Gaussian:
        """Return p(x_{t-1} | x_t); see :meth:`Transition.forward`."""
        step = per_row(step_index, x_t)
        x_0, epsilon = self.predict(model_output, x_t, step)
        return Gaussian(self.mean(x_0, epsilon, x_t, step), self.std[step_index])

    def predicted_x_0(self, model_output: Tensor, x_t: Tensor, step_index: Tensor) -> Tensor:
        """Return the predicted x_0, clipped where the schedule says so; see :meth:`Transition.predicted_x_0`."""
        return self.predict(model_output, x_t, per_row(step_index, x_t))[0]

    @abstractmethod
    def mean(self, x_0: Tensor, epsilon: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        """Return the mean of x_{t-1}, (n, ...), float32; ``step`` as :meth:`predict`'s."""


class DDIM(DiffusionTransition):
    """Song et al. 2021, equations 12 and 16; eta 0 is deterministic, eta 1 as noisy as DDPM.

    ``s = eta sqrt((1 - a_p) / (1 - a_t) (1 - a_t / a_p))``, ``mean = sqrt(a_p) x_0 + sqrt(1 - a_p - s^2) epsilon``.
    As in diffusers the previous time is ``t - num_train_timesteps // T``, which on a linspace grid is not the next
    grid time, and after the last step ``a_p`` is ``final_alpha_cumprod``.
    """

    direction: Tensor

    def __init__(self, schedule: DiffusionSchedule, eta: float | Sequence[float] = 1.0) -> None:
        """Args: eta: in [0, 1], for all steps or for each. Raises ValueError otherwise."""
        steps = schedule.num_inference_steps
        levels = noise_levels(eta, steps, 1.0, "0: deterministic DDIM, 1: as noisy as DDPM")
        table = schedule.alphas_cumprod.double()
        previous = schedule.timesteps - schedule.num_train_timesteps // steps
        a_t = table[schedule.timesteps]
        a_p = torch.where(
            previous >= 0, table[previous.clamp(min=0)], torch.tensor(schedule.final_alpha_cumprod).double()
        )
        variance = ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).clamp(min=0)
        std = torch.tensor(levels, dtype=torch.float64) * variance.sqrt()
        super().__init__(schedule, a_p, std)
        self.prev_timesteps = previous
        self._buffer("direction", (1 - a_p - std**2).clamp(min=0).sqrt())

    def mean(self, x_0: Tensor, epsilon: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        """Return equation 12 without its noise term."""
        return self.sqrt_a_p[step] * x_0 + self.direction[step] * epsilon


class DDPM(DiffusionTransition):
    """Ho et al. 2020 (arXiv 2006.11239), equations 6 and 7: ancestral sampling on the grid's own neighbours.

    The last step goes to the clean image (``a_p = 1``): with ``fixed_small`` variance it is deterministic. A noise
    level below 1 scales the std, and the mean gets the noise that is missing from the predicted epsilon, as in DDIM.
    """

    x_0_coefficient: Tensor
    x_t_coefficient: Tensor

    def __init__(self, schedule: DiffusionSchedule, levels: Sequence[float] | None = None) -> None:
        """Raise ValueError for a learned variance, which is no fixed Gaussian, or levels that are not T in [0, 1]."""
        if schedule.variance_type not in ("fixed_small", "fixed_large"):
            raise ValueError(
                f"the DDPM sampler supports variance_type 'fixed_small' and 'fixed_large', got "
                f"{schedule.variance_type!r}; use the DDIM sampler, which ignores it."
            )
        times = schedule.timesteps
        a_t = schedule.alphas_cumprod.double()[times]
        a_p = torch.cat([a_t[1:], torch.ones(1, dtype=torch.float64)])
        beta_t = 1 - a_t / a_p
        posterior = (1 - a_p) / (1 - a_t) * beta_t
        variance = beta_t if schedule.variance_type == "fixed_large" else posterior
        std = torch.where(times > 0, variance.clamp(min=0).sqrt(), torch.zeros_like(variance))
        of_x_0, of_x_t = a_p.sqrt() * beta_t / (1 - a_t), (a_t / a_p).sqrt() * (1 - a_p) / (1 - a_t)
        if levels is not None:
            meaning = "0: deterministic, 1: DDPM's own noise"
            level = torch.tensor(noise_levels(levels, len(times), 1.0, meaning), dtype=torch.float64)
            scaled = ((1 - a_p - level**2 * posterior) / (1 - a_t)).clamp(min=0).sqrt()  # of x_t - sqrt(a_t) x_0
            of_x_t = torch.where(level == 1, of_x_t, scaled)
            of_x_0 = torch.where(level == 1, of_x_0, a_p.sqrt() - a_t.sqrt() * scaled)
            std = level * std
        super().__init__(schedule, a_p, std)
        self.prev_timesteps = torch.cat([times[1:], torch.tensor([-1])])
        self._buffer("x_0_coefficient", of_x_0)
        self._buffer("x_t_coefficient", of_x_t)

    def mean(self, x_0: Tensor, epsilon: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        """Return equation 7."""
        return self.x_0_coefficient[step] * x_0 + self.x_t_coefficient[step] * x_t

"""The transition p(x_{t-1} | x_t, c): model output -> mean, std -> sample, log_prob, kl.

A denoising step of a stochastic sampler is a Gaussian whose mean is an affine function of the model's output and
whose standard deviation is fixed by the noise schedule. One :class:`Gaussian` object both samples the next latents
and scores them, so the two can never disagree.

Notation follows Song et al. 2021 (DDIM, arXiv 2010.02502): ``a_t`` is the cumulative product of alphas
(``alphas_cumprod`` in diffusers), ``a_p`` the one at the previous (less noisy) time, ``s`` the standard deviation.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Reduction = Literal["mean", "sum"]
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Gaussian:
    """A batch of isotropic Gaussians over latents.

    Attributes:
        mean: (n, c, h, w), float32, scaled latent units.
        std: (n,), float32, scaled latent units; 0 marks a deterministic transition, which has no density.
    """

    mean: Tensor
    std: Tensor

    def sample(self, noise: Tensor) -> Tensor:
        """Return ``mean + std * noise``; noise: (n, c, h, w), standard normal."""
        return self.mean + _rows(self.std, self.mean) * noise

    def log_prob(self, latents: Tensor, reduction: Reduction = "sum") -> Tensor:
        """Log-density of ``latents``, (n,), float32.

        Args:
            latents: (n, c, h, w), float32; exactly the latents that are stored, not a value rounded from them.
            reduction: ``"sum"`` over the latent's D dimensions is the joint log-density; ``"mean"`` divides it by
                D, as the reference implementations of DDPO do.

        Raises:
            ValueError: a row has std 0 (see ``Transition.has_density``).
        """
        if bool((self.std == 0).any()):
            raise ValueError(
                "log_prob of a deterministic transition (std 0) does not exist; train only the steps where "
                "Transition.has_density is true, or sample with eta > 0."
            )
        std = _rows(self.std, self.mean)
        terms = -0.5 * ((latents - self.mean) / std) ** 2 - std.log() - 0.5 * math.log(2 * math.pi)
        flat = terms.flatten(1)
        return flat.sum(1) if reduction == "sum" else flat.mean(1)

    def kl(self, other: "Gaussian") -> Tensor:
        """KL(self || other) of two Gaussians with the same std, joint nats, (n,): ``|mu - mu'|^2 / (2 s^2)``.

        Raises:
            ValueError: a row has std 0.
        """
        if bool((self.std == 0).any()):
            raise ValueError("the KL of a deterministic transition (std 0) does not exist; leave out its step.")
        squared = (self.mean - other.mean).flatten(1).square().sum(1)
        return squared / (2 * self.std**2)


@dataclass(frozen=True)
class Schedule:
    """The grid of one sampling run of a discrete-time diffusion model, taken from its scheduler's configuration.

    Attributes:
        timesteps: (T,), int64, in sampling order, from noise to image.
        alphas_cumprod: (num_train_timesteps,), float32, ``a_t`` of every training time.
        final_alpha_cumprod: ``a`` after the last step, used where the previous time is negative (DDIM).
        prediction_type: what the network predicts: ``epsilon``, ``v_prediction`` or ``sample``.
        clip_range: bound on the predicted x_0 (``clip_sample_range``), or None where ``clip_sample`` is off.
        variance_type: DDPM's ``fixed_small`` or ``fixed_large``.
    """

    timesteps: Tensor
    alphas_cumprod: Tensor
    final_alpha_cumprod: float
    prediction_type: str
    clip_range: float | None
    variance_type: str

    @property
    def num_inference_steps(self) -> int:
        """T, the number of denoising steps."""
        return len(self.timesteps)

    @property
    def num_train_timesteps(self) -> int:
        """The number of times the model was trained on (1,000 for Stable Diffusion)."""
        return len(self.alphas_cumprod)

    def step_index(self, timesteps: Tensor) -> Tensor:
        """Map observed timesteps (n,) back to step indices (n,), int64; a time 0 after the end maps to T.

        Raises:
            ValueError: a value that is not on the grid.
        """
        grid = self.timesteps.to(timesteps.device)
        hits = timesteps.round().long()[:, None] == grid[None, :]
        index = torch.where(hits.any(1), hits.int().argmax(1), torch.full_like(hits.int().argmax(1), len(grid)))
        off = ~hits.any(1) & (timesteps != 0)
        if bool(off.any()):
            raise ValueError(
                f"timestep {timesteps[off][0].item()} is not on the grid {grid.tolist()}; the policy and the "
                "environment must use the same num_inference_steps and the same model."
            )
        return index


def make_schedule(scheduler_config: Mapping[str, Any], num_inference_steps: int) -> Schedule:
    """Build the grid with diffusers' own DDIMScheduler from any scheduler's configuration.

    Args:
        scheduler_config: a diffusers scheduler configuration (``pipe.scheduler.config``).
        num_inference_steps: T, from 1 to the number of training times.

    Raises:
        ValueError: T out of range, or a setting under which a step is not a Gaussian of fixed variance.
    """
    from diffusers import DDIMScheduler

    steps, limit = num_inference_steps, int(scheduler_config.get("num_train_timesteps", 1000))
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= limit:
        raise ValueError(f"num_inference_steps must be an integer from 1 to {limit}, got {steps!r}.")
    prediction_type = scheduler_config.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}.")
    if scheduler_config.get("thresholding", False):
        raise ValueError(
            "dynamic thresholding is not supported: it couples the dimensions of x_0. Set thresholding=False."
        )
    scheduler = DDIMScheduler.from_config(dict(scheduler_config))
    scheduler.set_timesteps(steps)
    if len(scheduler.timesteps) != steps:
        raise ValueError(
            f"{scheduler.config.timestep_spacing!r} spacing gives {len(scheduler.timesteps)} timesteps for "
            f"num_inference_steps={steps}; choose a divisor of {limit}."
        )
    if int(scheduler.timesteps.max()) >= limit:
        raise ValueError(
            f"num_inference_steps={steps} with steps_offset={scheduler.config.steps_offset} asks for the time "
            f"{int(scheduler.timesteps.max())}, beyond the last training time {limit - 1}; take fewer steps."
        )
    if prediction_type == "epsilon" and bool((scheduler.alphas_cumprod[scheduler.timesteps] == 0).any()):
        raise ValueError(
            "epsilon prediction says nothing of x_0 at zero terminal SNR (rescale_betas_zero_snr); the model must "
            "predict v, or the grid must leave out the last training time (timestep_spacing='leading')."
        )
    return Schedule(
        timesteps=scheduler.timesteps.long(),
        alphas_cumprod=scheduler.alphas_cumprod.float(),
        final_alpha_cumprod=float(scheduler.final_alpha_cumprod),
        prediction_type=prediction_type,
        clip_range=float(scheduler.config.clip_sample_range) if scheduler.config.clip_sample else None,
        variance_type=scheduler_config.get("variance_type", "fixed_small"),
    )


class Transition(nn.Module, ABC):
    """One family of Gaussian denoising steps on a schedule; call it to get the :class:`Gaussian` of x_{t-1}.

    Attributes:
        std: (T,), float32, the standard deviation of each step.
        timesteps: (T,), int64, the schedule's, beside the module's other numbers on its device.
        has_density: (T,), bool, where the std is positive; only those steps can be trained.
    """

    std: Tensor
    timesteps: Tensor
    sqrt_a: Tensor
    sqrt_b: Tensor
    sqrt_a_p: Tensor

    def __init__(self, schedule: Schedule, a_p: Tensor, std: Tensor) -> None:
        """Args: schedule; a_p, std: (T,), float64."""
        super().__init__()
        self.schedule = schedule
        a_t = schedule.alphas_cumprod.double()[schedule.timesteps]
        self._buffer("sqrt_a", a_t.sqrt())
        self._buffer("sqrt_b", (1 - a_t).sqrt())
        self._buffer("sqrt_a_p", a_p.sqrt())
        self._buffer("std", std)
        self.register_buffer("timesteps", schedule.timesteps, persistent=False)
        self.has_density = std > 0

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float(), persistent=False)

    def predict(self, model_output: Tensor, x_t: Tensor, step_index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the predicted x_0 and epsilon, each (n, c, h, w), float32 (x_0 clipped where the schedule says so)."""
        output = model_output.float()
        sqrt_a, sqrt_b = _rows(self.sqrt_a[step_index], x_t), _rows(self.sqrt_b[step_index], x_t)
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
        """Return p(x_{t-1} | x_t).

        Args:
            model_output: (n, c, h, w), any float dtype; the network's prediction, guidance applied.
            x_t: (n, c, h, w), float32.
            step_index: (n,), int64, from 0 (noisiest) to T - 1.
        """
        x_0, epsilon = self.predict(model_output, x_t, step_index)
        return Gaussian(self.mean(x_0, epsilon, x_t, step_index), self.std[step_index])

    @abstractmethod
    def mean(self, x_0: Tensor, epsilon: Tensor, x_t: Tensor, step_index: Tensor) -> Tensor:
        """Return the mean of x_{t-1}, (n, c, h, w), float32."""


class DDIM(Transition):
    """Song et al. 2021, equations 12 and 16; eta 0 is deterministic, eta 1 as noisy as DDPM.

    ``s = eta sqrt((1 - a_p) / (1 - a_t) (1 - a_t / a_p))``, ``mean = sqrt(a_p) x_0 + sqrt(1 - a_p - s^2) epsilon``.
    As in diffusers the previous time is ``t - num_train_timesteps // T``, which on a linspace grid is not the next
    grid time, and after the last step ``a_p`` is ``final_alpha_cumprod``.
    """

    direction: Tensor

    def __init__(self, schedule: Schedule, eta: float = 1.0) -> None:
        """Raise ValueError unless eta lies in [0, 1]."""
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must lie in [0, 1] (0: deterministic DDIM, 1: as noisy as DDPM), got {eta}.")
        table = schedule.alphas_cumprod.double()
        previous = schedule.timesteps - schedule.num_train_timesteps // schedule.num_inference_steps
        a_t = table[schedule.timesteps]
        a_p = torch.where(
            previous >= 0, table[previous.clamp(min=0)], torch.tensor(schedule.final_alpha_cumprod).double()
        )
        variance = ((1 - a_p) / (1 - a_t) * (1 - a_t / a_p)).clamp(min=0)
        std = eta * variance.sqrt()
        super().__init__(schedule, a_p, std)
        self.eta = eta
        self.prev_timesteps = previous
        self._buffer("direction", (1 - a_p - std**2).clamp(min=0).sqrt())

    def mean(self, x_0: Tensor, epsilon: Tensor, x_t: Tensor, step_index: Tensor) -> Tensor:
        """Equation 12 without its noise term."""
        return _rows(self.sqrt_a_p[step_index], x_0) * x_0 + _rows(self.direction[step_index], x_0) * epsilon


class DDPM(Transition):
    """Ho et al. 2020 (arXiv 2006.11239), equations 6 and 7: ancestral sampling on the grid's own neighbours.

    The last step goes to the clean image (``a_p = 1``): with ``fixed_small`` variance it is deterministic.
    """

    x_0_coefficient: Tensor
    x_t_coefficient: Tensor

    def __init__(self, schedule: Schedule) -> None:
        """Raise ValueError for a learned variance, which is no fixed Gaussian."""
        if schedule.variance_type not in ("fixed_small", "fixed_large"):
            raise ValueError(
                f"the DDPM sampler supports variance_type 'fixed_small' and 'fixed_large', got "
                f"{schedule.variance_type!r}; use the DDIM sampler, which ignores it."
            )
        times = schedule.timesteps
        a_t = schedule.alphas_cumprod.double()[times]
        a_p = torch.cat([a_t[1:], torch.ones(1, dtype=torch.float64)])
        beta_t = 1 - a_t / a_p
        variance = beta_t if schedule.variance_type == "fixed_large" else (1 - a_p) / (1 - a_t) * beta_t
        std = torch.where(times > 0, variance.clamp(min=0).sqrt(), torch.zeros_like(variance))
        super().__init__(schedule, a_p, std)
        self.prev_timesteps = torch.cat([times[1:], torch.tensor([-1])])
        self._buffer("x_0_coefficient", a_p.sqrt() * beta_t / (1 - a_t))
        self._buffer("x_t_coefficient", (a_t / a_p).sqrt() * (1 - a_p) / (1 - a_t))

    def mean(self, x_0: Tensor, epsilon: Tensor, x_t: Tensor, step_index: Tensor) -> Tensor:
        """Equation 7."""
        return _rows(self.x_0_coefficient[step_index], x_0) * x_0 + _rows(self.x_t_coefficient[step_index], x_0) * x_t


def make_transition(schedule: Schedule, sampler: Literal["ddim", "ddpm"], eta: float) -> Transition:
    """Return the transition named by ``sampler``; ``eta`` belongs to DDIM alone."""
    if sampler == "ddim":
        return DDIM(schedule, eta)
    if sampler == "ddpm":
        return DDPM(schedule)
    raise ValueError(f"unknown sampler {sampler!r}; expected 'ddim' or 'ddpm'.")


def _rows(values: Tensor, like: Tensor) -> Tensor:
    """Shape (n,) values so that they broadcast over the trailing dimensions of ``like``."""
    return values.reshape(-1, *([1] * (like.ndim - 1)))

"""The contract of schedules and transitions: the sampling grid, the forward process, and x_t -> Gaussian."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from diffusion_gym.transitions.gaussian import Gaussian


@dataclass(frozen=True)
class Schedule(ABC):
    """The grid of one sampling run, and the forward process that the model was trained on.

    Attributes:
        timesteps: (T,), what the denoiser sees at each step, from noise to image: int64 training times of a diffusion
            model, float32 ``t * num_train_timesteps`` of a flow model.
        num_train_timesteps: the scale of the times (1,000 for all published models).
    """

    timesteps: Tensor
    num_train_timesteps: int
    #: The kind of model, for messages.
    kind: ClassVar[str]
    #: Names of the samplers that fit, the default first.
    samplers: ClassVar[tuple[str, ...]]

    @property
    def num_inference_steps(self) -> int:
        """Return T, the number of denoising steps."""
        return len(self.timesteps)

    def step_index(self, timesteps: Tensor) -> Tensor:
        """Return the step indices (n,), int64, of observed timesteps (n,), float32.

        The time 0 after the end has the index T; on a grid that itself ends at the time 0 (leading spacing with
        steps_offset 0, or linspace) it is the last step's, T - 1.

        Raises:
            ValueError: a value that is not on the grid.
        """
        grid = self.timesteps.to(timesteps.device)
        observed = timesteps if grid.is_floating_point() else timesteps.round().long()
        hits = observed[:, None] == grid[None, :]
        index = torch.where(hits.any(1), hits.int().argmax(1), torch.full_like(hits.int().argmax(1), len(grid)))
        off = ~hits.any(1) & (timesteps != 0)
        if bool(off.any()):
            raise ValueError(
                f"timestep {timesteps[off][0].item()} is not on the grid {grid.tolist()}; the policy and the "
                "environment must use the same num_inference_steps and the same model."
            )
        return index

    @abstractmethod
    def draw_times(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw n training times, (n,), on the CPU, in the units and dtype that the denoiser sees."""

    @abstractmethod
    def noised(self, x_0: Tensor, noise: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return latents noised to training times, and the network's target there.

        Args:
            x_0: (m, ...), float32, clean latents.
            noise: (m, ...), standard normal.
            times: (m,), of :meth:`draw_times`.

        Returns:
            x_t and the target, each (m, ...), on the latents' device.
        """


class Transition(nn.Module, ABC):
    """One family of Gaussian denoising steps on a schedule; call it to get the :class:`Gaussian` of x_{t-1}.

    Attributes:
        std: (T,), float32, the standard deviation of each step.
        timesteps: (T,), the schedule's, beside the module's other numbers on its device.
        has_density: (T,), bool, where the std is positive; only those steps can be trained.
    """

    std: Tensor
    timesteps: Tensor

    def __init__(self, schedule: Schedule, std: Tensor) -> None:
        """Args: schedule; std: (T,), float64."""
        super().__init__()
        self.schedule = schedule
        self._buffer("std", std)
        self.register_buffer("timesteps", schedule.timesteps, persistent=False)
        self.has_density = std > 0

    def _buffer(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value.float(), persistent=False)

    @abstractmethod
    def forward(self, model_output: Tensor, x_t: Tensor, step_index: Tensor) -> Gaussian:
        """Return p(x_{t-1} | x_t).

        Args:
            model_output: (n, ...), any float dtype; the network's prediction, guidance applied.
            x_t: (n, ...), float32, latents with any number of axes.
            step_index: (n,), int64, from 0 (noisiest) to T - 1.
        """

    @abstractmethod
    def predicted_x_0(self, model_output: Tensor, x_t: Tensor, step_index: Tensor) -> Tensor:
        """Return the x_0 that the network predicts at x_t, (n, ...), float32; arguments as :meth:`forward`'s."""


def noise_levels(eta: float | Sequence[float], steps: int, highest: float, meaning: str) -> list[float]:
    """Return the noise level of each step.

    Args:
        eta: one level for all steps, or one for each.
        steps: T.
        highest: the largest level that the sampler takes; infinity only bounds it to finite numbers.
        meaning: what the levels mean, for the message.

    Raises:
        ValueError: a level out of range, or another number of levels than steps.
    """
    levels = list(eta) if isinstance(eta, Sequence) else [eta] * steps
    if len(levels) != steps:
        raise ValueError(
            f"eta has {len(levels)} noise levels for {steps} denoising steps, got {eta}; give one number for all of "
            f"them, or {steps}. A model may recommend levels that fit only its own number of steps."
        )
    if not all(0.0 <= level <= highest and math.isfinite(level) for level in levels):
        bounds = f"lie in [0, {highest:g}]" if math.isfinite(highest) else "be finite and at least 0"
        raise ValueError(
            f"eta must {bounds} ({meaning}), one number for all steps or one for each of the {steps}, got {eta}."
        )
    return levels


def check_steps(steps: object, limit: int) -> int:
    """Return the number of denoising steps.

    Raises:
        ValueError: no integer from 1 to ``limit``.
    """
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= limit:
        raise ValueError(f"num_inference_steps must be an integer from 1 to {limit}, got {steps!r}.")
    return steps

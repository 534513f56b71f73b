"""The configuration of evaluations with the sampler that a tuned model is used with, importable without torch."""

from dataclasses import dataclass
from typing import ClassVar

from algorithms.config.fields import check_fields
from diffusion_gym.choices import PIPELINE, SOLVERS


@dataclass(frozen=True)
class DeployedConfig:
    """How tuned models are used: evaluated beside the training sampler, on the same prompts and initial latents.

    Any setting turns it on. What is left out is as in training; without a scheduler eta is 0.
    """

    details: ClassVar[tuple[str, ...]] = (
        *("scheduler", "num_inference_steps", "guidance_scale", "eta", "every_evaluation"),
    )
    #: :func:`override` does not reach in here: a plain eta is the policy's.
    is_apart: ClassVar[bool] = True

    scheduler: str | None = None
    """A diffusers scheduler, such as DPMSolverMultistepScheduler; pipeline is the one that the model comes with."""
    num_inference_steps: int | None = None
    """Denoising steps per image; none is as in training."""
    guidance_scale: float | None = None
    """Classifier-free guidance; none is as in training."""
    eta: float | None = None
    """Noise of the training sampler, 0 if it is left out; a scheduler of diffusers has its own."""
    every_evaluation: bool = False
    """Evaluate so each time, not only before the first and after the last iteration."""

    def __post_init__(self) -> None:
        """Refuse unknown schedulers, impossible numbers, and settings that exclude each other."""
        check_fields(self)
        if self.scheduler is not None and self.scheduler not in (PIPELINE, *SOLVERS):
            raise ValueError(
                f"unknown scheduler {self.scheduler!r}; expected {PIPELINE!r}, the one that the model comes with, or "
                f"one of {', '.join(SOLVERS)}."
            )
        if self.scheduler is not None and self.eta is not None:
            raise ValueError(
                f"eta {self.eta:g} is the training sampler's noise, and {self.scheduler} has its own; leave one out."
            )
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {self.num_inference_steps}.")
        if self.every_evaluation and not self.is_on:
            raise ValueError("every_evaluation needs a deployed sampler; give its eta, for example 0, or a scheduler.")
        for name in ("eta", "guidance_scale"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")

    @property
    def is_on(self) -> bool:
        """Whether images are drawn so."""
        settings = (self.scheduler, self.num_inference_steps, self.guidance_scale, self.eta)
        return any(setting is not None for setting in settings)

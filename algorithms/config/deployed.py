"""The configuration of evaluations with the sampler that a tuned model is used with, importable without torch."""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import tyro

from algorithms.config.fields import check_fields
from diffusion_gym.choices import PIPELINE, SOLVERS


def option(metavar: str, default: str) -> Any:
    """Return the note on an option that may be left out: what its value is called, and what happens without it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


@dataclass(frozen=True)
class DeployedConfig:
    """How tuned models are used: evaluated beside the training sampler, on the same prompts and initial latents.

    Any setting turns it on. What is left out is as in training; without a scheduler eta is 0.
    """

    details: ClassVar[tuple[str, ...]] = ("scheduler", "num_inference_steps", "guidance_scale", "eta", "always")
    #: :func:`override` does not reach in here: a plain eta is the policy's.
    is_apart: ClassVar[bool] = True

    scheduler: Annotated[str | None, option("STR", "the training sampler")] = None
    """A diffusers scheduler, such as DPMSolverMultistepScheduler; pipeline is the one that the model comes with."""
    num_inference_steps: Annotated[int | None, option("INT", "as in training")] = None
    """Denoising steps per image."""
    guidance_scale: Annotated[float | None, option("FLOAT", "as in training")] = None
    """Classifier-free guidance; 1 or less is none."""
    eta: Annotated[float | None, option("FLOAT", "0")] = None
    """Noise of the training sampler; a scheduler of diffusers has its own."""
    always: bool = False
    """Evaluate so each time, not only before the first and after the last iteration."""

    def __post_init__(self) -> None:
        """Refuse unknown schedulers, impossible numbers, and settings that exclude each other."""
        check_fields(self, "deployed.")
        if self.scheduler is not None and self.scheduler not in (PIPELINE, *SOLVERS):
            raise ValueError(
                f"unknown deployed.scheduler {self.scheduler!r}; expected {PIPELINE!r}, the one that the model comes "
                f"with, or one of {', '.join(SOLVERS)}."
            )
        if self.scheduler is not None and self.eta is not None:
            raise ValueError(
                f"deployed.eta {self.eta:g} is the training sampler's noise, and deployed.scheduler {self.scheduler} "
                "has its own; leave one of them out."
            )
        if self.num_inference_steps is not None and self.num_inference_steps < 1:
            raise ValueError(f"deployed.num_inference_steps must be at least 1, got {self.num_inference_steps}.")
        if self.always and not self.is_on:
            raise ValueError(
                "deployed.always needs a deployed sampler; give deployed.eta, for example 0, or deployed.scheduler."
            )
        for name in ("eta", "guidance_scale"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"deployed.{name} must be at least 0, got {getattr(self, name)}.")

    @property
    def is_on(self) -> bool:
        """Whether images are drawn so."""
        settings = (self.scheduler, self.num_inference_steps, self.guidance_scale, self.eta)
        return any(setting is not None for setting in settings)

"""The transition p(x_{t-1} | x_t, c): model output -> mean, std -> sample, log_prob, kl.

A denoising step of a stochastic sampler is a Gaussian whose mean is an affine function of the model's output and
whose standard deviation is fixed by the noise schedule. One :class:`Gaussian` object both samples the next latents
and scores them, so the two can never disagree.
"""

from collections.abc import Callable, Sequence
from typing import Any

from diffusion_gym.choices import Reduction, Sampler
from diffusion_gym.transitions.base import Schedule, Transition
from diffusion_gym.transitions.consistency import LCM, ConsistencySchedule, make_consistency_schedule
from diffusion_gym.transitions.diffusion import (
    DDIM,
    DDPM,
    PREDICTION_TYPES,
    DiffusionSchedule,
    DiffusionTransition,
    make_schedule,
)
from diffusion_gym.transitions.flow import CPS, FlowSchedule, FlowSDE, FlowTransition, make_flow_schedule
from diffusion_gym.transitions.gaussian import Gaussian

__all__ = [
    "CPS",
    "DDIM",
    "DDPM",
    "LCM",
    "PREDICTION_TYPES",
    "ConsistencySchedule",
    "DiffusionSchedule",
    "DiffusionTransition",
    "FlowSDE",
    "FlowSchedule",
    "FlowTransition",
    "Gaussian",
    "Reduction",
    "Sampler",
    "Schedule",
    "Transition",
    "make_consistency_schedule",
    "make_flow_schedule",
    "make_schedule",
    "make_transition",
]

#: Sampler -> (a schedule that lists it, eta) -> transition.
_SAMPLERS: dict[str, Callable[[Any, float | Sequence[float]], Transition]] = {
    "ddim": DDIM,
    "ddpm": lambda schedule, eta: DDPM(schedule, eta if isinstance(eta, Sequence) else None),
    "flow-sde": FlowSDE,
    "cps": CPS,
    "lcm": LCM,
}


def make_transition(schedule: Schedule, sampler: Sampler, eta: float | Sequence[float]) -> Transition:
    """Return the transition named by ``sampler``.

    Args:
        schedule: the sampling grid of T steps.
        sampler: a name of ``schedule.samplers``; "auto" is the first of them.
        eta: the noise level, of all steps or of each of the T: a step of level 0 is deterministic and has no density.
            DDPM ignores one number, because its noise is the schedule's, and takes a level in [0, 1] for each step.

    Raises:
        ValueError: a sampler that does not fit the schedule, or an eta that it refuses.
    """
    name = schedule.samplers[0] if sampler == "auto" else sampler
    if name not in schedule.samplers:
        raise ValueError(
            f"sampler {sampler!r} does not fit this {schedule.kind} model; expected 'auto' or one of "
            f"{list(schedule.samplers)}."
        )
    return _SAMPLERS[name](schedule, eta)

"""The configuration of OPSD, apart from its class: reading it does not import torch."""

from dataclasses import dataclass, field
from typing import Any

from algorithms.config.base import AlgorithmConfig, PolicyConfig, divisor


@dataclass(frozen=True)
class OPSDConfig(AlgorithmConfig):
    """OPSD: predictions at visited states are drawn to targets along the reward's gradient."""

    updates_per_iteration: int = 1
    """Gradient updates per pass, each on its own share of the images."""
    passes: int = 2
    """Passes over an iteration's images, each from freshly drawn states; the targets stay those of the policy that
    sampled."""
    visited_steps: int = 3
    """The last denoising steps; a state is where one of them begins."""
    states_per_image: int = 1
    """States of an image in a pass, drawn from the last visited_steps, all different."""
    step_size: float = 0.1
    """h, the root mean square of a target's distance from the prediction, in units of the latent, whose entries have a
    std of about 1."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(eta=0.0))
    """Sampler and trained weights."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later, or would do nothing."""
        super().__post_init__()
        for name in ("updates_per_iteration", "passes", "visited_steps", "states_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.states_per_image > self.visited_steps:
            raise ValueError(
                f"states_per_image ({self.states_per_image}) must be at most visited_steps ({self.visited_steps}), the "
                "number of different states; set it lower, or visited_steps higher."
            )
        if self.step_size <= 0:
            raise ValueError(f"step_size must be positive, got {self.step_size}.")
        if self.images_per_iteration % self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration ({self.updates_per_iteration}) must divide images_per_iteration "
                f"({self.images_per_iteration}), so that each update has equally many images; "
                f"{divisor(self.images_per_iteration, self.updates_per_iteration)} would."
            )

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """One name, whatever changes."""
        return "opsd"

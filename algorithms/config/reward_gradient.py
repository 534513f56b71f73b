"""The configuration of reward gradients, apart from its class: reading it does not import torch."""

from dataclasses import dataclass, field
from typing import Any

from algorithms.config.base import AlgorithmConfig, PolicyConfig, divisor


@dataclass(frozen=True)
class RewardGradientConfig(AlgorithmConfig):
    """Reward gradients; the defaults are those of DRaFT-1."""

    updates_per_iteration: int = 1
    """Gradient updates per rollout, each on its own share of the images."""
    gradient_steps: int = 1
    """Number of last denoising steps through which the reward's gradient passes (K in DRaFT)."""
    random_steps: bool = False
    """Draw that number for each update, uniformly from 1 to gradient_steps (as AlignProp and ReFL)."""
    one_step: bool = False
    """Use only the first of these steps, and the x_0 that it predicts (as ReFL)."""
    draws_per_image: int = 0
    """How often each finished image is noised again, to where these steps begin (DRaFT-LV: 2); 0: as it was sampled."""
    policy: PolicyConfig = field(default_factory=lambda: PolicyConfig(eta=0.0))
    """Sampler and trained weights."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later, or would do nothing."""
        super().__post_init__()
        for name in ("updates_per_iteration", "gradient_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.draws_per_image < 0:
            raise ValueError(f"draws_per_image must be at least 0, got {self.draws_per_image}.")
        if self.images_per_iteration % self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration ({self.updates_per_iteration}) must divide images_per_iteration "
                f"({self.images_per_iteration}), so that each update has equally many images; "
                f"{divisor(self.images_per_iteration, self.updates_per_iteration)} would."
            )
        if self.random_steps and self.gradient_steps == 1:
            raise ValueError(
                "random_steps has no effect with gradient_steps 1; set gradient_steps to the largest number that may "
                "be drawn, or leave random_steps out."
            )

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """DRaFT-LV where images are noised again, ReFL where one step leads straight to x_0, else DRaFT."""
        if changes.get("draws_per_image", 0):
            return "draft-lv"
        return "refl" if changes.get("one_step", False) else "draft"

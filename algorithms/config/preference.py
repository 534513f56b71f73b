"""The configuration of online preference learning; reading it does not import torch."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from algorithms.config.base import AlgorithmConfig, Reduction, divisor


@dataclass(frozen=True)
class OnlinePreferenceConfig(AlgorithmConfig):
    """D3PO's loss on the policy's own images: the best of each group against the worst."""

    details: ClassVar[tuple[str, ...]] = ("advantages",)

    images_per_prompt: int = 8
    """Images in a row with the same prompt: a group, in which the best image is compared with the worst."""
    advantages: Literal["group", "gdpo"] = "group"
    """What ranks the images of a group: the reward, or gdpo, the sum of several rewards, each normalised by itself in
    the group."""
    updates_per_iteration: int = 1
    """Gradient updates per rollout, each on its own share of the groups."""
    beta: float = 0.1
    """How strongly the policy is held near the start: a step's gradient fades once log rho of best and worst differ by
    about 1 / beta nats."""
    log_prob_reduction: Reduction = "sum"
    """Over the latent's dimensions: the true "sum", so that beta means the same for every latent, or the "mean"."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        super().__post_init__()
        if self.images_per_prompt < 2:
            raise ValueError(
                "images_per_prompt must be at least 2, because the best and the worst image of a prompt are compared, "
                f"got {self.images_per_prompt}."
            )
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}.")
        if self.policy.chunk_size < 2:
            raise ValueError(
                f"chunk_size must be at least 2, because a pair is scored in one forward pass, got "
                f"{self.policy.chunk_size}."
            )
        groups = self.images_per_iteration // self.images_per_prompt
        if self.updates_per_iteration < 1 or groups % self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration ({self.updates_per_iteration}) must be at least 1 and divide the {groups} "
                f"groups of images_per_prompt ({self.images_per_prompt}) images in an iteration; "
                f"{divisor(groups, max(1, self.updates_per_iteration))} would."
            )

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """One name, whatever changes."""
        return "d3po"

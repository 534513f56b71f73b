"""The configurations of the algorithms in the registry, apart from their classes: reading them does not import torch.

An algorithm of your own may have its configuration in its own file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from algorithms.config.base import AlgorithmConfig, Reduction, divisor
from algorithms.config.fields import check_statistics

#: What a reward is compared with to make an advantage.
Baseline = Literal["running", "group", "leave-one-out", "gdpo"]
_MAX_CLIP_RANGE = 88  # e to this many nats is the largest ratio that a float32 holds


def check_several(reward: str, weights: Sequence[float]) -> None:
    """Raise ValueError where each term of a reward is to be normalised by itself, and it has fewer than two.

    Also where all ``weights``, one of each term, are 0.
    """
    if len(weights) < 2:
        raise ValueError(
            f"advantages 'gdpo' normalise each of several rewards by itself, but {reward!r} is a single one; combine "
            "two or more, for example 'aesthetic,clip_score:0.5', or set advantages to 'group'."
        )
    if not any(weights):
        raise ValueError(
            f"advantages 'gdpo' add several rewards by their weights, but those of {reward!r} are all 0, so nothing "
            "would be learned; give at least one of them another weight."
        )


@dataclass(frozen=True)
class AdvantageConfig(AlgorithmConfig):
    """What algorithms have in common that weight images by their advantages."""

    details: ClassVar[tuple[str, ...]] = (
        "advantage_scale",
        "advantage_clip",
        "statistics_buffer",
        "statistics_min_count",
    )

    advantages: Baseline = "running"
    """Baseline of the reward: each prompt's running mean and std (the paper), the prompt's images in this iteration
    (GRPO), or the prompt's other images in it (RLOO). gdpo: as group, for each of several rewards by itself."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """The std that divides group advantages: of the prompt's images, of all images, or none."""
    advantage_clip: float = 5.0
    """Advantages are clipped to plus or minus this."""
    statistics_buffer: int = 32
    """Latest rewards of a prompt that make its running mean and std."""
    statistics_min_count: int = 16
    """A prompt with fewer rewards so far uses the statistics of all prompts."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        super().__post_init__()
        if self.advantage_clip <= 0:
            raise ValueError(f"advantage_clip must be positive, got {self.advantage_clip}.")
        check_statistics(self.statistics_buffer, self.statistics_min_count)
        if self.advantages == "running" and self.advantage_scale != "group":
            raise ValueError(
                f"advantage_scale {self.advantage_scale!r} has no effect on running advantages, which divide by each "
                "prompt's running std; set advantages to 'group' or 'leave-one-out'."
            )
        if self.advantages == "gdpo" and self.advantage_scale != "group":
            raise ValueError(
                f"advantage_scale {self.advantage_scale!r} has no effect on advantages 'gdpo', which divide each "
                "reward by its std in the group, and their sum by its std over all images; leave it at 'group'."
            )
        if self.advantages != "running" and self.images_per_prompt < 2:
            raise ValueError(
                f"advantages {self.advantages!r} compare the images of one prompt in an iteration, but "
                f"images_per_prompt is {self.images_per_prompt}; set it to 2 or more, for example to 8."
            )


@dataclass(frozen=True)
class DDPOConfig(AdvantageConfig):
    """DDPO. With importance sampling several updates use one rollout; without, exactly one does."""

    details: ClassVar[tuple[str, ...]] = ("importance_sampling", "log_prob_reduction", "timestep_fraction")

    importance_sampling: bool = True
    """True: DDPO-IS (equation 4, with clipping). False: DDPO-SF (equation 3)."""
    updates_per_iteration: int = 4
    """Gradient updates per rollout, each on its own share of the images. DDPO-SF allows only 1."""
    clip_range: float = 1.64
    """Bound on the joint log-ratio of a step, in nats; 1.64 is the paper's 1e-4 times its 16,384 dimensions."""
    log_prob_reduction: Reduction = "mean"
    """Over the latent's dimensions: "mean", as in the reference implementations, or the true "sum"."""
    timestep_fraction: float = 1.0
    """Share of the denoising steps to train on, drawn anew for each chunk of images sampled together."""
    kl_penalty: float = 0.0
    """Cost of one nat of KL to the starting model, in stds of the reward; 0: none. One more forward per trained row."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        super().__post_init__()
        if not self.importance_sampling and self.updates_per_iteration != 1:
            raise ValueError(
                "DDPO-SF (importance_sampling=False) is on-policy: updates_per_iteration must be 1, got "
                f"{self.updates_per_iteration}. DDPO-IS takes several."
            )
        if self.updates_per_iteration < 1:
            raise ValueError(f"updates_per_iteration must be at least 1, got {self.updates_per_iteration}.")
        if self.images_per_iteration % self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration ({self.updates_per_iteration}) must divide images_per_iteration "
                f"({self.images_per_iteration}), so that each update has equally many images; "
                f"{divisor(self.images_per_iteration, self.updates_per_iteration)} would."
            )
        if not 0 < self.clip_range <= _MAX_CLIP_RANGE:
            raise ValueError(f"clip_range must lie in (0, {_MAX_CLIP_RANGE}], got {self.clip_range}.")
        if self.kl_penalty < 0:
            raise ValueError(f"kl_penalty must be at least 0, got {self.kl_penalty}.")
        if not 0 < self.timestep_fraction <= 1:
            raise ValueError(f"timestep_fraction must lie in (0, 1], got {self.timestep_fraction}.")

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """Return DDPO-SF without importance sampling."""
        return "ddpo-is" if changes.get("importance_sampling", True) else "ddpo-sf"


@dataclass(frozen=True)
class RWRConfig(AlgorithmConfig):
    """RWR. Each iteration is a data set of its own, with at least 16 images per prompt, or weights mean little."""

    details: ClassVar[tuple[str, ...]] = ("sparse", "standardise", "reencode_images", "cfg_training")

    images_per_iteration: int = 256
    """Images sampled and scored (reward queries) before each round of updates; 10000 in the paper."""
    images_per_prompt: int = 16
    """Images in a row with the same prompt, whose rewards are compared; with 1, only repeated prompts count."""
    sparse: bool = False
    """False: softmax weights. True: equal weights for the best images of each prompt, none for the others."""
    beta: float = 0.2
    """Temperature of the softmax over each prompt's rewards (1 / beta of the paper); smaller is greedier."""
    standardise: bool = True
    """Standardise each prompt's rewards before the softmax; False uses them as they are, as the paper's code does."""
    top_fraction: float = 0.1
    """Share of each prompt's images that the sparse form keeps, and any that tie with the lowest of them."""
    updates_per_iteration: int = 20
    """Gradient updates per iteration, with a fresh optimizer each time; 400 in the paper."""
    batch_size: int = 128
    """Noised images per update."""
    reencode_images: bool = False
    """Train on the VAE's encoding of the images, as the paper does, instead of on the sampled latents."""
    cfg_training: bool = True
    """Train the guided prediction, which samples; False trains the conditional one. The same without guidance."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        super().__post_init__()
        if self.beta <= 0:
            raise ValueError(f"beta must be positive, got {self.beta}.")
        if not 0 < self.top_fraction <= 1:
            raise ValueError(f"top_fraction must lie in (0, 1], got {self.top_fraction}.")
        if self.updates_per_iteration < 1 or self.batch_size < 1:
            raise ValueError(
                f"updates_per_iteration and batch_size must be at least 1, got {self.updates_per_iteration} and "
                f"{self.batch_size}."
            )

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """Return the sparse form's name where it is asked for."""
        return "sparse-rwr" if changes.get("sparse", False) else "rwr"


@dataclass(frozen=True)
class SB3PPOConfig(AlgorithmConfig):
    """Stable-Baselines3's PPO; the fields of its own have its names and defaults. Rewards are discounted by 1."""

    n_epochs: int = 10
    """Passes over an iteration's transitions."""
    batch_size: int = 64
    """Transitions per update, whose activations are in memory together; the last batch of a pass may be smaller."""
    clip_range: float = 0.2
    """Bound on the joint ratio of a step, which is clipped to 1 plus or minus this."""
    gae_lambda: float = 0.95
    """Generalised advantage estimation: 1 uses the image's reward minus the value, 0 the next step's value."""
    vf_coef: float = 0.5
    """Weight of the value function's squared error in the loss."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later."""
        super().__post_init__()
        if self.n_epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"n_epochs must be at least 1 and batch_size at least 2, got {self.n_epochs} and {self.batch_size}."
            )
        if self.clip_range <= 0 or self.vf_coef < 0:
            raise ValueError(
                f"clip_range must be positive and vf_coef at least 0, got {self.clip_range} and {self.vf_coef}."
            )
        if not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gae_lambda must lie in [0, 1], got {self.gae_lambda}.")

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """One name, whatever changes."""
        return "sb3-ppo"

"""The configurations of the algorithms in the registry, apart from their classes: reading them does not import torch.

An algorithm of your own may have its configuration in its own file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import tyro

from algorithms.config.base import AlgorithmConfig, Reduction, divisor, override
from algorithms.config.fields import check_range, check_statistics

_MAX_CLIP_RANGE = 700  # e to this many nats is the largest ratio that a float64 holds
F = TypeVar("F", bound="ForwardProcessConfig")


@dataclass(frozen=True)
class AdvantageConfig(AlgorithmConfig):
    """What algorithms have in common that weigh images by their advantages."""

    advantages: Literal["running", "group", "leave-one-out"] = "running"
    """Baseline of the reward: each prompt's running mean and std (the paper), or this iteration's images of the prompt
    (as GRPO), or the prompt's other images in it (as RLOO)."""
    advantage_scale: Literal["group", "batch", "none"] = "group"
    """The std that divides advantages in groups: of the prompt's images, of all images, or none."""
    advantage_clip: float = 5.0
    """Advantages are clipped to plus and minus this."""
    statistics_buffer: int = 32
    """Rewards remembered for each prompt's running mean and std."""
    statistics_min_count: int = 16
    """Below this many remembered rewards a prompt uses the statistics of all prompts."""

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
        if self.advantages != "running" and self.images_per_prompt < 2:
            raise ValueError(
                f"advantages {self.advantages!r} compare the images of one prompt in an iteration, but "
                f"images_per_prompt is {self.images_per_prompt}; set it to 2 or more, for example to 8."
            )


@dataclass(frozen=True)
class DDPOConfig(AdvantageConfig):
    """DDPO. With importance sampling several updates use one rollout; without, exactly one does."""

    importance_sampling: bool = True
    """True: DDPO-IS, equation 4 with clipping. False: DDPO-SF, equation 3."""
    updates_per_iteration: int = 4
    """Gradient updates per rollout, each on its own share of the images. DDPO-SF allows only 1."""
    clip_range: float = 1.64
    """Bound on the joint log-ratio of a step, in nats; 1.64 is the paper's 1e-4 times its 16,384 dimensions."""
    log_prob_reduction: Reduction = "mean"
    """"mean" over the latent's dimensions, as in the reference implementations, or the true "sum"."""
    timestep_fraction: float = 1.0
    """Share of the denoising steps that is trained on, drawn anew for each chunk of images sampled together."""
    kl_penalty: float = 0.0
    """What one nat of KL to the start costs, in stds of the reward; 0: none. Takes one more forward per trained row."""

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
        """DDPO-SF without importance sampling."""
        return "ddpo-is" if changes.get("importance_sampling", True) else "ddpo-sf"


#: The published recipes, by their names, as fields of :class:`ForwardProcessConfig` that differ from its defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "awm": {},
    "nft": {
        "surrogate": "linear",
        "anchor_start": 1e-4,
        "old_decay": 0.5,
        "sample_old": True,
        "time_weight": "x_0",
    },
    "epg": {"clip_range": 0.0, "anchor_old": 0.0, "anchor_start": 1e-4, "old_decay": 0.5, "sample_old": True},
    "ram": {"surrogate": "linear", "anchor_old": 0.0, "anchor_start": 1.0, "old_decay": 0.0},
}


@dataclass(frozen=True)
class ForwardProcessConfig(AdvantageConfig):
    """The forward-process family; the defaults are AWM's, those of the others are in :data:`PRESETS`."""

    images_per_prompt: int = 8
    """Images in a row with the same prompt, whose rewards are compared."""
    advantages: Literal["running", "group", "leave-one-out"] = "group"
    """Baseline of the reward: each prompt's running mean and std, or this iteration's images of the prompt (as GRPO),
    or the prompt's other images in it (as RLOO)."""
    updates_per_iteration: int = 1
    """Gradient updates per pass, each on its own share of the prompts' groups of images."""
    passes: int = 1
    """Passes over an iteration's images, each with fresh times and noise."""
    draws_per_image: int = 2
    """Times and noises of an image in a pass; each costs a forward and a backward pass."""
    time_range: Annotated[tuple[float, float], tyro.conf.arg(metavar="LOW HIGH")] = (0.0, 1.0)
    """Which of the sampler's times are trained, as shares of the training time: 1 is noise, 0 an image."""
    time_weight: Literal["output", "x_0", "min-snr"] = "output"
    """Weight of a time: errors of the model's own output, or of its x_0 divided by their mean size (as NFT), or of its
    x_0 times min(SNR, 5)."""
    paired_noise: bool = False
    """Images of one prompt in a row share times and noises, so that the common noise cancels in their comparison."""
    surrogate: Literal["ratio", "regression", "linear"] = "ratio"
    """What an advantage multiplies: the ratio of e to minus the new and old errors (AWM, EPG), the error itself, or its
    linear part at the old policy (NFT, RAM)."""
    clip_range: float = 1.0
    """The ratio is kept between 1 minus and 1 plus this; 0: not clipped. For surrogate "ratio"."""
    anchor_old: float = 5.0
    """Weight of the squared distance of the output from the old policy's; 5 is 1 where advantages are divided by 5."""
    anchor_start: float = 0.015
    """Weight of the squared distance of the output from the starting model's, in the advantages' units; 0: none."""
    anchor_everywhere: bool = False
    """Both anchors hold at times of their own, uniform in training time, so that what time_range leaves out does not
    drift; takes as many forwards again."""
    old_decay: float = 0.3
    """The old policy is a moving average with at most this decay, updated each iteration; 0: the weights that began the
    iteration."""
    old_warmup: float = 0.001
    """The decay begins at 0 and rises by this each iteration."""
    sample_old: bool = False
    """Sample with the old policy (as NFT); False samples with the weights in training."""
    cfg_training: bool = True
    """Train the guided prediction, which samples; False trains the conditional one alone. The same without guidance."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later, or would do nothing."""
        super().__post_init__()
        for name in ("updates_per_iteration", "passes", "draws_per_image"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        for name in ("clip_range", "anchor_old", "anchor_start", "old_warmup"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}.")
        if not 0 <= self.old_decay < 1:
            raise ValueError(f"old_decay must lie in [0, 1), got {self.old_decay}.")
        check_range("time_range", self.time_range)
        groups = self.images_per_iteration // self.images_per_prompt
        if groups % self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration ({self.updates_per_iteration}) must divide the {groups} groups of "
                f"images_per_prompt ({self.images_per_prompt}) images in an iteration, so that each update has equally "
                f"many; {divisor(groups, self.updates_per_iteration)} would."
            )
        self._check_use()

    def _check_use(self) -> None:
        """Raise ValueError for settings that would do nothing together."""
        if self.anchor_everywhere and self.anchor_start == 0 and self.anchor_old == 0:
            raise ValueError("anchor_everywhere needs an anchor_old or an anchor_start above 0, for example 1.")
        if self.paired_noise and self.images_per_prompt < 2:
            raise ValueError("paired_noise pairs the images of one prompt; set images_per_prompt to 2 or more.")
        if self.anchor_old > 0 and not self.has_old:
            raise ValueError(
                f"anchor_old ({self.anchor_old}) has no effect: with one update per iteration and old_decay 0 the old "
                "policy is the present one. Set anchor_old to 0, or old_decay to 0.3, for example."
            )
        if self.old_decay > 0 and not (self.compares or self.sample_old):
            raise ValueError(
                "the moving average of old_decay is not used: surrogate 'regression' without anchor_old compares with "
                "no old policy, and sample_old is off. Set old_decay to 0, or anchor_old above 0."
            )
        if self.old_decay == 0 and self.sample_old:
            raise ValueError("sample_old has no effect with old_decay 0, which samples with the present weights.")

    @property
    def compares_output(self) -> bool:
        """Whether the surrogate has the old policy's output in it."""
        return self.surrogate != "regression"

    @property
    def compares(self) -> bool:
        """Whether the loss has the old policy's output in it."""
        return self.compares_output or self.anchor_old > 0

    @property
    def has_old(self) -> bool:
        """Whether the old policy ever differs from the present one in an update."""
        return self.old_decay > 0 or self.passes * self.updates_per_iteration > 1

    @classmethod
    def preset(cls: type[F], name: str, **changes: Any) -> F:
        """Return a published recipe, "awm", "nft", "epg" or "ram", with changes.

        Raises:
            TypeError: an unknown field.
            ValueError: an unknown name, or a refused value.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}; expected one of {sorted(PRESETS)}.")
        return override(cls(**PRESETS[name]), **changes)

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """NFT where the surrogate is linear."""
        return "nft" if changes.get("surrogate") == "linear" else "awm"


@dataclass(frozen=True)
class RWRConfig(AlgorithmConfig):
    """RWR. Each iteration is a data set of its own, with at least 16 images per prompt, or weights mean little."""

    images_per_iteration: int = 256
    """Images sampled, and reward queries made, before each round of updates; the paper has 10000."""
    images_per_prompt: int = 16
    """Images in a row with the same prompt, among which rewards decide; with 1, only prompts that come again count."""
    sparse: bool = False
    """False: softmax weights. True: the best images of each prompt weigh the same, the others nothing."""
    beta: float = 0.2
    """Temperature of the softmax over each prompt's rewards, the paper's beta's reciprocal; smaller is greedier."""
    standardise: bool = True
    """Standardise each prompt's rewards before the softmax; False takes them as they are, as the paper's code does."""
    top_fraction: float = 0.1
    """Share of each prompt's images that the sparse form keeps, and those that tie with the least of them."""
    updates_per_iteration: int = 20
    """Gradient updates a data set, with a fresh optimizer each time (400 in the paper)."""
    batch_size: int = 128
    """Noised images per update."""
    reencode_images: bool = False
    """Train on the VAE's encoding of the images, as the paper does, instead of the latents that were sampled."""
    cfg_training: bool = True
    """Fit the guided prediction, which samples; False fits the conditional one alone. The same without guidance."""

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
    """Transitions per update, whose activations are all held at once; a pass's last minibatch may be smaller."""
    clip_range: float = 0.2
    """Bound on the joint ratio of a step: it is kept between 1 minus and 1 plus this."""
    gae_lambda: float = 0.95
    """Generalised advantage estimation: 1 takes the image's reward less the value, 0 the next step's value."""
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

"""The configuration of the forward-process family, apart from its class: reading it does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

import tyro

from algorithms.config.algorithms import AdvantageConfig
from algorithms.config.base import divisor, override
from algorithms.config.fields import check_range

F = TypeVar("F", bound="ForwardProcessConfig")

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
        if self.surrogate != "ratio" and self.clip_range != 1.0:
            raise ValueError(
                f"clip_range ({self.clip_range}) has no effect on surrogate {self.surrogate!r}, which has no ratio; "
                "leave it at 1, or set surrogate to 'ratio'."
            )
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

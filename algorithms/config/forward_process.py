"""The configuration of the forward-process family, apart from its class: reading it does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from algorithms.config.algorithms import AdvantageConfig, Baseline
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

    details: ClassVar[tuple[str, ...]] = (
        *("advantages", "passes", "time_range", "time_weight", "paired_noise", "surrogate", "clip_range"),
        *("anchor_everywhere", "old_decay", "old_warmup", "sample_old", "cfg_training"),
    )

    images_per_prompt: int = 8
    """Images in a row with the same prompt, whose rewards are compared."""
    advantages: Baseline = "group"
    """Baseline of the reward: each prompt's running mean and std, the prompt's images in this iteration (GRPO), or the
    prompt's other images in it (RLOO). gdpo: as group, for each of several rewards by itself."""
    updates_per_iteration: int = 1
    """Gradient updates per pass, each on its own share of the prompts' groups of images."""
    passes: int = 1
    """Passes over an iteration's images, each with fresh times and noise."""
    draws_per_image: int = 2
    """Times and noises drawn per image and pass; each costs a forward and a backward pass."""
    time_range: Annotated[tuple[float, float], tyro.conf.arg(metavar="LOW HIGH")] = (0.0, 1.0)
    """The sampler's times to train on, as shares of the training time: 1 is noise, 0 an image."""
    time_weight: Literal["output", "x_0", "min-snr"] = "output"
    """Error that is trained: of the model's own output, of its x_0 divided by the mean error (NFT), or of its x_0 times
    min(SNR, 5)."""
    paired_noise: bool = False
    """Images in a row with one prompt share times and noises, so that common noise cancels when they are compared."""
    surrogate: Literal["ratio", "regression", "linear"] = "ratio"
    """What an advantage multiplies: the ratio exp(old error - new error) (AWM, EPG), the error itself, or its linear
    part at the old policy (NFT, RAM)."""
    clip_range: float = 1.0
    """For surrogate "ratio": the ratio is clipped to 1 plus or minus this; 0: not clipped."""
    anchor_old: float = 5.0
    """Weight of the squared distance to the old policy's output; 5 is 1 where advantages are divided by 5."""
    anchor_start: float = 0.015
    """Weight of the squared distance to the starting model's output, in the units of the advantages; 0: none."""
    anchor_everywhere: bool = False
    """Apply both anchors at separate times, uniform in training time, so that times outside time_range do not drift;
    doubles the forward passes."""
    old_decay: float = 0.3
    """The old policy is a moving average of the weights with at most this decay, updated each iteration; 0: the weights
    at the start of the iteration."""
    old_warmup: float = 0.001
    """The decay starts at 0 and rises by this each iteration."""
    sample_old: bool = False
    """Sample with the old policy (as NFT) instead of the weights in training."""
    cfg_training: bool = True
    """Train the guided prediction, which samples; False trains the conditional one. The same without guidance."""

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

"""The configuration of GRPO and its relatives, apart from their class: reading it does not import torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import tyro

from algorithms.config.algorithms import Baseline, DDPOConfig
from algorithms.config.base import override
from algorithms.config.fields import check_range

G = TypeVar("G", bound="GRPOConfig")

#: The published recipes, by their names, as fields of :class:`GRPOConfig`, and of its policy, that differ from their
#: defaults.
GRPO_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "grpo": {},
    "grpo-fast": {"window": 2, "window_range": (0.0, 0.5), "eta": 0.0},
    "mixgrpo": {"window": 4, "window_place": "sliding", "window_every": 25, "eta": 0.0},
    "flow-dppo": {"proximal": "mask"},
    "branched": {"window": 1, "branched": True, "step_weight": "equal", "eta": 0.0},
}


@dataclass(frozen=True)
class GRPOConfig(DDPOConfig):
    """GRPO: DDPO-IS with advantages in groups; the steps that are trained may be few, and groups may branch there."""

    details: ClassVar[tuple[str, ...]] = (
        *("advantages", "window_eta", "window_place", "window_range", "window_every", "window_stride", "branched"),
        *("antithetic", "step_weight", "proximal", "mask_kl", "centred_ratio"),
    )

    images_per_prompt: int = 8
    """Images in a row with the same prompt: a group, whose rewards are compared."""
    advantages: Baseline = "group"
    """Baseline of the reward: each prompt's running mean and std, the prompt's images in this iteration (GRPO), or the
    prompt's other images in it (RLOO). gdpo: as group, for each of several rewards by itself."""
    updates_per_iteration: int = 2
    """Gradient updates per rollout, each on its own share of the groups."""
    window: int = 0
    """Steps with noise of their own, the only ones that are trained, the same for a group; 0: all steps with noise."""
    window_eta: float = 1.0
    """Noise of the steps in the window. The others have policy.eta, which is 0 in Flow-GRPO-Fast and MixGRPO."""
    window_place: Literal["random", "sliding"] = "random"
    """A random window for each group and iteration, or one window for all that slides from noise to image."""
    window_range: Annotated[tuple[float, float], tyro.conf.arg(metavar="LOW HIGH")] = (0.0, 1.0)
    """Steps that a window may contain, as shares of the steps that can have noise; 0 is the noisiest."""
    window_every: int = 1
    """Iterations between moves of a sliding window."""
    window_stride: int = 1
    """Steps by which a sliding window moves; after the last place it starts over."""
    branched: bool = False
    """A group shares its first latents and all noise but the window's; until the window it is denoised once."""
    antithetic: bool = False
    """Pairs of images in a row get opposite noise in the window."""
    step_weight: Literal["likelihood", "equal"] = "likelihood"
    """Weight of a step: from its likelihood, where late steps count most, or equal in the model's output."""
    proximal: Literal["clip", "mask"] = "clip"
    """How an update is bounded: by PPO's clip_range, or by leaving out rows beyond mask_kl (Flow-DPPO)."""
    mask_kl: float = 0.65
    """For proximal "mask": KL to the sampling policy above which a row may be left out, in joint nats. The default is
    the paper's 1e-5 times its 65,536 dimensions."""
    centred_ratio: bool = False
    """GRPO-Guard's ratio: log-ratios minus their mean, times the step's std; clipping then treats all steps alike."""

    def __post_init__(self) -> None:
        """Refuse values that could only fail later, or would do nothing."""
        if not self.importance_sampling:
            raise ValueError("GRPO takes importance ratios; for the score function take DDPO with advantages='group'.")
        super().__post_init__()
        for name in ("window_every", "window_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.window < 0 or self.mask_kl <= 0:
            raise ValueError(f"window must be at least 0 and mask_kl positive, got {self.window} and {self.mask_kl}.")
        if not 0 < self.window_eta <= (math.inf if self.policy.sampler == "flow-sde" else 1):
            raise ValueError(
                f"window_eta must lie in (0, 1], got {self.window_eta}; only sampler 'flow-sde' may take more."
            )
        check_range("window_range", self.window_range)
        self._check_use()

    def _check_use(self) -> None:
        """Raise ValueError for settings that would do nothing, or contradict each other."""
        if self.window and self.timestep_fraction < 1:
            raise ValueError("a window says which steps are trained; leave timestep_fraction at 1, or set window to 0.")
        self._check_unused("window_", not self.window, "needs a window; set window to 1 or more")
        self._check_unused("branched", not self.window, "needs a window; set window to 1 or more")
        alone = self.images_per_prompt == 1
        self._check_unused("branched", alone, "needs groups; set images_per_prompt to 2 or more, for example to 8")
        if self.window and self.policy.sampler == "ddpm" and self.policy.eta not in (1.0, self.policy.noise_levels):
            raise ValueError(
                f"sampler 'ddpm' would give every step outside the window its own noise, whatever the one eta, got "
                f"{self.policy.eta}; take sampler 'ddim', or give an eta for each step."
            )
        for name in ("window_every", "window_stride"):
            self._check_unused(
                name, self.window_place == "random", "moves a sliding window; set window_place to 'sliding'"
            )
        self._check_unused("mask_kl", self.proximal == "clip", "bounds the mask; set proximal to 'mask'")
        self._check_unused("clip_range", self.proximal == "mask", "is PPO's; set proximal to 'clip'")
        groups = self.images_per_iteration // self.images_per_prompt
        if groups % self.updates_per_iteration:
            raise ValueError(
                f"updates_per_iteration ({self.updates_per_iteration}) must divide the {groups} groups of "
                f"images_per_prompt ({self.images_per_prompt}) images in an iteration, which stay whole; set it to 1, "
                "or images_per_iteration higher."
            )
        if self.antithetic and self.images_per_prompt % 2:
            raise ValueError(
                f"antithetic pairs need an even number of images_per_prompt, got {self.images_per_prompt}; 8 is usual."
            )

    def _check_unused(self, start: str, unused: bool, why: str) -> None:
        """Raise ValueError if a field whose name begins so is not used, and is not the default."""
        for field in fields(GRPOConfig):
            value = getattr(self, field.name)
            if unused and field.name.startswith(start) and value != field.default:
                raise ValueError(f"{field.name} ({value!r}) has no effect: it {why}.")

    @classmethod
    def preset(cls: type[G], name: str, **changes: Any) -> G:
        """Return a recipe, "grpo", "grpo-fast", "mixgrpo", "flow-dppo" or "branched", with changes.

        Raises:
            TypeError: an unknown field.
            ValueError: an unknown name, or a refused value.
        """
        if name not in GRPO_PRESETS:
            raise ValueError(f"unknown preset {name!r}; expected one of {sorted(GRPO_PRESETS)}.")
        return override(override(cls(), **GRPO_PRESETS[name]), **changes)

    @classmethod
    def variant(cls, **changes: Any) -> str:
        """Return the preset's name that the changes come nearest to."""
        if changes.get("branched", False):
            return "branched"
        if changes.get("window", 0):
            return "mixgrpo" if changes.get("window_place") == "sliding" else "grpo-fast"
        return "flow-dppo" if changes.get("proximal") == "mask" else "grpo"

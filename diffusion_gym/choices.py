"""Choices of a model and its sampler, without torch, so that the command line answers at once."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from diffusion_gym.naming import did_you_mean

DEFAULT_MODEL = "emoji-animals"
EMOJI_WORLD = "emoji-world"
ASSETS = Path(__file__).parent / "assets"
#: Models that ship with the package: their names resolve to folders, and nothing else knows them.
EMBEDDED = (DEFAULT_MODEL, EMOJI_WORLD)
EXACT_MODELS = ("exact-gaussian", "exact-mixture", "exact-flow-gaussian", "exact-flow-mixture")
#: Precision of a model's frozen networks.
ModelDtype = Literal["float32", "bfloat16", "float16"]
#: What of a model is trained.
Trained = Literal["denoiser", "text_encoder", "both"]
Sampler = Literal["auto", "ddim", "ddpm", "flow-sde", "cps"]
#: How log-probabilities are put together over a latent's dimensions.
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021) through peft."""

    rank: int = 4
    """Rank of the adapters; 4 is usual for Stable Diffusion."""
    alpha: float = 4.0
    """Adapters are scaled by alpha / rank; a doubled alpha doubles the effective learning rate."""
    targets: tuple[str, ...] = ("attention",)
    """Adapted layers: "attention" (usual), "all" (other layers too), or endings of layer names (to_q to_v)."""

    def __post_init__(self) -> None:
        """Refuse sizes that peft would fail on later."""
        if self.rank < 1 or not 0 < self.alpha < math.inf or not self.targets:
            raise ValueError(f"LoRA needs rank >= 1, alpha > 0 and at least one target, got {self}.")
        for target in self.targets:
            if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", target):
                raise ValueError(
                    f"the LoRA target {target!r} is not a layer's name: expected 'attention', 'all', or endings of "
                    "layers' names, each by itself (to_q to_k to_v), without commas or regular expressions."
                )

    def layers(self, groups: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """Return the suffixes of the adapted layers, with a family's groups of layers written out."""
        return tuple(dict.fromkeys(layer for name in self.targets for layer in groups.get(name, (name,))))


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How a diffusers pipeline is loaded, beside its device and the dtype of its networks."""

    details: ClassVar[tuple[str, ...]] = ("vae_tiling", "height", "width")

    vae_tiling: bool = False
    """Decode images larger than the VAE's tiles (usually 512 pixels) in overlapping tiles, to save memory."""
    height: int | None = None
    """Height of the images in pixels; without it that of the model's configuration."""
    width: int | None = None
    """Width of the images in pixels; without it that of the model's configuration."""

    def __post_init__(self) -> None:
        """Refuse what no model takes."""
        if not isinstance(self.vae_tiling, bool):
            raise TypeError(f"vae_tiling must be True or False, got {self.vae_tiling!r}.")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive number of pixels, or left out, got {value!r}.")

    @classmethod
    def of(cls, **given: Any) -> "ModelSettings":
        """Return the settings of keyword arguments. Raises TypeError for a name that is no setting."""
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise TypeError(
                    f"unexpected keyword argument {name!r}; a model's settings are {known}.{did_you_mean(name, known)}"
                )
        return cls(**given)

    @classmethod
    def among(cls, options: "ModelSettings") -> "ModelSettings":
        """Return the settings that options of a subclass hold."""
        return cls(**{field.name: getattr(options, field.name) for field in fields(cls)})

    @property
    def given(self) -> dict[str, Any]:
        """Return name -> value of the settings that are not at their defaults."""
        return {field.name: value for field in fields(self) if (value := getattr(self, field.name)) != field.default}


def folder_of(name: str) -> str:
    """Return the folder or hub id that a model's name leads to."""
    return str(ASSETS / name) if name in EMBEDDED else name


def pipeline_class(index: Path) -> str:
    """Return the class that a ``model_index.json`` names. Raises ValueError for a file that is not such an index."""
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a diffusers model index: {error}.") from error

"""Choices of a model and its sampler, without torch, so that the command line answers at once."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from diffusion_gym.naming import did_you_mean
from diffusion_gym.paths import user_path

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
#: How the names of single-file checkpoints end.
CHECKPOINTS = (".safetensors", ".ckpt")
#: Of a safetensors file, as safetensors itself has it.
_LARGEST_HEADER = 100_000_000
#: What is made of a LoRA that training starts from.
StartMode = Literal["merge", "train"]
Sampler = Literal["auto", "ddim", "ddpm", "flow-sde", "cps", "lcm"]
#: The name of the scheduler that a model comes with, where a solver is chosen.
PIPELINE = "pipeline"
#: Solvers of diffusers that can draw the images of an evaluation, on the model's own noise schedule. DPMSolverSDE is
#: left out: its noise does not come from a generator per image.
SOLVERS = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
    "UniPCMultistepScheduler",
)
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
            raise ValueError(
                "expected lora.rank >= 1, lora.alpha > 0 and at least one of lora.targets, got "
                f"{self.rank}, {self.alpha:g} and {self.targets}."
            )
        for target in self.targets:
            if not re.fullmatch(r"[\w-]+(\.[\w-]+)*", target):
                raise ValueError(
                    f"the LoRA target {target!r} is not a layer's name: expected 'attention', 'all', or endings of "
                    "layers' names, each by itself (to_q to_k to_v), without commas or regular expressions."
                )

    def layers(self, groups: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
        """Return the suffixes of the adapted layers, with a family's groups of layers written out."""
        return tuple(dict.fromkeys(layer for name in self.targets for layer in groups.get(name, (name,))))


#: Settings of models that are text: what they name.
_TEXTS = {
    "start_from": "a LoRA's file, folder or hub id",
    "scheduler": "a class of diffusers or a folder",
    "model_variant": "as fp16",
    "model_config": "a folder",
}


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """How a diffusers pipeline is loaded, beside its device and the dtype of its networks."""

    details: ClassVar[tuple[str, ...]] = (
        *("vae_tiling", "height", "width"),
        *("start_from", "start_from_mode", "scheduler", "model_variant", "model_config"),
    )

    vae_tiling: bool = False
    """Decode images larger than the VAE's tiles (usually 512 pixels) in overlapping tiles, to save memory."""
    height: int | None = None
    """Height of the images in pixels; without it that of the model's configuration."""
    width: int | None = None
    """Width of the images in pixels; without it that of the model's configuration."""
    start_from: str | None = None
    """A LoRA to start from: a .safetensors file, a folder with one (a run's, for example), or a hub id."""
    start_from_mode: StartMode = "merge"
    """Merge it into the weights, so that the KL is to it, or train it on: rank, alpha and targets are then its own."""
    scheduler: str | None = None
    """In the place of the model's: a class of diffusers, with the model's settings, or a folder with one."""
    model_variant: str | None = None
    """Which of the model's weights to load where it has several, such as fp16; without it the full ones if possible."""
    model_config: str | None = None
    """With a single-file checkpoint as model: a diffusers folder with the configurations of its parts."""

    def __post_init__(self) -> None:
        """Refuse what no model takes."""
        if not isinstance(self.vae_tiling, bool):
            raise TypeError(f"vae_tiling must be True or False, got {self.vae_tiling!r}.")
        for name in ("height", "width"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a positive number of pixels, or left out, got {value!r}.")
        if self.start_from_mode not in get_args(StartMode):
            raise ValueError(f"start_from_mode must be 'merge' or 'train', got {self.start_from_mode!r}.")
        if self.start_from is None and self.start_from_mode != "merge":
            raise ValueError("start_from_mode 'train' needs a LoRA to train on; name it with start_from.")
        for name, what in _TEXTS.items():
            if not isinstance(getattr(self, name), str | None):
                raise TypeError(f"{name} must be text, {what}, got {getattr(self, name)!r}.")

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


def single_file(name: str) -> Path | None:
    """Return the file that a model's name is, where it is a single-file checkpoint, which is no folder."""
    path = user_path(name)
    return path if path.suffix in CHECKPOINTS and path.is_file() else None


def single_file_class(file: Path) -> str:
    """Return the pipeline's class of a single-file checkpoint, as far as its header says; that of SD 1 and 2 else."""
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = opened.read(size) if file.suffix == ".safetensors" and size < _LARGEST_HEADER else b""
    return "StableDiffusionXLPipeline" if b'"conditioner.embedders.1.' in header else "StableDiffusionPipeline"


def folder_of(name: str) -> str:
    """Return the folder or hub id that a model's name leads to."""
    return str(ASSETS / name) if name in EMBEDDED else name


def pipeline_class(index: Path) -> str:
    """Return the class that a ``model_index.json`` names. Raises ValueError for a file that is not such an index."""
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a diffusers model index: {error}.") from error

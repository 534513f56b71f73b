"""Choices of a model and its sampler, without torch, so that the command line answers at once."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

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


def folder_of(name: str) -> str:
    """Return the folder or hub id that a model's name leads to."""
    return str(ASSETS / name) if name in EMBEDDED else name


def pipeline_class(index: Path) -> str:
    """Return the class that a ``model_index.json`` names. Raises ValueError for a file that is not such an index."""
    try:
        return str(json.loads(index.read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{index} is not a diffusers model index: {error}.") from error

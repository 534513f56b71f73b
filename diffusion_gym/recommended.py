"""Recommended settings for training a model: those in its own folder, or else its family's.

A folder carries them as ``training.json``, with the names that ``DDPO(env, ...)`` takes as keyword arguments::

    {"num_inference_steps": 10, "any": {"targets": ["all"], "learning_rate": 0.002}, "ddpo-is": {"clip_range": 2.0}}

"any" is for every algorithm; the section of an algorithm's name is for that one alone, and overrides "any". "prompts"
beside them may name the prompt set to begin with. The families' settings are here, apart from their classes, so that
the command line reads its defaults without torch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffusion_gym.choices import EXACT_MODELS, folder_of, pipeline_class, single_file, single_file_class
from diffusion_gym.paths import expanded

if TYPE_CHECKING:
    from diffusion_gym.models.base import DiffusionModel

FILE = "training.json"
#: The section for every algorithm.
ANY = "any"
_STEPS, _PROMPTS = "num_inference_steps", "prompts"


@dataclass(frozen=True)
class Recommended:
    """Settings to begin with; all others keep the algorithm's own defaults."""

    num_inference_steps: int = 10
    """Denoising steps per image."""
    sections: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """An algorithm's name, or "any" -> fields of its configuration, also of the dataclasses inside it."""
    source: str = "the model's family"
    """Where they come from, for messages."""
    prompts: str | None = None
    """The prompt set to begin with; None takes the family's."""

    def settings(self, algorithm: str) -> dict[str, Any]:
        """Return the fields that an algorithm takes."""
        return {**self.sections.get(ANY, {}), **self.sections.get(algorithm, {})}


_DDPO: Mapping[str, Any] = {name: {"images_per_iteration": 256} for name in ("ddpo-is", "ddpo-sf")}
#: ddpo-pytorch's: LoRA on attention at 3e-4, 256 images per iteration and 4 updates; guidance as in the paper.
STABLE_DIFFUSION = Recommended(
    num_inference_steps=50,
    sections={
        ANY: {"guidance_scale": 5.0, "num_envs": 32, "chunk_size": 8},
        **_DDPO,
    },
    source="its family, Stable Diffusion",
)
#: Both guidance scales are the pipeline's defaults.
INSTRUCT_PIX2PIX = Recommended(
    num_inference_steps=50,
    sections={
        ANY: {"guidance_scale": 7.5, "image_guidance_scale": 1.5, "num_envs": 32, "chunk_size": 8},
        **_DDPO,
    },
    source="its family, InstructPix2Pix",
)
STABLE_DIFFUSION_XL = Recommended(
    num_inference_steps=30,
    sections={
        ANY: {"guidance_scale": 5.0, "num_envs": 32, "chunk_size": 4},
        **_DDPO,
    },
    source="its family, SDXL",
)
#: Reward gradients need no noise, and windows only their own: Flow-GRPO's.
_NO_NOISE: Mapping[str, Any] = {
    **{name: {"eta": 0.0} for name in ("draft", "draft-lv", "refl", "opsd")},
    **{name: {"eta": 0.0, "window_eta": 0.7} for name in ("grpo-fast", "mixgrpo", "branched")},
}
#: Flow-GRPO's noise, steps, guidance and adapters.
STABLE_DIFFUSION_3 = Recommended(
    sections={
        ANY: {"eta": 0.7, "guidance_scale": 4.5, "rank": 32, "alpha": 64.0, "num_envs": 8, "chunk_size": 4},
        **_NO_NOISE,
    },
    source="its family, Stable Diffusion 3",
)
#: Guidance is left to the user: dev was distilled for 3.5, schnell without guidance.
FLUX = Recommended(
    sections={ANY: {"eta": 0.7, "rank": 32, "alpha": 64.0, "num_envs": 8, "chunk_size": 1}, **_NO_NOISE},
    source="its family, Flux",
)
#: Guidance is the pipeline's default.
PIXART_SIGMA = Recommended(
    num_inference_steps=20,
    sections={ANY: {"guidance_scale": 4.5, "num_envs": 32, "chunk_size": 8}, **_DDPO},
    source="its family, PixArt-Sigma",
)
#: Flow-GRPO's noise and adapters, and the pipeline's own guidance.
QWEN_IMAGE = Recommended(
    sections={
        ANY: {"eta": 0.7, "guidance_scale": 4.0, "rank": 32, "alpha": 64.0, "num_envs": 8, "chunk_size": 1},
        **_NO_NOISE,
    },
    source="its family, Qwen-Image",
)
#: Guidance is left to the user: both families have models that were distilled without it.
Z_IMAGE = Recommended(
    sections={ANY: {"eta": 0.7, "rank": 32, "alpha": 64.0, "num_envs": 8, "chunk_size": 1}, **_NO_NOISE},
    source="its family, Z-Image",
)
FLUX_2_KLEIN = Recommended(sections=Z_IMAGE.sections, source="its family, Flux.2-klein")
PIXELS = Recommended(
    num_inference_steps=50,
    sections={ANY: {"trainable": "full", "learning_rate": 1e-5}},
    source="its family, pixel-space DDPM",
)
_RWR: Mapping[str, Any] = {"images_per_iteration": 128, "updates_per_iteration": 10, "learning_rate": 0.01}
EXACT = Recommended(
    sections={
        ANY: {"trainable": "full", "learning_rate": 0.02, "chunk_size": 64},
        "ddpo-is": {"updates_per_iteration": 2},
        "rwr": _RWR,
        "sparse-rwr": _RWR,
        "sb3-ppo": {"n_epochs": 1, "batch_size": 320},
    },
    source="the exact family",
)
#: Pipeline class -> its family's settings. Those of other families are on their classes, which import torch.
BY_PIPELINE: Mapping[str, Recommended] = {
    "StableDiffusionPipeline": STABLE_DIFFUSION,
    "LatentConsistencyModelPipeline": STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": STABLE_DIFFUSION_XL,
    "StableDiffusion3Pipeline": STABLE_DIFFUSION_3,
    "FluxPipeline": FLUX,
    "PixArtSigmaPipeline": PIXART_SIGMA,
    "StableDiffusionInstructPix2PixPipeline": INSTRUCT_PIX2PIX,
    "QwenImagePipeline": QWEN_IMAGE,
    "ZImagePipeline": Z_IMAGE,
    "Flux2KleinPipeline": FLUX_2_KLEIN,
    "DDPMPipeline": PIXELS,
    "DDIMPipeline": PIXELS,
}


def recommended_for(model: str | Path | DiffusionModel) -> Recommended:
    """Return the settings that a model recommends for its training, without loading its weights.

    Raises:
        ValueError: an unknown name or model family, or an invalid file of settings in its folder.
    """
    if not isinstance(model, str | Path):
        return model.recommended
    name = expanded(model)
    if name in EXACT_MODELS:
        return EXACT
    file = single_file(name)
    if file is not None:
        return BY_PIPELINE[single_file_class(file)]
    with contextlib.suppress(ValueError):  # loading below says more about a folder without a proper index
        family = BY_PIPELINE.get(pipeline_class(Path(folder_of(name)) / "model_index.json"))
        if family is not None:
            return in_folder(folder_of(name), family)
    from diffusion_gym.models.loading import pipeline_recommends

    return pipeline_recommends(name)


def in_folder(source: str, family: Recommended) -> Recommended:
    """Return what a model's folder recommends, or the family's settings if it has no such file.

    Raises:
        ValueError: a file that is not as described above.
    """
    file = Path(source) / FILE
    if not file.is_file():
        return family
    expected = f'a mapping such as {{"{_STEPS}": 10, "{_PROMPTS}": "animals", "{ANY}": {{"learning_rate": 0.002}}}}'
    try:
        data = json.loads(text := file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(file)!r} is not JSON ({error}); expected {expected}.") from error
    steps, prompts = family.num_inference_steps, family.prompts
    if isinstance(data, dict):
        steps, prompts = data.pop(_STEPS, steps), data.pop(_PROMPTS, prompts)
    sound = type(steps) is int and steps >= 1 and isinstance(prompts, str | None)
    if not sound or not isinstance(data, dict) or not all(isinstance(section, dict) for section in data.values()):
        raise ValueError(
            f"{str(file)!r} holds {' '.join(text.split())[:80]}; expected {expected}, its numbers of steps at least 1."
        )
    sections = {name: _with_tuples(section) for name, section in data.items()}
    return Recommended(steps, sections, str(file), prompts)


def _with_tuples(section: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}

"""How a model is loaded, as options of the command line: the same in ``train``, ``sample`` and ``throughput``."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro

from diffusion_gym.choices import ModelSettings
from diffusion_gym.paths import user_path

_OWN, _NONE = "(default: the model's own)", "(default: none)"


@dataclass(frozen=True, kw_only=True)
class ModelOptions(ModelSettings):
    """The model's settings, with what help says of their values."""

    height: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_OWN)] = None
    """Height of the images in pixels."""
    width: Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint=_OWN)] = None
    """Width of the images in pixels."""
    start_from: Annotated[str | None, tyro.conf.arg(metavar="LORA", help_behavior_hint=_NONE)] = None
    """A LoRA to start from: a .safetensors file, a folder with one (a run's, for example), or a hub id."""
    scheduler: Annotated[str | None, tyro.conf.arg(metavar="CLASS|FOLDER", help_behavior_hint=_OWN)] = None
    """In the place of the model's: a class of diffusers, with the model's settings, or a folder with one."""
    model_variant: Annotated[str | None, tyro.conf.arg(metavar="STR", help_behavior_hint=_NONE)] = None
    """Which of the model's weights to load where it has several, such as fp16; without it the full ones if possible."""
    model_config: Annotated[str | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint=_NONE)] = None
    """With a single-file checkpoint as model: a diffusers folder with the configurations of its parts."""


def check_start(model: str, start_from: str | None) -> None:
    """Raise ValueError for the LoRA of a run that merged another one into this model first, which it does not fit."""
    if start_from is None:
        return
    place = user_path(start_from)
    file = (place if place.is_dir() else place.parent) / "run.json"
    if not file.is_file():
        return
    try:
        task = json.loads(file.read_text(encoding="utf-8"))["spec"]["task"]
        before = task.get("start_from") if task.get("start_from_mode", "merge") == "merge" else None
        same_model = user_path(task["model"]).resolve() == user_path(model).resolve()
    except (ValueError, LookupError, TypeError, AttributeError):
        return  # the LoRA beside it may be sound
    if before is not None and same_model:  # not the one with the first LoRA merged, as the advice below has it
        raise ValueError(
            f"start_from {start_from!r} is a run that merged the LoRA {before!r} into its model first, so its own does "
            f"not fit {model!r} as it is; merge the first one with the code in the run's README.md, save "
            "that pipeline (save_pretrained), and give it as model."
        )

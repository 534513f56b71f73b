"""Single-file checkpoints of Stable Diffusion 1, 2 and SDXL: weights alone, configured by a diffusers folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusion_gym.choices import pipeline_class
from diffusion_gym.errors import reason
from diffusion_gym.libraries import no_progress_bars
from diffusion_gym.paths import user_path

_INDEX = "model_index.json"
_CLASSES = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")


def class_of(name: str, config: str | None) -> str:
    """Return the pipeline's class of a single-file checkpoint, by the folder with the configurations of its parts.

    Args:
        name: the model's.
        config: the folder.

    Raises:
        ValueError: there is no such folder, or it is of another class.
    """
    index = None if config is None else user_path(config) / _INDEX
    if index is None or not index.is_file():
        missing = "" if index is None else f", there is no {str(index)!r}"
        raise ValueError(
            f"the model {name!r} is a single-file checkpoint, which holds weights alone{missing}; give as model_config "
            "the diffusers folder of the model that it was made from, of which the configurations are enough (hf "
            "download stable-diffusion-v1-5/stable-diffusion-v1-5 --include '*.json' '*.txt' --local-dir FOLDER)."
        )
    found = pipeline_class(index)
    if found not in _CLASSES:
        raise ValueError(
            f"model_config {config!r} is a {found}; of single-file checkpoints those of {' and '.join(_CLASSES)} are "
            f"read. Convert it with diffusers' {found}.from_single_file(FILE).save_pretrained(FOLDER), and give the "
            "folder."
        )
    return found


def load_single_file(name: str, source: str, arguments: Mapping[str, Any]) -> Any:
    """Return the pipeline of a checkpoint in one file, without the network.

    Args:
        name: the model's.
        source: the file.
        arguments: of diffusers' ``from_single_file``, with ``config``, a folder.

    Raises:
        ValueError: diffusers cannot load it so, or a variant is asked for.
    """
    if "variant" in arguments:
        raise ValueError(
            f"the single-file checkpoint {name!r} holds its weights once; leave out model_variant, got "
            f"{arguments['variant']!r}."
        )
    import diffusers

    pipeline: Any = getattr(diffusers, pipeline_class(Path(arguments["config"]) / _INDEX))
    try:
        with no_progress_bars():
            return pipeline.from_single_file(source, **arguments)
    except Exception as error:  # the libraries raise many unrelated types
        raise ValueError(
            f"diffusers could not load the single-file checkpoint {name!r} with the configurations in "
            f"{arguments['config']!r}: {reason(error)}."
        ) from error

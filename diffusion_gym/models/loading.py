"""Loading a diffusers pipeline (name of an embedded model, folder or hub id) through its family's adapter."""

import shlex
from pathlib import Path

import torch

from diffusion_gym.choices import ASSETS as ASSETS
from diffusion_gym.choices import CHECKPOINTS, EXACT_MODELS, folder_of, pipeline_class, single_file
from diffusion_gym.choices import EMBEDDED as EMBEDDED
from diffusion_gym.models.base import DiffusionModel, ModelDtype, ModelSettings
from diffusion_gym.models.files import FilesState, came_of, check_files, files_state, instead_of, is_lora
from diffusion_gym.models.flux import Flux
from diffusion_gym.models.flux_2_klein import Flux2Klein
from diffusion_gym.models.instruct_pix2pix import InstructPix2Pix
from diffusion_gym.models.pipeline import PipelineModel
from diffusion_gym.models.pixart_sigma import PixArtSigma
from diffusion_gym.models.qwen_image import QwenImage
from diffusion_gym.models.single_file import class_of
from diffusion_gym.models.stable_diffusion import StableDiffusion
from diffusion_gym.models.stable_diffusion_3 import StableDiffusion3
from diffusion_gym.models.stable_diffusion_xl import StableDiffusionXL
from diffusion_gym.models.unconditional import UnconditionalPixels
from diffusion_gym.models.z_image import ZImage
from diffusion_gym.paths import user_path
from diffusion_gym.recommended import Recommended, in_folder

#: Pipeline class (``_class_name`` of model_index.json) -> adapter. A new family is one file and one line here.
FAMILIES: dict[str, type[PipelineModel]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "PixArtSigmaPipeline": PixArtSigma,
    "StableDiffusionInstructPix2PixPipeline": InstructPix2Pix,
    "QwenImagePipeline": QwenImage,
    "ZImagePipeline": ZImage,
    "Flux2KleinPipeline": Flux2Klein,
    "DDPMPipeline": UnconditionalPixels,
    "DDIMPipeline": UnconditionalPixels,
}


def state_of(name: str) -> FilesState | str:
    """Return what changes with a model's files, before anything is loaded; of a hub id its newest download's folder."""
    folder = Path(folder_of(name))
    if single_file(name) is not None:
        return str(weights_state(name))
    if folder.exists() or name.count("/") != 1:
        return files_state(folder)
    from huggingface_hub import try_to_load_from_cache

    try:
        return str(try_to_load_from_cache(name, "model_index.json") or "")
    except ValueError:  # no hub id either, as loading says
        return ""


def weights_state(source: str | None) -> tuple[float, ...]:
    """Return what changes when a file of weights, or one in a LoRA's folder, is replaced; of a hub id nothing."""
    path = user_path(source or "")
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if source else []
    return tuple(number for file in files for number in (file.stat().st_size, file.stat().st_mtime_ns))


def load_pipeline_model(name: str, device: torch.device, dtype: ModelDtype, settings: ModelSettings) -> DiffusionModel:
    """Load the model called ``name``.

    Raises:
        ValueError: nothing is found under that name, its pipeline class is not supported, or it has no such setting.
    """
    source, family = _family(name, settings.model_config)
    return family(name, source, device, dtype, settings)


def pipeline_recommends(name: str) -> Recommended:
    """Return what the model called ``name`` recommends, without loading its weights; raises as loading them does."""
    source, family = _family(name)
    return in_folder(source, family.recommended)


def _family(name: str, model_config: str | None = None) -> tuple[str, type[PipelineModel]]:
    """Return the folder, file or hub id of a model, and its family."""
    source, file = folder_of(name), single_file(name)
    check_files(Path(source), f"model {name!r}")
    if file is not None and not is_lora(file):
        return str(file), FAMILIES[class_of(name, model_config)]
    if model_config is not None:
        raise ValueError(f"model_config is for a single-file checkpoint, which {name!r} is not; leave it out.")
    index = Path(source) / "model_index.json"
    family = pipeline_class(index if index.is_file() else _hub_file(name, source))
    if family not in FAMILIES:
        raise ValueError(
            f"model {name!r} is a {family}, which is not supported; supported are {sorted(FAMILIES)}. "
            "docs/your-own-family.md shows how to add a family."
        )
    return source, FAMILIES[family]


def _hub_file(name: str, source: str) -> Path:
    """Download the index of a model on the hub; raises ValueError, which says what to give instead."""
    known, path = [*EMBEDDED, *EXACT_MODELS], Path(source)
    if path.exists() and (instead := instead_of(path)):
        raise ValueError(f"model {name!r} {instead}.")
    if path.exists() or path.suffix in CHECKPOINTS or source.count("/") != 1 or source.startswith((".", "/")):
        came = came_of(path, "no model_index.json")
        raise ValueError(
            f"unknown model {name!r}: expected one of {known}, a folder with a model_index.json (as written by "
            f"diffusers' save_pretrained), a single-file checkpoint ({' or '.join(CHECKPOINTS)}), or a hub id such as "
            f"'stable-diffusion-v1-5/stable-diffusion-v1-5'; {came}."
        )
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, "model_index.json"))
    except Exception as error:  # the hub client raises many unrelated types
        raise ValueError(
            f"there is no folder {name!r}, and a model of that name could not be fetched from the model hub "
            f"({type(error).__name__}): {_advice(name, error)}, or use one of {known}."
        ) from error


def _advice(name: str, error: Exception) -> str:
    """Return what stopped the download, and what to do."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return "accept its terms on its page first, and log in with 'hf auth login'"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "the hub has no such model, or it is private; check the name, log in with 'hf auth login'"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return "it has no model_index.json, so it is not a diffusers pipeline"
    offline = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "the hub could not be reached"
    return (
        f"{offline}, and the model is not in the cache; download it where there is a network "
        f"('hf download {shlex.quote(name)} --local-dir DIR'), copy DIR here, and pass model='DIR'"
    )

"""The files of a model's folder: their state, their variant, and what to give in place of a path without a model."""

import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_gym.choices import CHECKPOINTS
from diffusion_gym.errors import reason

#: The first bytes of a file that Git LFS left in the place of a large one.
_POINTER = b"version https://git-lfs"
_LARGEST_POINTER = 1024
#: The first byte of what torch.save wrote before it wrote zip files.
_PICKLE = b"\x80"
#: Weights as diffusers and transformers name them, a shard of a variant: ``model-00001-of-00002.fp16.safetensors``.
_SHARD = r"(?:-\d+-of-\d+)?"
_WEIGHTS = re.compile(rf"(?:diffusion_pytorch_|pytorch_)?model{_SHARD}(?:\.([\w-]+?){_SHARD})?\.(?:safetensors|bin)")
_LORA_FILES = ("pytorch_lora_weights.bin", "adapter_config.json")
_INDEX = "model_index.json"

#: Of each file: where it is, its bytes, and when it was last written and last changed, in ns: a program that copies may
#: set the first time back, but none can set the second.
FilesState = tuple[tuple[str, int, int, int], ...]


def files_state(folder: Path) -> FilesState:
    """Return what changes when any file of a model's folder is replaced; empty where there is no such folder."""
    found = []
    for file in _files(folder) if (folder / _INDEX).is_file() else ():
        stat = file.stat()
        found.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(sorted(found))


def check_files(path: Path, what: str) -> None:
    """Raise ValueError where Git LFS left a pointer in the place of a file, or a file of weights is damaged.

    Args:
        path: a file or a folder; it need not exist.
        what: has the files, for the message (``"model 'x'"``).
    """
    for file in [path] if path.is_file() else _files(path):
        if file.stat().st_size <= _LARGEST_POINTER and file.read_bytes().startswith(_POINTER):
            raise ValueError(
                f"{str(file)!r} of {what} is a Git LFS pointer, not the file itself; run 'git lfs pull' in that "
                "folder, or download it again with 'hf download'."
            )
        damage = _damage(file)
        if damage is not None:
            raise ValueError(
                f"{str(file)!r} of {what} {damage}; expected a whole file of weights: download or copy it again."
            )


def _damage(file: Path) -> str | None:
    """Return what is wrong with a file of weights, whose tensors are not read; None of others, and if nothing is."""
    if file.suffix not in CHECKPOINTS and not _WEIGHTS.fullmatch(file.name):
        return None
    if not file.stat().st_size:
        return "is empty"
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt"):
                return None
        except SafetensorError as error:
            return f"is cut short, or is no safetensors file ({reason(error)})"
    with file.open("rb") as opened:
        start = opened.read(2)
    if start == b"PK":
        return None if zipfile.is_zipfile(file) else "is cut short"
    return None if start[:1] == _PICKLE else "is no file that torch.save wrote"


def variant_of(name: str, folder: Path, components: Mapping[str, Any], asked: str | None = None) -> str | None:
    """Return the variant (``"fp16"``) to load a folder's weights in; None where all of them are there in full.

    Components that have weights of that variant are loaded from them, all others from their full weights.

    Args:
        name: the model's, for the error.
        folder: in diffusers' layout.
        components: of ``model_index.json``; others are not looked at.
        asked: a variant to load where it is, or None for full weights before all variants.

    Raises:
        ValueError: no single variant will do.
    """
    held = {part: _variants(folder / part) for part in components if (folder / part).is_dir()}
    if asked is not None:
        known = sorted(set().union(*held.values()) - {""})
        if asked not in known:
            expected = f"expected one of {known}" if known else "it has no variants, so leave out model_variant"
            raise ValueError(f"no part of the model {name!r} has weights of the variant {asked!r}; {expected}.")
        return asked
    lacking = {part: variants for part, variants in held.items() if variants and "" not in variants}
    if not lacking:
        return None
    common = set.intersection(*lacking.values())
    if not common:
        found = ", ".join(f"{part}: {' and '.join(sorted(variants))}" for part, variants in lacking.items())
        raise ValueError(
            f"the model {name!r} holds its parts in different variants ({found}); expected full weights, or one "
            "variant of all."
        )
    return next(variant for variant in ("fp16", "bf16", *sorted(common)) if variant in common)


def instead_of(path: Path) -> str:
    """Return what to give in place of a path that holds no model; an empty text where nothing is known."""
    near = [path.parent / _INDEX, *sorted(path.glob(f"*/{_INDEX}")), *sorted(path.glob(f"*/*/{_INDEX}"))]
    models = [str(index.parent) for index in near if index.is_file()]
    is_run = (path / "run.json").is_file()
    if is_run and not models:
        return f"is the folder of a run: 'sample --run {path}' draws with it; to train on from it, {_with_start(path)}"
    if not models and any(map(is_lora, [path] if path.is_file() else path.glob("*"))):
        return f"is a LoRA, weights that are added to a model: {_with_start(path)}"
    if models:
        return f"{'is the folder of a run' if is_run else 'is not a whole model'}; give {models[0]!r}"
    if any(path.glob("*.safetensors")) or any(path.glob("*.ckpt")):
        return (
            f"has weights without a {_INDEX}; a single-file checkpoint of Stable Diffusion or SDXL is given as the "
            "file itself (.safetensors or .ckpt), with model_config"
        )
    return ""


def came_of(path: Path, in_folder: str) -> str:
    """Return what there is at a path that should hold weights; in_folder: what a folder has of them."""
    if path.is_dir():
        return f"that folder has {in_folder}"
    return f"that file ends in {path.suffix!r}" if path.exists() else "there is no such file or folder"


def _with_start(lora: Path) -> str:
    return f"give the model that it was trained on, with start_from {str(lora)!r}"


def is_lora(file: Path) -> bool:
    """Return whether a file holds adapters, by its name or its tensors' names."""
    if file.suffix != ".safetensors":
        return file.name in _LORA_FILES
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            return any("lora" in key.lower() for key in tensors.keys())  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError):
        return False


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a model's folder: its own, and those of its parts."""
    for pattern in ("*", "*/*"):
        yield from (file for file in folder.glob(pattern) if file.is_file())


def _variants(folder: Path) -> set[str]:
    """Return the variants of the weights in a component's folder, "" of full ones."""
    matches = [_WEIGHTS.fullmatch(file.name) for file in folder.iterdir()]
    return {match[1] or "" for match in matches if match}

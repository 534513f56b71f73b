"""What lies at a path that was given as a model: the state of its files, their variant, and advice where it is none."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: The first bytes of a file that Git LFS left in the place of a large one.
_POINTER = b"version https://git-lfs"
_LARGEST_POINTER = 1024
#: Weights as diffusers and transformers name them, a shard of a variant: ``model-00001-of-00002.fp16.safetensors``.
_SHARD = r"(?:-\d+-of-\d+)?"
_WEIGHTS = re.compile(rf"(?:diffusion_pytorch_|pytorch_)?model{_SHARD}(?:\.([\w-]+?){_SHARD})?\.(?:safetensors|bin)")
_LORA_FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin", "adapter_config.json")
_INDEX = "model_index.json"

#: Of each file: where it is, its bytes, and when it was last written and last changed, in ns: a program that copies may
#: set the first time back, and nobody the second.
FilesState = tuple[tuple[str, int, int, int], ...]


def files_state(folder: Path) -> FilesState:
    """Return what changes when any file of a model's folder is replaced; empty where there is no such folder."""
    found = []
    for file in _files(folder) if (folder / _INDEX).is_file() else ():
        stat = file.stat()
        found.append((str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
    return tuple(sorted(found))


def check_not_pointers(path: Path, what: str) -> None:
    """Raise ValueError where Git LFS left a pointer in the place of a file; ``path`` may be a file, a folder, or none.

    Args:
        path: where weights are expected.
        what: they are, for the message (``"model 'x'"``).
    """
    for file in [path] if path.is_file() else _files(path):
        if file.stat().st_size <= _LARGEST_POINTER and file.read_bytes().startswith(_POINTER):
            raise ValueError(
                f"{str(file)!r} of {what} is a Git LFS pointer, {file.stat().st_size} bytes of text in the place of "
                "the file itself: expected the file. Run 'git lfs pull' in that folder, or download it again with "
                "'hf download'."
            )


def variant_of(name: str, folder: Path, components: Mapping[str, Any]) -> str | None:
    """Return the variant (``"fp16"``) in which a folder holds weights that it lacks in full; None where it lacks none.

    Components that have weights of that variant are loaded from them, all others from their full weights.

    Args:
        name: the model's, for the error.
        folder: in diffusers' layout.
        components: of ``model_index.json``; others are not looked at.

    Raises:
        ValueError: no single variant will do.
    """
    held = {part: _variants(folder / part) for part in components if (folder / part).is_dir()}
    lacking = {part: variants for part, variants in held.items() if variants and "" not in variants}
    if not lacking:
        return None
    common = set.intersection(*lacking.values())
    if not common:
        raise ValueError(
            f"the model {name!r} holds its parts in different variants ({_listed(lacking)}); expected full weights, or "
            "one variant of all. Download one of them whole."
        )
    return next(variant for variant in ("fp16", "bf16", *sorted(common)) if variant in common)


def advice(path: Path) -> str | None:
    """Say what a file or folder is that is no model in diffusers' layout, and what to do; None where nothing is known.

    Args:
        path: exists, and holds no model_index.json.
    """
    as_one = (
        f"save both as one: pipe = DiffusionPipeline.from_pretrained(MODEL); pipe.load_lora_weights({str(path)!r}); "
        "pipe.fuse_lora(); pipe.unload_lora_weights(); pipe.save_pretrained(FOLDER)"
    )
    lora = f"is a LoRA, weights that are added to a model: give the model that it was trained on, or {as_one}"
    if path.is_file():
        return lora if _is_lora(path) else f"is a file; {_CONVERT}"
    if (path / "run.json").is_file():
        exported = path / "pipeline"
        again = f"add its LoRA to its model, and {as_one}"
        if (exported / _INDEX).is_file():
            again = f"give the model that it trained, {str(exported)!r}"
        return (
            f"is the folder of a run. 'sample --run {path}' draws with it, and the command that began it resumes it. "
            f"To start another run from it, {again}"
        )
    if any((path / file).is_file() for file in _LORA_FILES) or any(_is_lora(f) for f in path.glob("*.safetensors")):
        return lora
    if path.name.startswith("models--"):
        return f"is a folder of the hub's cache; {_in_cache(path)}"
    inside = sorted(index.parent for index in [*path.glob(f"*/{_INDEX}"), *path.glob(f"*/*/{_INDEX}")])
    if inside:
        return f"has a model inside; give {str(inside[0])!r}"
    if (path.parent / _INDEX).is_file():
        return f"is one part of a model; give {str(path.parent)!r}"
    if any(path.glob("*.safetensors")) or any(path.glob("*.ckpt")):
        return f"holds weights and no {_INDEX}; {_CONVERT}"
    return None


def advice_for_name(name: str) -> str | None:
    """Say what a name is under which nothing lies, and what to do; None where nothing is known."""
    if name.startswith(("http://", "https://")):
        path = name.partition("://")[2].split("/")[1:3]
        return f"is an address; give the hub id {'/'.join(path)!r}, or a folder" if len(path) == 2 else None
    last = Path(name).name
    if last.startswith("models--") and last.count("--") == 2:
        return f"would be a folder of the hub's cache, and there is none; {_in_cache(Path(name))}"
    return None


#: What becomes of the weights of a whole model in one file.
_CONVERT = (
    f"expected a folder with a {_INDEX}. Convert a single-file checkpoint with diffusers' "
    "PIPELINE.from_single_file(FILE).save_pretrained(FOLDER), and give the folder"
)


def _in_cache(folder: Path) -> str:
    """Say how a model in the hub's cache is named."""
    snapshots = sorted(index.parent for index in folder.glob(f"snapshots/*/{_INDEX}"))
    hub_id = "/".join(folder.name.split("--")[1:])
    return f"give its hub id {hub_id!r}" + (f", or the folder {str(snapshots[-1])!r}" if snapshots else "")


def _is_lora(file: Path) -> bool:
    """Whether a safetensors file holds adapters, by its tensors' names."""
    if file.suffix != ".safetensors":
        return file.name in _LORA_FILES
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as tensors:
            return any("lora" in key.lower() for key in tensors.keys())  # noqa: SIM118 - no mapping
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


def _listed(variants: Mapping[str, set[str]]) -> str:
    return ", ".join(f"{part}: {' and '.join(sorted(names))}" for part, names in variants.items())

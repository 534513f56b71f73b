"""Puts the trained parts into a ``StableDiffusionPipeline`` folder, stored in float16 under the plain file names."""

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from algorithms.checkpoints.published import share_as
from benchmarks.pretrain.denoiser import build_scheduler
from benchmarks.pretrain.vae import to_bytes
from diffusion_gym.envs.config import DEFAULT_MODEL
from diffusion_gym.models.loading import ASSETS
from diffusion_gym.recommended import FILE


def check_replaced(target: Path) -> None:
    """Raise ValueError where what is made would replace something that pretrain did not make."""
    if target.exists() and not (target / "card.json").is_file() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(
            f"{str(target)!r} is not empty and holds no model that pretrain made (no card.json). Choose another place, "
            "or move it away."
        )


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield a new folder beside ``target`` that takes its place when the block ends well, and vanishes when not.

    An old one with files that the new one lacks stays, under another name, which is printed.
    """
    check_replaced(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(4)
    fresh, old = target.with_name(f".{target.name}-{mark}"), target.with_name(f"{target.name}-before-{mark}")
    fresh.mkdir()
    try:
        yield fresh
        share_as(fresh / "card.json", fresh.rglob("*.safetensors"))
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
        lacking = [file for file in old.rglob("*") if not (target / file.relative_to(old)).exists()]
        if lacking:
            print(f"{old} is kept: {target} has no {lacking[0].relative_to(old)}")
        else:
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def save_pipeline(
    folder: Path,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    shipped: str = DEFAULT_MODEL,
) -> None:
    """Write the pipeline's folder, with the settings that the shipped one recommends; the parts are left in float16."""
    pipe = StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder)
    shutil.copyfile(ASSETS / shipped / FILE, folder / FILE)
    _save_slow_tokenizer(tokenizer, folder / "tokenizer")
    clean_configs(folder)


def _save_slow_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write vocab.json and merges.txt beside tokenizer.json, for transformers before 5, which read only these."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    by_index = dict(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    vocabulary = json.dumps(by_index, ensure_ascii=False)
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")


def clean_configs(folder: Path) -> None:
    """Take the maker's paths out of the configs, and let the text encoder load in float32 like the other parts.

    transformers 5 loads a model in the precision its config names unless told otherwise, diffusers in float32: a
    plain ``from_pretrained`` would then mix the two.
    """
    for file in sorted(folder.rglob("*.json")):
        if file.name in ("vocab.json", "tokenizer.json"):
            continue
        config = json.loads(file.read_text(encoding="utf-8"))
        config.pop("_name_or_path", None)
        for key in ("dtype", "torch_dtype"):
            if key in config:
                config[key] = "float32"
        # Names of transformers 4, which transformers 5 knows too.
        if config.get("tokenizer_class") == "TokenizersBackend":
            config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if "extra_special_tokens" in config:
            config["additional_special_tokens"] = config.pop("extra_special_tokens")
        file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_pipeline(folder: Path) -> StableDiffusionPipeline:
    """Load the folder in float32 as a user does, without a progress bar."""
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def generate(
    pipe: StableDiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    steps: int = 10,
    eta: float = 1.0,
    guidance: float = 1.0,
) -> Tensor:
    """Return one picture a prompt, (n, 3, 64, 64) uint8, each from its own generator of its seed."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    pixels = pipe(
        list(prompts),
        num_inference_steps=steps,
        eta=eta,
        guidance_scale=guidance,
        generator=generators,
        output_type="pt",
    ).images
    return to_bytes(pixels * 2.0 - 1.0)

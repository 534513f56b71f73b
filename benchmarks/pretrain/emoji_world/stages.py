"""The stages of emoji-world in order; each keeps its weights in the work folder and is skipped when they are there."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import PreTrainedModel

from benchmarks.pretrain.denoiser import TextToNoise
from benchmarks.pretrain.emoji_world.captions import PREFIX, captions
from benchmarks.pretrain.emoji_world.config import Stage, WorldConfig
from benchmarks.pretrain.emoji_world.denoiser import Denoising, build_unet
from benchmarks.pretrain.emoji_world.detectors import Detecting, Spoiling, build_detector, build_judge
from benchmarks.pretrain.emoji_world.fit import fit, restore
from benchmarks.pretrain.emoji_world.folder import SCALING, make_folder
from benchmarks.pretrain.emoji_world.scenes import World
from benchmarks.pretrain.emoji_world.sprites import Sprites
from benchmarks.pretrain.emoji_world.vae import build_vae, encode_pool, psnr, reconstruct, vae_loss
from benchmarks.pretrain.text import build_text_encoder, build_tokenizer, tokenize

Part = TypeVar("Part", bound=nn.Module)

#: Pictures on which the autoencoder's loss is printed.
MEASURED = 256
SPOILING = {"detector": Spoiling(), "judge": Spoiling(blur=0.9, noise=0.2, contrast=0.15)}
"""How each detector's training pictures are spoilt."""


def run_stages(config: WorldConfig) -> None:
    """Run the stages that ``config.only`` names and that are not finished."""
    torch.set_num_threads(config.threads)
    if torch.device(config.device).type == "cuda":  # a setting of the process; the run's own process ends with it
        torch.set_float32_matmul_precision("high")
    world = make_world(config)
    parts = {}
    for name, make in STAGES.items():
        if config.only in ("all", "folder", "generator" if name in ("vae", "denoiser") else name):
            parts[name] = make(config, world)
    if config.only in ("all", "folder"):
        vae, denoiser = parts.pop("vae"), parts.pop("denoiser")
        make_folder(config, vae, denoiser, parts)


def make_world(config: WorldConfig) -> World:
    """Return the world on the device, its glyphs read from the work folder or drawn into it."""
    file = config.work / "sprites.npz"
    if not file.is_file():
        config.work.mkdir(parents=True, exist_ok=True)
        Sprites.draw(config.font).save(file)
    return World(Sprites.load(file), torch.device(config.device))


def run_stage(
    config: WorldConfig, name: str, seed: int, build: Callable[[], Part], train: Callable[[Part, Stage, Path], None]
) -> Part:
    """Return a stage's module on the device with its weights, trained by ``train(module, stage, file)`` if need be."""
    torch.manual_seed(config.seed * 1000 + seed)
    module = build().to(config.device).eval()  # no part has dropout
    file, stage = config.work / f"{name}.safetensors", getattr(config, name)
    if not file.is_file() or file.with_suffix(".state").is_file():
        train(module, stage, file)
    restore(module, file)
    return module.requires_grad_(False)


def make_vae(config: WorldConfig, world: World) -> AutoencoderKL:
    """Return the autoencoder."""

    def train(vae: AutoencoderKL, stage: Stage, file: Path) -> None:
        fit(vae, lambda: vae_loss(vae, world, stage.batch), stage, world.device, file)

    vae = run_stage(config, "vae", 0, build_vae, train)
    torch.manual_seed(config.seed * 1000 + 999)
    pictures = world.draw(world.captioned(MEASURED)[0])
    print(f"autoencoder: {psnr(pictures, reconstruct(vae, pictures)):.2f} dB", flush=True)
    return vae


def make_denoiser(config: WorldConfig, world: World) -> TextToNoise:
    """Return the UNet and the text encoder; their scaling factor is in the work folder's scaling.json."""
    texts = captions()
    tokenizer = build_tokenizer(texts)

    def build() -> TextToNoise:
        return TextToNoise(build_text_encoder(tokenizer), build_unet())

    def train(model: TextToNoise, stage: Stage, file: Path) -> None:
        vae = make_vae(config, world)
        batch = 2048 if world.device.type == "cuda" else 64
        latents, caption = encode_pool(vae, world, config.pool, batch)
        scaling = round(float(latents[:20_000].float().std().reciprocal()), 5)
        if config.start is not None:
            scaling = json.loads((config.start.parent / SCALING).read_text(encoding="utf-8"))["scaling_factor"]
            restore(model, config.start)
        (config.work / SCALING).write_text(json.dumps({"scaling_factor": scaling}) + "\n", encoding="utf-8")
        # Some captions go without "a photo of", so that a bare prompt works too.
        short = torch.rand(len(caption), device=world.device) < 0.1
        table = tokenize(tokenizer, [*texts, *(text.removeprefix(PREFIX) for text in texts), ""]).to(world.device)
        turned = torch.tensor([" right of " in text or " below " in text for text in texts], device=world.device)
        denoising = Denoising(
            model, latents * scaling, table, caption + short * len(texts), table[-1], held_back=turned[caption]
        )
        print(f"latents: {len(latents)} scaled by {scaling}", flush=True)
        loss = functools.partial(denoising.loss, stage.batch)
        fit(model, loss, stage, world.device, file, set_progress=denoising.set_progress)

    return run_stage(config, "denoiser", 1, build, train)


def make_detector(config: WorldConfig, world: World, name: str) -> PreTrainedModel:
    """Return the reward's detector or the gold judge."""

    def train(model: PreTrainedModel, stage: Stage, file: Path) -> None:
        detecting = Detecting(model, world, SPOILING[name])
        fit(model, lambda: detecting.loss(stage.batch), stage, world.device, file)

    build, seed = {"detector": (build_detector, 2), "judge": (build_judge, 3)}[name]
    return run_stage(config, name, seed, build, train)


STAGES: dict[str, Callable[[WorldConfig, World], Any]] = {
    "vae": make_vae,
    "denoiser": make_denoiser,
    "detector": functools.partial(make_detector, name="detector"),
    "judge": functools.partial(make_detector, name="judge"),
}
"""What makes each part, in order."""

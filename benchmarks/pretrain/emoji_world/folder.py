"""Puts the trained parts of emoji-world into one folder, as a user loads them, and measures them there."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import DetrImageProcessor, PreTrainedModel, YolosImageProcessor

from benchmarks.pretrain.card import folder_megabytes
from benchmarks.pretrain.denoiser import TextToNoise
from benchmarks.pretrain.emoji_world.captions import captions
from benchmarks.pretrain.emoji_world.card import draw_grid, measure
from benchmarks.pretrain.emoji_world.config import WorldConfig
from benchmarks.pretrain.emoji_world.prompts import write_prompts
from benchmarks.pretrain.emoji_world.readme import model_card
from benchmarks.pretrain.emoji_world.scenes import World
from benchmarks.pretrain.emoji_world.sprites import Sprites
from benchmarks.pretrain.pipeline import clean_configs, load_pipeline, replaced_folder, save_pipeline
from benchmarks.pretrain.text import build_tokenizer
from diffusion_gym.rewards.models.detection import Detector

SHARPENING = {"detector": 1.5, "judge": 1.0}
"""Factor on each detector's class logits: as trained, the reward's detector was right more often than it was sure."""

SCALING = "scaling.json"
"""Beside the denoiser's weights: the factor of the latents."""


def make_folder(
    config: WorldConfig, vae: AutoencoderKL, model: TextToNoise, detectors: dict[str, PreTrainedModel]
) -> None:
    """Write the pipeline, its detectors and prompts, load them back, measure them and write the card."""
    scaling = json.loads((config.work / SCALING).read_text(encoding="utf-8"))["scaling_factor"]
    vae.register_to_config(scaling_factor=scaling)
    with replaced_folder(config.output) as folder:
        save_pipeline(
            folder, vae.cpu(), model.text_encoder.cpu(), build_tokenizer(captions()), model.unet.cpu(), "emoji-world"
        )
        for name, detector in detectors.items():
            save_detector(folder / name, detector.cpu(), SHARPENING[name])
        write_prompts(folder / "prompts")
        write_card(folder, config)


def write_card(folder: Path, config: WorldConfig) -> None:
    """Measure what the folder holds and write card.json, grid.png and README.md into it."""
    world = World(Sprites.load(config.work / "sprites.npz"), torch.device("cpu"))
    pipe, detectors = load_pipeline(folder), {name: Detector(str(folder / name)) for name in SHARPENING}
    card: dict[str, Any] = measure(pipe, world, detectors, config.seeds)
    files = {name: config.work / f"{name}.json" for name in ("vae", "denoiser", *SHARPENING)}
    card["training"] = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    card["note"] = config.note
    draw_grid(pipe, folder / "grid.png")
    card["megabytes"] = folder_megabytes(folder)
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")


def save_detector(folder: Path, model: PreTrainedModel, sharpening: float) -> None:
    """Write a detector in float16 with the processor that ``AutoImageProcessor`` loads."""
    head = model.class_labels_classifier
    head = head.layers[-1] if hasattr(head, "layers") else head
    with torch.no_grad():
        head.weight.mul_(sharpening)
        head.bias.mul_(sharpening)
    model.half().save_pretrained(folder)
    kind = DetrImageProcessor if model.config.model_type == "detr" else YolosImageProcessor
    half = [0.5, 0.5, 0.5]
    kind(do_resize=False, do_pad=False, image_mean=half, image_std=half).save_pretrained(folder)
    clean_configs(folder)

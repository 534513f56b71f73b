"""Measures the saved pipeline and writes its model card: card.json, grid.png and README.md."""

import io
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, pstdev
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from benchmarks.pretrain.judge import Judge
from benchmarks.pretrain.pipeline import generate
from benchmarks.pretrain.readme import model_card
from benchmarks.pretrain.text import tokenize
from benchmarks.pretrain.vae import psnr, reconstruct
from benchmarks.pretrain.world import Pictures
from diffusion_gym.prompts import ACTIVITIES, ANIMALS, animal_activities

#: Steps, eta and guidance.
Sampler = tuple[int, float, float]

#: The samplers of the card; the first is the project's default.
SAMPLERS: tuple[Sampler, ...] = (
    (10, 1.0, 1.0),
    (20, 1.0, 1.0),
    (10, 0.0, 1.0),
    (20, 0.0, 1.0),
    (10, 1.0, 2.0),
    (20, 0.0, 2.0),
)


def jpeg_kilobytes(images: Tensor) -> list[float]:
    """Return the sizes in kB (1000 bytes) of pictures (n, 3, h, w), uint8, as JPEG of quality 95."""
    sizes = []
    for image in images:
        buffer = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, format="JPEG", quality=95)
        sizes.append(buffer.tell() / 1000)
    return sizes


def share(hits: Tensor) -> float:
    """Return the share of true entries, rounded to four digits."""
    return round(float(hits.float().mean()), 4)


def score_animals(pipe: StableDiffusionPipeline, judge: Judge, seeds: int, sampler: Sampler) -> dict[str, Any]:
    """Judge one picture of each animal and seed; the seeds are 0, 1, ... and none is picked."""
    steps, eta, guidance = sampler
    images = torch.stack(
        [generate(pipe, ANIMALS, [seed] * len(ANIMALS), steps, eta, guidance) for seed in range(seeds)]
    )
    seen = judge.recognise(images.flatten(0, 1))
    right = seen.animal.reshape(seeds, len(ANIMALS)) == torch.arange(len(ANIMALS))
    sizes = torch.tensor(jpeg_kilobytes(images.flatten(0, 1))).reshape(seeds, len(ANIMALS))
    return {
        "steps": steps,
        "eta": eta,
        "guidance": guidance,
        "images": seeds * len(ANIMALS),
        "animal_share": share(right),
        "no_activity_share": share(seen.activity == 0),
        "animal_share_by_animal": {animal: share(right[:, index]) for index, animal in enumerate(ANIMALS)},
        "jpeg_kb": {
            "mean": round(float(sizes.mean()), 3),
            "std_between_images": round(float(sizes.std(correction=0)), 3),
            "std_within_prompt": round(float(sizes.std(dim=0, correction=0).mean()), 3),
            "std_between_prompts": round(float(sizes.mean(dim=0).std(correction=0)), 3),
            "smallest": round(float(sizes.min()), 3),
            "largest": round(float(sizes.max()), 3),
        },
    }


def score_activities(pipe: StableDiffusionPipeline, judge: Judge, seeds: int) -> dict[str, Any]:
    """Judge one picture of each of the 135 activity prompts and seed, at the default sampler."""
    prompts = animal_activities()
    images = torch.cat([generate(pipe, prompts, [seed] * len(prompts)) for seed in range(seeds)])
    seen = judge.recognise(images)
    animal = torch.arange(len(ANIMALS)).repeat_interleave(len(ACTIVITIES)).repeat(seeds)
    activity = 1 + torch.arange(len(ACTIVITIES)).repeat(len(ANIMALS) * seeds)
    animal_right, activity_right = seen.animal == animal, seen.activity == activity
    return {
        "images": len(images),
        "animal_share": share(animal_right),
        "activity_share": share(activity_right),
        "both_share": share(animal_right & activity_right),
        "activity_share_by_activity": {
            name: share(activity_right[activity == 1 + index]) for index, name in enumerate(ACTIVITIES)
        },
    }


def score_autoencoder(pipe: StableDiffusionPipeline, judge: Judge, held_out: Pictures) -> dict[str, Any]:
    """Measure reconstruction of held-out renders and what the judge sees in renders and in reconstructions."""
    originals = torch.from_numpy(held_out.images)
    copies = reconstruct(pipe.vae, held_out.images)
    animal, activity = torch.from_numpy(held_out.animal), torch.from_numpy(held_out.activity)
    seen, seen_copies = judge.recognise(originals), judge.recognise(copies)
    return {
        "pictures": len(originals),
        "psnr_db": round(psnr(copies, originals), 2),
        "judge_animal_on_renders": share(seen.animal == animal),
        "judge_activity_on_renders": share(seen.activity == activity),
        "judge_animal_on_reconstructions": share(seen_copies.animal == animal),
        "judge_activity_on_reconstructions": share(seen_copies.activity == activity),
        "jpeg_kb_of_renders": {
            "mean": round(mean(jpeg_kilobytes(originals)), 3),
            "std": round(pstdev(jpeg_kilobytes(originals)), 3),
        },
    }


def time_parts(pipe: StableDiffusionPipeline, rows: int = 64) -> dict[str, Any]:
    """Time the UNet and the decoder in float32 on one thread, in milliseconds per row, best of five."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    channels = pipe.unet.config.in_channels
    latents, times = torch.randn(rows, channels, 8, 8), torch.randint(0, 1000, (rows,))
    with torch.no_grad():
        states = pipe.text_encoder(tokenize(pipe.tokenizer, ["cat"] * rows)).last_hidden_state

    def best_of(call: Callable[[], object]) -> float:
        call()
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return round(1000 * min(seconds) / rows, 2)

    def forward() -> Tensor:
        return pipe.unet(latents, times, encoder_hidden_states=states).sample

    pipe.unet.requires_grad_(True)
    both = best_of(lambda: forward().square().mean().backward())
    pipe.unet.zero_grad(set_to_none=True)
    with torch.no_grad():
        alone, decode = best_of(forward), best_of(lambda: pipe.vae.decode(latents).sample)
    torch.set_num_threads(threads)
    return {"rows": rows, "unet_forward": alone, "unet_forward_backward": both, "decode": decode}


def draw_grid(pipe: StableDiffusionPipeline, path: Path, columns: int = 15, copies: int = 2) -> None:
    """Save ``copies`` pictures of each animal: rows of 15 animals, an animal's pictures one above the other.

    Nothing is picked: the seeds count up from 0, first through the animals, then through the copies.
    """
    count = len(ANIMALS)
    pictures = [generate(pipe, ANIMALS, range(copy * count, (copy + 1) * count)) for copy in range(copies)]
    rows = [
        torch.cat(list(images[start : start + columns]), dim=2)
        for start in range(0, len(ANIMALS), columns)
        for images in pictures
    ]
    grid = torch.cat(rows, dim=1).permute(1, 2, 0).contiguous().numpy()
    Image.fromarray(grid).save(path, optimize=True)


def folder_megabytes(folder: Path) -> float:
    """Return the size of all files of a folder in MB."""
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 2)


def measure(
    pipe: StableDiffusionPipeline, judge: Judge, held_out: Pictures, seeds: int, samplers: Sequence[Sampler]
) -> dict[str, Any]:
    """Return everything of the card that is measured on the reloaded, float16-stored weights."""
    return {
        "parameters": {
            name: sum(parameter.numel() for parameter in getattr(pipe, name).parameters())
            for name in ("unet", "text_encoder", "vae")
        },
        "autoencoder": score_autoencoder(pipe, judge, held_out),
        "animals": [score_animals(pipe, judge, seeds, sampler) for sampler in samplers],
        "activities": score_activities(pipe, judge, max(1, seeds // 4)),
        "milliseconds_a_row_one_thread": time_parts(pipe),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write card.json and the README.md made from it into the pipeline's folder."""
    (folder / "card.json").write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")

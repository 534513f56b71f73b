"""Measures emoji-world as it was saved: autoencoder, detectors, and the share of right pictures of each kind."""

import platform
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import diffusers
import torch
import transformers
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor

from benchmarks.pretrain.card import time_parts
from benchmarks.pretrain.emoji_world.captions import captions
from benchmarks.pretrain.emoji_world.facts import KINDS, NUMBERS, RELATIONS
from benchmarks.pretrain.emoji_world.prompts import Record, all_facts, prompt_sets, record
from benchmarks.pretrain.emoji_world.render import shown
from benchmarks.pretrain.emoji_world.scenes import CAPTIONED_SLOTS, Facts, World
from benchmarks.pretrain.emoji_world.vae import psnr, reconstruct
from benchmarks.pretrain.pipeline import generate
from benchmarks.pretrain.vae import to_bytes
from diffusion_gym.rewards.geneval import examine, judge, read_request
from diffusion_gym.rewards.models.detection import Detector

Detectors = dict[str, Detector]

#: Steps, eta and guidance of each row of the card; the first is the project's default.
SAMPLERS = sorted(product((10, 20), (1.0, 0.0), (1.0, 2.0)), key=lambda one: (one[2], -one[1], one[0]))


SCENES = 500
"""Held-out scenes that keep their captions, and as many that do not, on which the detectors are measured."""


def verdicts_of(detector: Detector, images: Tensor, records: Sequence[Record]) -> list[bool]:
    """Return whether each picture, (n, 3, 64, 64) uint8, shows what its record asks, as a detector sees it."""
    requests = [read_request(one["prompt"], one) for one in records]
    return [verdict.right for verdict in examine(images, requests, detector, chunk_size=32)]


def share(hits: Sequence[bool]) -> float:
    """Return the share of true entries, rounded to four digits."""
    return round(mean(map(float, hits)), 4)


def score_renders(world: World, detectors: Detectors, vae: torch.nn.Module, rows: int) -> dict[str, Any]:
    """Compare each detector's verdicts with the truth, on renders that keep their captions and on ones that do not."""
    torch.manual_seed(123_456)
    known = {one["prompt"]: one for kind in KINDS for one in (record(kind, facts) for facts in all_facts(kind))}
    pictures, truths, records = [], [], []
    slips = world.slips
    for slip in (0.0, 1.0):
        world.slips = torch.full_like(slips, slip)
        scenes, caption = world.captioned(rows)
        found, drawn = shown(scenes, world.sprites), world.draw(scenes)
        for index, text in enumerate(captions()[place] for place in caption.tolist()):
            if text in known:
                pictures.append(drawn[index])
                truths.append(judge(found[index], read_request(text, known[text])).right)
                records.append(known[text])
    world.slips = slips
    renders = torch.stack(pictures)
    copies = torch.cat([reconstruct(vae, part) for part in renders.split(128)])
    result: dict[str, Any] = {"scenes": len(renders), "truly_right": share(truths)}
    result["psnr_db"] = round(psnr(renders, copies), 2)
    for name, detector in detectors.items():
        for what, images in (("renders", renders), ("reconstructions", copies)):
            verdicts = verdicts_of(detector, to_bytes(images), records)
            agree = [seen == true for seen, true in zip(verdicts, truths, strict=True)]
            result[f"{name}_right_on_{what}"] = share(agree)
    return result


def score_counts(world: World, detectors: Detectors, rows: int) -> dict[str, Any]:
    """Return each detector's share of counting prompts found right, by the number shown; all of them are right."""
    torch.manual_seed(234_567)
    result: dict[str, Any] = {"scenes_of_each": rows}
    for number, _ in enumerate(NUMBERS, start=1):
        first, second, _ = world.asked_facts(rows)
        objects = torch.stack([first, *[first] * (CAPTIONED_SLOTS - 1)], dim=1)
        facts = Facts(objects, torch.zeros_like(objects), torch.full_like(first, number), second % len(RELATIONS))
        images = to_bytes(world.draw(world.placed(facts)))
        records = [record("counting", (index, number - 1)) for index in first.tolist()]
        for name, detector in detectors.items():
            result.setdefault(name, []).append(share(verdicts_of(detector, images, records)))
    return result


def score_prompts(
    pipe: StableDiffusionPipeline, detectors: Detectors, records: Sequence[Record], seeds: int, sampler: Sequence[float]
) -> dict[str, Any]:
    """Generate ``seeds`` pictures of each prompt, none picked; return the share that each detector calls right."""
    steps, eta, guidance = sampler
    right: dict[str, list[bool]] = {name: [] for name in detectors}
    rows = [(seed * 100_000 + index, one) for seed in range(seeds) for index, one in enumerate(records)]
    for start in range(0, len(rows), 64):
        part = rows[start : start + 64]
        prompts, numbers = [one["prompt"] for _, one in part], [number for number, _ in part]
        images = generate(pipe, prompts, numbers, int(steps), eta, guidance)
        for name, detector in detectors.items():
            right[name] += verdicts_of(detector, images, [one for _, one in part])
    result: dict[str, Any] = {"steps": steps, "eta": eta, "guidance": guidance, "images": len(rows)}
    kinds = [kind for kind in KINDS if any(one["tag"] == kind for one in records)]
    for name, verdicts in right.items():
        pairs = [(one["tag"], verdict) for (_, one), verdict in zip(rows, verdicts, strict=True)]
        by_kind = {kind: share([verdict for tag, verdict in pairs if tag == kind]) for kind in kinds}
        result[name] = {**by_kind, "mean": round(mean(by_kind.values()), 4)}
    return result


def measure(pipe: StableDiffusionPipeline, world: World, detectors: Detectors, seeds: int) -> dict[str, Any]:
    """Return everything of the card that is measured on the reloaded weights."""
    sets = prompt_sets()
    few = max(1, seeds // 4)
    parts = {
        "unet": pipe.unet,
        "text_encoder": pipe.text_encoder,
        "vae": pipe.vae,
        **{name: one.model for name, one in detectors.items()},
    }
    rest = {name: records for name, records in sets.items() if name != "benchmark"}
    return {
        "parameters": {name: sum(value.numel() for value in part.parameters()) for name, part in parts.items()},
        "renders": score_renders(world, detectors, pipe.vae, SCENES),
        "counts": score_counts(world, detectors, SCENES),
        "benchmark": [
            score_prompts(pipe, detectors, sets["benchmark"], few if index else seeds, sampler)
            for index, sampler in enumerate(SAMPLERS)
        ],
        "sets": {name: score_prompts(pipe, detectors, some, few, SAMPLERS[0]) for name, some in rest.items()},
        "milliseconds_per_row_one_thread": time_parts(pipe, rows=32),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
            "transformers": transformers.__version__,
        },
    }


def draw_grid(pipe: StableDiffusionPipeline, path: Path, columns: int = 12) -> None:
    """Save two rows of pictures of each kind at the default sampler, of prompts spread over the benchmark."""
    prompts = []
    for kind in KINDS:
        texts = [one["prompt"] for one in prompt_sets()["benchmark"] if one["tag"] == kind]
        prompts += [texts[index * len(texts) // (2 * columns) % len(texts)] for index in range(2 * columns)]
    images = generate(pipe, prompts, range(len(prompts)))
    rows = [torch.cat(list(images[start : start + columns]), dim=2) for start in range(0, len(images), columns)]
    Image.fromarray(torch.cat(rows, dim=1).permute(1, 2, 0).contiguous().numpy()).save(path, optimize=True)

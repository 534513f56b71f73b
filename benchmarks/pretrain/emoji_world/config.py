"""The settings of ``diffusion-gym pretrain emoji-world``; importable without torch."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Stage:
    """How long and how fast one part is trained."""

    steps: int
    """Maximum number of optimiser steps."""
    batch: int
    """Rows per step."""
    lr: float
    """Peak learning rate, reached after the first 3 %, then a cosine decay to a hundredth of it."""
    seconds: float = math.inf
    """Maximum seconds of training; the decay follows whichever limit is nearer."""
    average: float = 0.999
    """Decay of the weights' moving average, which is kept at the end."""

    def progress(self, step: int, seconds: float) -> float:
        """Return how much of the training is done, from 0 to 1."""
        return min(1.0, max(step / self.steps, seconds / self.seconds))

    def lr_at(self, progress: float) -> float:
        """Return the learning rate at a share of the training."""
        warm = 0.03
        if progress < warm:
            return self.lr * (0.02 + 0.98 * progress / warm)
        return self.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * (progress - warm) / (1.0 - warm))))


@dataclass(frozen=True)
class WorldConfig:
    """Train the embedded model emoji-world, which draws scenes of several objects, and its two detectors."""

    details: ClassVar[tuple[str, ...]] = ("vae", "denoiser", "detector", "judge", "start", "note")

    only: Literal["all", "generator", "detector", "judge", "folder"] = "all"
    """What to make: autoencoder and denoiser, one of the detectors, the folder from all of them, or everything."""
    output: Path = Path("diffusion_gym/assets/emoji-world")
    """Folder of the finished pipeline, its detectors, prompts and card; replaced as a whole at the end."""
    work: Path = Path("runs/pretrain-world")
    """Folder of the stages' weights. Finished stages are not run again, an interrupted one resumes."""
    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """The Noto Color Emoji font (Debian package fonts-noto-color-emoji); not needed once sprites.npz is in work."""
    device: str = "cpu"
    """Where to train: cpu or cuda."""
    seed: int = 0
    """Seed of the initial weights, the pictures and the noise."""
    threads: int = 2
    """CPU threads."""
    pool: int = 60_000
    """Pictures whose latents the denoiser learns from."""
    vae: Stage = field(default_factory=lambda: Stage(steps=20_000, batch=16, lr=2e-3))
    """Training of the autoencoder."""
    denoiser: Stage = field(default_factory=lambda: Stage(steps=20_000, batch=64, lr=1e-3))
    """Training of the UNet and text encoder."""
    detector: Stage = field(default_factory=lambda: Stage(steps=20_000, batch=64, lr=6e-4))
    """Training of the reward's detector."""
    judge: Stage = field(default_factory=lambda: Stage(steps=20_000, batch=64, lr=1e-3))
    """Training of the gold judge."""
    start: Path | None = None
    """Weights from which the UNet and text encoder start: the denoiser.safetensors of another work folder, next to its
    scaling.json."""
    seeds: int = 4
    """Generated pictures per prompt in the card, with seeds 0, 1, ..."""
    note: str = ""
    """A sentence for the card on how these weights were made."""

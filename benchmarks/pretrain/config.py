"""The settings of ``python -m benchmarks pretrain``; importable without torch."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage is trained."""

    steps: int
    """Optimiser steps."""
    batch: int
    """Rows per step."""
    lr: float
    """Peak learning rate, reached after a warm-up; then a cosine decay to a hundredth of it."""
    ema_decay: float = 0.0
    """Decay of the weights' moving average, which is kept at the end; 0 keeps the last weights."""

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step: a linear warm-up over 3 % of the steps, then the cosine."""
        warm_up = max(1, round(0.03 * self.steps))
        if step < warm_up:
            return self.lr * (step + 1) / warm_up
        progress = (step - warm_up) / max(1, self.steps - warm_up)
        return self.lr * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * progress)))


@dataclass(frozen=True)
class RewardModelsConfig:
    """Training of the small reward models, on the pictures of the embedded model's world."""

    output: Path = Path("diffusion_gym/assets/emoji-rewards")
    """Folder of the finished reward models and their card; replaced as a whole at the end."""
    copies: int = 20_000
    """Training pictures that are also shown as the embedded model's autoencoder reconstructs them."""
    rated: int = 4_000
    """Renders, and as many reconstructions of others, on whose embeddings the aesthetic head is fitted."""
    clip: Schedule = field(default_factory=lambda: Schedule(steps=2400, batch=96, lr=2e-3))
    """Training of the CLIP."""
    aesthetic: Schedule = field(default_factory=lambda: Schedule(steps=800, batch=256, lr=1e-3))
    """Training of the aesthetic head."""
    tower: Schedule = field(default_factory=lambda: Schedule(steps=3000, batch=80, lr=2e-3))
    """Training of the captioner's vision tower as a classifier."""
    captioner: Schedule = field(default_factory=lambda: Schedule(steps=600, batch=64, lr=1e-3))
    """Training of the whole captioner."""
    bert: Schedule = field(default_factory=lambda: Schedule(steps=600, batch=64, lr=1e-3))
    """Training of the encoder for BERTScore."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("copies", "rated"):
            if getattr(self, name) < 1:
                raise ValueError(f"rewards.{name} must be at least 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class PretrainConfig:
    """Train emoji-animals and its reward models again. For the other embedded model: pretrain emoji-world."""

    details: ClassVar[tuple[str, ...]] = ("vae", "judge", "denoiser", "rewards")

    only: Literal["all", "generator", "reward-models"] = "all"
    """What to make: the pipeline with its judge, the reward models of the pipeline in --output, or both."""

    output: Path = Path("diffusion_gym/assets/emoji-animals")
    """Folder of the finished pipeline and its card, replaced as a whole at the end. In a clone: the shipped model."""
    judge_output: Path = Path("benchmarks/assets/judge.safetensors")
    """File of the judge's weights, replaced at the end. In a clone: the shipped one."""
    work: Path = Path("runs/pretrain")
    """Folder of the stages' results. Finished stages are not run again, an interrupted one resumes."""
    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """The Noto Color Emoji font (Debian package fonts-noto-color-emoji)."""
    seed: int = 0
    """Seed of the pictures, the initial weights, the batches and the noise."""
    threads: int = 2
    """CPU threads for training and processes for rendering; changes results by rounding."""
    pictures: int = 60_000
    """Training pictures, rendered once and kept in memory (12 kB each)."""
    held_out: int = 2_000
    """Pictures from another seed, on which the autoencoder and the judge are measured."""
    activity_share: float = 0.35
    """Share of the pictures that show an activity."""
    vae: Schedule = field(default_factory=lambda: Schedule(steps=5500, batch=16, lr=1.2e-3))
    """Training of the autoencoder."""
    judge: Schedule = field(default_factory=lambda: Schedule(steps=700, batch=128, lr=2e-3))
    """Training of the judge."""
    denoiser: Schedule = field(default_factory=lambda: Schedule(steps=5400, batch=64, lr=1e-3, ema_decay=0.999))
    """Training of the UNet and text encoder. The shipped run was shortened while it ran; see the note in its card."""
    rewards: RewardModelsConfig = field(default_factory=RewardModelsConfig)
    """The reward models."""
    seeds: int = 8
    """Generated pictures per animal in the cards, with seeds 0, 1, ..."""
    all_samplers: bool = True
    """Report other samplers besides the default one."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("threads", "pictures", "held_out", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0.0 <= self.activity_share <= 1.0:
            raise ValueError(f"activity_share must lie in [0, 1], got {self.activity_share}.")

    @classmethod
    def quick(cls, folder: Path) -> "PretrainConfig":
        """Return a configuration that runs every stage for a few steps: it tests the code and draws only noise."""
        few = Schedule(steps=3, batch=16, lr=1e-3)
        return cls(
            output=folder / "model",
            judge_output=folder / "judge.safetensors",
            work=folder / "work",
            threads=1,
            pictures=200,
            held_out=50,
            vae=Schedule(steps=3, batch=8, lr=1e-3),
            judge=few,
            denoiser=Schedule(steps=3, batch=16, lr=1e-3, ema_decay=0.9),
            rewards=RewardModelsConfig(
                output=folder / "rewards",
                copies=20,
                rated=20,
                clip=few,
                aesthetic=few,
                tower=few,
                captioner=few,
                bert=few,
            ),
            seeds=1,
            all_samplers=False,
        )

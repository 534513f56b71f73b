"""The settings of ``python -m benchmarks pretrain``; importable without torch's companions."""

from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.pretrain.training import Schedule


@dataclass(frozen=True)
class PretrainConfig:
    """Train the embedded model emoji-animals from nothing; the defaults made the shipped weights."""

    output: Path = Path("diffusion_gym/assets/emoji-animals")
    """Folder of the finished pipeline and its card; replaced as a whole at the end. From a clone: the shipped model."""
    judge_output: Path = Path("benchmarks/assets/judge.safetensors")
    """File of the judge's weights; replaced at the end. From a clone: the shipped one."""
    work: Path = Path("runs/pretrain")
    """Folder of the stages' results; a stage whose result is there is not run again, an interrupted one resumes."""
    font: Path = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    """The Noto Color Emoji font (Debian package fonts-noto-color-emoji)."""
    seed: int = 0
    """Seed of the pictures, the initial weights, the batches and the noise."""
    threads: int = 2
    """CPU threads for training and processes for rendering; another number changes results by rounding."""
    pictures: int = 60_000
    """Training pictures, rendered once and held in memory: 12 kB each."""
    held_out: int = 2_000
    """Pictures of another seed on which the autoencoder and the judge are measured."""
    activity_share: float = 0.35
    """Share of the pictures that show an activity."""
    vae: Schedule = field(default_factory=lambda: Schedule(steps=5500, batch=16, lr=1.2e-3))
    """Training of the autoencoder."""
    judge: Schedule = field(default_factory=lambda: Schedule(steps=700, batch=128, lr=2e-3))
    """Training of the judge."""
    denoiser: Schedule = field(default_factory=lambda: Schedule(steps=5400, batch=64, lr=1e-3, ema_decay=0.999))
    """Training of the UNet and text encoder; the shipped run was shortened under way, see the note in its card."""
    seeds: int = 8
    """Pictures an animal in the card; the seeds are 0, 1, ..."""
    all_samplers: bool = True
    """Report other samplers beside the default one."""

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("threads", "pictures", "held_out", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not 0.0 <= self.activity_share <= 1.0:
            raise ValueError(f"activity_share must lie in [0, 1], got {self.activity_share}.")

    @classmethod
    def quick(cls, output: Path, judge_output: Path, work: Path) -> "PretrainConfig":
        """Return a configuration that runs every stage for a few steps: it tests the code and draws only noise."""
        return cls(
            output=output,
            judge_output=judge_output,
            work=work,
            threads=1,
            pictures=200,
            held_out=50,
            vae=Schedule(steps=3, batch=8, lr=1e-3),
            judge=Schedule(steps=3, batch=16, lr=1e-3),
            denoiser=Schedule(steps=3, batch=16, lr=1e-3, ema_decay=0.9),
            seeds=1,
            all_samplers=False,
        )

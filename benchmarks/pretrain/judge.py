"""The judge: a classifier trained on renders only, which says what animal and activity a generated picture shows."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from algorithms.checkpoints.published import write_atomically
from benchmarks.pretrain.training import Schedule, mixed_precision, optimise, step_generator
from diffusion_gym.prompts import ACTIVITIES, ANIMALS

#: The shipped weights, float16.
JUDGE_FILE = Path(__file__).resolve().parents[1] / "assets" / "judge.safetensors"


class Verdict(NamedTuple):
    """What the judge sees in n pictures."""

    animal: Tensor
    """(n,) int64 index into ``ANIMALS``."""
    activity: Tensor
    """(n,) int64, 0 for none, else 1 + index into ``ACTIVITIES``."""


def _block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """Return convolution, normalisation and activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.GroupNorm(8, outputs), nn.SiLU()
    )


class Judge(nn.Module):
    """A plain convolutional classifier with two heads, 0.4 M parameters."""

    def __init__(self) -> None:
        """Build the untrained classifier."""
        super().__init__()
        self.features = nn.Sequential(
            _block(3, 24, 2), _block(24, 64, 2), _block(64, 64, 1), _block(64, 128, 2), _block(128, 128, 1),
            _block(128, 128, 2),
        )  # fmt: skip
        self.animal = nn.Linear(2 * 128, len(ANIMALS))
        self.activity = nn.Linear(2 * 128, 1 + len(ACTIVITIES))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (n, 45) and (n, 4) of pictures (n, 3, 64, 64) in [-1, 1]."""
        maps = self.features(pixels)
        pooled = torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)
        return self.animal(pooled), self.activity(pooled)

    @torch.no_grad()
    def recognise(self, images: Tensor, batch: int = 256) -> Verdict:
        """Return what the pictures show; ``images``: (n, 3, 64, 64) uint8 on any device."""
        device = self.animal.weight.device
        logits = [self(part.to(device).float() / 127.5 - 1.0) for part in images.split(batch)]
        animal = torch.cat([first.argmax(dim=1) for first, _ in logits])
        activity = torch.cat([second.argmax(dim=1) for _, second in logits])
        return Verdict(animal.cpu(), activity.cpu())


def spoil(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Blur and add noise to pictures (n, 3, h, w) in [-1, 1], by an amount of its own for each: 0 to clearly visible.

    Generated pictures are softer than renders; without this the judge would reject softness instead of animals.
    """
    amount = torch.rand(len(pixels), 1, 1, 1, generator=generator)
    blurred = functional.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    blurred = functional.avg_pool2d(blurred, 3, stride=1, padding=1, count_include_pad=False)
    level = 0.15 * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    return torch.lerp(pixels, blurred, amount) + level * torch.randn(pixels.shape, generator=generator)


def train_judge(
    judge: Judge,
    images: NDArray[np.uint8],
    animal: NDArray[np.int64],
    activity: NDArray[np.int64],
    schedule: Schedule,
    seed: int,
    checkpoint: Path,
) -> float:
    """Train in place on renders (n, 3, 64, 64) and their labels (n,), never on generations; returns seconds."""

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        rows = torch.randint(len(images), (schedule.batch,), generator=generator)
        pixels = spoil(torch.from_numpy(images[rows.numpy()]).float() / 127.5 - 1.0, generator)
        with mixed_precision():
            animal_logits, activity_logits = judge(pixels)
        animal_loss = functional.cross_entropy(animal_logits.float(), torch.from_numpy(animal[rows.numpy()]))
        return animal_loss + functional.cross_entropy(activity_logits.float(), torch.from_numpy(activity[rows.numpy()]))

    return optimise(judge, loss, schedule, checkpoint)


def save_judge(judge: Judge, path: Path) -> None:
    """Write the weights in float16."""
    write_atomically(path, save({name: value.half().contiguous() for name, value in judge.state_dict().items()}))


def load_judge(path: Path = JUDGE_FILE) -> Judge:
    """Return the judge with the weights of ``path`` (the shipped ones by default), in float32, ready to recognise.

    Raises:
        ValueError: the file is missing.
    """
    if not path.is_file():
        raise ValueError(f"no judge weights at {str(path)!r}; `python -m benchmarks pretrain` makes them.")
    judge = Judge()
    judge.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return judge.eval()

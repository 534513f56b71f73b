"""Draws docs/hacked-noise.png, hacked-empty.png, hacked-one-look.png and hacked-one-kind.png of runs that were hacked.

Run in the repository's root, after ``diffusion-gym compare --suite modern --algorithms branched --seeds 0`` and
``diffusion-gym compare --suite hacking --tasks mixture-linear --algorithms rwr --seeds 0``::

    python docs/tools/hacked_pictures.py runs/modern runs/hacking

The first three are cut from evaluation pictures, from the same noise: after 0, 512, 1,024 and 2,048 reward queries.
The last is the density of the exact mixture in the plane: at the start, the best distribution, and at the run's end.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from algorithms import RWR
from benchmarks.runs.pictures import grid, read_grid
from diffusion_gym.models.gaussian_mixture import GaussianMixture

DOCS = Path(__file__).parents[1]
ITERATIONS = (0, 16, 32, 64)
ANIMALS = 10  # columns of an evaluation's picture
PLACES = (0, 1, 7, 10, 11, 17)  # three animals, each from two noises
TASKS = {"noise": "incompressibility", "empty": "compressibility", "one-look": "aesthetic"}
COLOURS = 96  # keeps a picture below 60 kB
SIDE, REACH = 150, 3.0  # pixels of a density, and the plane's part that it shows
FRAME = 160  # grey of the line around it


def main(modern: Path, hacking: Path) -> None:
    """Draw the four pictures."""
    for name, task in TASKS.items():
        parts = []
        for iteration in ITERATIONS:
            file = modern / task / "branched" / "seed-0" / "images" / f"{iteration:06d}.png"
            images = read_grid(file, 2 * ANIMALS, ANIMALS, (64, 64))
            parts.append(grid(images[list(PLACES)], len(PLACES) // 2))
        write(beside(parts), f"hacked-{name}.png")
    algorithm = RWR.load(hacking / "mixture-linear" / "rwr" / "seed-0" / "checkpoint.zip")
    start, reward = algorithm.mdp.model.target, algorithm.mdp.reward  # type: ignore[attr-defined]
    best = start.tilt_linear(reward.direction, 1.0)
    end = algorithm.policy.whole_denoiser().mixture()  # type: ignore[operator]
    write(beside([density(found) for found in (start, best, end)]), "hacked-one-kind.png")


def density(mixture: GaussianMixture) -> Image.Image:
    """Return a mixture's density in the plane, black where it is highest."""
    axis = torch.linspace(-REACH, REACH, SIDE, dtype=torch.float64)
    points = torch.stack(torch.meshgrid(-axis, axis, indexing="ij")[::-1], dim=-1)  # the first coordinate to the right
    values: Tensor = mixture.log_prob(points.flatten(0, 1)).exp().view(SIDE, SIDE)
    grey = (255 * (1 - (values / values.max()).sqrt())).round().to(torch.uint8)
    grey[[0, -1]], grey[:, [0, -1]] = FRAME, FRAME
    return Image.fromarray(grey.numpy()).convert("RGB")


def beside(parts: list[Image.Image]) -> Image.Image:
    """Return pictures of one size in a row, on white."""
    gap = 12
    width, height = parts[0].size
    sheet = Image.new("RGB", (len(parts) * (width + gap) - gap, height), "white")
    for place, part in enumerate(parts):
        sheet.paste(part, (place * (width + gap), 0))
    return sheet


def write(picture: Image.Image, name: str) -> None:
    """Write a picture with few colours."""
    picture.quantize(COLOURS).save(DOCS / name, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

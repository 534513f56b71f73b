"""What the reward models are trained on: renders and the autoencoder's copies of them, spoiled and recoloured."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.pretrain.judge import spoil
from benchmarks.pretrain.vae import to_model_range
from benchmarks.pretrain.world import Pictures

COPY_SHARE = 0.5
"""Share of the rows that have a copy for which the copy is shown; generated pictures resemble copies."""

SATURATION_STD = 0.4
"""Standard deviation of the logarithm of the factor on a picture's distance from grey."""

# The weights of ITU-R BT.601, by which Pillow turns RGB into grey.
_LUMA = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


@dataclass(frozen=True)
class Views:
    """Rendered pictures, the first of them also as the embedded model's autoencoder gives them back."""

    pictures: Pictures
    """The renders and what they show."""
    copies: NDArray[np.uint8]
    """(m, 3, 64, 64): encoded and decoded copies of the first m renders."""

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return rows (count,) of ``pictures`` and views of them (count, 3, 64, 64) in [-1, 1], float32."""
        rows = torch.randint(len(self.pictures.images), (count,), generator=generator)
        copied = (torch.rand(count, generator=generator) < COPY_SHARE) & (rows < len(self.copies))
        images = self.pictures.images[rows.numpy()]
        images[copied.numpy()] = self.copies[rows[copied].numpy()]
        return rows, spoil(recolour(to_model_range(images), generator), generator).clamp(-1.0, 1.0)


def recolour(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Make each picture (n, 3, h, w) in [-1, 1] paler or more saturated by a factor of its own."""
    grey = (pixels * _LUMA).sum(dim=1, keepdim=True)
    factor = torch.exp(SATURATION_STD * torch.randn(len(pixels), 1, 1, 1, generator=generator))
    return (grey + factor * (pixels - grey)).clamp(-1.0, 1.0)


def normalise(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Turn pictures (n, 3, h, w) in [-1, 1] into a tower's input: in [0, 1], less ``mean``, over ``std``."""
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    return ((pixels + 1.0) / 2.0 - shift) / scale

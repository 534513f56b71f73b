"""The glyphs of the objects at every size in which scenes show them, drawn once from the emoji font."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.pretrain.emoji_world.facts import OBJECTS
from benchmarks.pretrain.world import glyph

SIZES = tuple(range(18, 46, 2))
"""The sizes of objects in pixels: the longer side of the glyph."""

_INK = 80
"""Opacity, of 255, from which a pixel belongs to the object's box."""


@dataclass(frozen=True)
class Sprites:
    """The atlas of all objects and sizes."""

    pixels: Tensor
    """(objects, sizes, 44, 44, 5) uint8: red, green, blue, opacity, and the brightness by which a tint is shaded."""
    boxes: Tensor
    """(objects, sizes, 4) int64: left, top, right and bottom of the ink in the size x size square."""

    def to(self, device: torch.device) -> "Sprites":
        """Return the atlas on a device."""
        return Sprites(self.pixels.to(device), self.boxes.to(device))

    def save(self, path: Path) -> None:
        """Write the atlas to one compressed ``.npz`` file."""
        np.savez_compressed(path, pixels=self.pixels.numpy(), boxes=self.boxes.numpy())

    @classmethod
    def load(cls, path: Path) -> "Sprites":
        """Read what :meth:`save` wrote."""
        with np.load(path) as arrays:
            return cls(torch.from_numpy(arrays["pixels"]), torch.from_numpy(arrays["boxes"]))

    @classmethod
    def draw(cls, font: Path) -> "Sprites":
        """Draw all glyphs.

        Raises:
            ValueError: the font file is missing.
        """
        if not font.is_file():
            raise ValueError(f"no font file {font.name!r}; install Noto Color Emoji (Debian: fonts-noto-color-emoji).")
        widest = SIZES[-1]
        pixels = np.zeros((len(OBJECTS), len(SIZES), widest, widest, 5), np.uint8)
        boxes = np.zeros((len(OBJECTS), len(SIZES), 4), np.int64)
        for index, thing in enumerate(OBJECTS):
            sprite = glyph(thing.glyph, font)
            shaded = _shades(sprite)
            for place, size in enumerate(SIZES):
                square = _squared(sprite, size)
                pixels[index, place, :size, :size, :4] = square
                pixels[index, place, :size, :size, 4] = _squared(shaded, size)[..., 0]
                rows, columns = np.nonzero(square[..., 3] > _INK)
                boxes[index, place] = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        return cls(torch.from_numpy(pixels), torch.from_numpy(boxes))


def _shades(sprite: Image.Image) -> Image.Image:
    """Return the glyph's brightness, stretched so that its darkest parts are black and its lightest white."""
    array = np.asarray(sprite, dtype=np.float32)
    grey, ink = array[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32), array[..., 3] > 127
    low, high = np.percentile(grey[ink], [3, 90])
    shade = np.clip((grey - low) / max(float(high - low), 1.0), 0.0, 1.0) * 255
    return Image.fromarray(np.dstack([shade] * 3 + [array[..., 3]]).astype(np.uint8))


def _squared(sprite: Image.Image, size: int) -> np.ndarray:
    """Return the sprite in the middle of a square, its longer side as long as the square's."""
    scale = size / max(sprite.size)
    small = sprite.resize([max(1, round(side * scale)) for side in sprite.size], Image.Resampling.BOX)
    square = Image.new("RGBA", (size, size))
    square.paste(small, ((size - small.width) // 2, (size - small.height) // 2))
    return np.asarray(square)

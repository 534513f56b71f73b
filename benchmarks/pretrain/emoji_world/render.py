"""Draws scenes as 64 x 64 pictures, many at once, on any device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.pretrain.emoji_world.facts import COLOURS, NAMES
from benchmarks.pretrain.emoji_world.sprites import SIZES, Sprites
from diffusion_gym.rewards.models.detection import Found

SIDE = 64
"""Height and width of a picture in pixels."""


@dataclass(frozen=True)
class Scenes:
    """What n pictures show: up to as many objects each as there are slots, and a background."""

    objects: Tensor
    """(n, slots) int64 index into ``OBJECTS``; -1 where a slot is empty."""
    colours: Tensor
    """(n, slots) int64: 0 for an object's own colours, else 1 + index into ``COLOURS``."""
    sizes: Tensor
    """(n, slots) int64 index into ``SIZES``."""
    left: Tensor
    """(n, slots) int64 first column of the object's square."""
    top: Tensor
    """(n, slots) int64 first row of the object's square."""
    flipped: Tensor
    """(n, slots) bool: mirrored."""
    ends: Tensor
    """(n, 2, 3) float32 RGB in [0, 255]: the background's colours at its two ends; equal where it is plain."""
    angle: Tensor
    """(n,) float32 direction of the background's gradient."""

    def boxes(self, sprites: Sprites) -> Tensor:
        """Return left, top, right and bottom of each object's ink in pixels, (n, slots, 4) float32."""
        ink = sprites.boxes[self.objects.clamp(min=0), self.sizes]
        size = _sizes(self.sizes)
        first, last = ink[..., 0], ink[..., 2]
        first, last = torch.where(self.flipped, size - last, first), torch.where(self.flipped, size - first, last)
        corners = [first + self.left, ink[..., 1] + self.top, last + self.left, ink[..., 3] + self.top]
        return torch.stack(corners, dim=-1).float().clamp(0, SIDE)


def _sizes(index: Tensor) -> Tensor:
    """Return the sizes in pixels of indices into ``SIZES``, which are evenly spaced."""
    return SIZES[0] + index * (SIZES[1] - SIZES[0])


def _background(scenes: Scenes) -> Tensor:
    """Return the backgrounds, (n, 64, 64, 3) in [0, 255]."""
    place = torch.arange(SIDE, device=scenes.angle.device) - (SIDE - 1) / 2
    across = scenes.angle.cos()[:, None, None] * place + scenes.angle.sin()[:, None, None] * place[:, None]
    mix = (0.5 + across / 90.0)[..., None]
    return torch.lerp(scenes.ends[:, 0, None, None], scenes.ends[:, 1, None, None], mix)


def tints(device: torch.device) -> Tensor:
    """Return the colour of each index into ``Scenes.colours``, (1 + colours, 3) float32; the first is not used."""
    return torch.tensor([(0, 0, 0), *COLOURS.values()], dtype=torch.float32, device=device)


def render(scenes: Scenes, sprites: Sprites, palette: Tensor) -> Tensor:
    """Draw the scenes, (n, 3, 64, 64) float32 in [-1, 1]; later slots cover earlier ones. ``palette``: `tints`."""
    place = torch.arange(SIDE, device=scenes.objects.device)
    picture = _background(scenes)
    for slot in range(scenes.objects.shape[1]):
        index, size = scenes.objects[:, slot], _sizes(scenes.sizes[:, slot])[:, None]
        rows, columns = place - scenes.top[:, slot, None], place - scenes.left[:, slot, None]
        inside = ((rows >= 0) & (rows < size))[:, :, None] & ((columns >= 0) & (columns < size))[:, None]
        columns = torch.where(scenes.flipped[:, slot, None], size - 1 - columns, columns)
        rows, columns = rows.clamp(0, SIZES[-1] - 1), columns.clamp(0, SIZES[-1] - 1)
        every = (slice(None), None, None)
        known, scale = index.clamp(min=0)[every], scenes.sizes[:, slot][every]
        found = sprites.pixels[known, scale, rows[:, :, None], columns[:, None]].float()
        colour = scenes.colours[:, slot]
        tint, shade = palette[colour][every], found[..., 4:] / 255.0
        tinted = torch.lerp(0.3 * tint, tint + 0.22 * (255.0 - tint), shade)
        ink = torch.where((colour > 0)[:, None, None, None], tinted, found[..., :3])
        opacity = found[..., 3:4] / 255.0 * (inside & (index >= 0)[every])[..., None]
        picture = torch.lerp(picture, ink, opacity)
    return (picture.round().permute(0, 3, 1, 2) / 127.5 - 1.0).contiguous()


def shown(scenes: Scenes, sprites: Sprites) -> list[list[Found]]:
    """Return what scenes truly show."""
    colours, boxes = ["", *COLOURS], scenes.boxes(sprites).tolist()
    pictures = []
    for row in zip(scenes.objects.tolist(), scenes.colours.tolist(), boxes, strict=True):
        objects = [one for one in zip(*row, strict=True) if one[0] >= 0]
        pictures.append([Found(NAMES[index], colours[colour], tuple(box)) for index, colour, box in objects])
    return pictures

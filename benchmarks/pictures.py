"""Picture grids from image tensors."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor


def check_picture_file(path: Path) -> None:
    """Raise ValueError where a picture could not be written, before it is drawn."""
    Image.init()
    if path.suffix.lower() not in Image.EXTENSION:
        raise ValueError(f"a picture's file must end in .png, .jpg or another format of Pillow's, got {str(path)!r}.")


def grid(images: Tensor, columns: int, scale: int = 1, gap: int = 2) -> Image.Image:
    """Lay images out row by row on white.

    Args:
        images: (n, 3, H, W), uint8.
        columns: images a row.
        scale: each pixel becomes scale x scale.
        gap: white pixels between images, before scaling.
    """
    n, _, height, width = images.shape
    rows = -(-n // columns)
    sheet = torch.full((3, rows * (height + gap) - gap, columns * (width + gap) - gap), 255, dtype=torch.uint8)
    for index, image in enumerate(images.cpu()):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def read_grid(path: Path, count: int, columns: int, size: Sequence[int], gap: int = 2) -> Tensor:
    """Read the first images of a grid written at scale 1; (count, 3, H, W), uint8. ``size``: (H, W)."""
    import numpy as np

    sheet = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    height, width = size
    cells = []
    for index in range(count):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        cells.append(sheet[:, top : top + height, left : left + width])
    return torch.stack(cells)

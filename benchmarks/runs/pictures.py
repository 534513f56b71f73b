"""Picture grids from image tensors, and what holds for every picture and plot: the run and the page go without it."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def dispensable(what: str | Path) -> Iterator[None]:
    """Draw, write or read a picture that nothing depends on: where that fails, a warning says so, and all else is done.

    A full disk is no matter of the picture, and is raised.
    """
    try:
        yield
    except Exception as error:
        from algorithms.checkpoints.published import FULL

        if isinstance(error, OSError) and error.errno in FULL:
            raise
        warnings.warn(
            f"{str(what)!r} is left out, for it failed: {type(error).__name__}: {error}. Everything else is there.",
            stacklevel=3,
        )


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
    import torch

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
    import torch

    sheet = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    height, width = size
    cells = []
    for index in range(count):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        cells.append(sheet[:, top : top + height, left : left + width])
    return torch.stack(cells)

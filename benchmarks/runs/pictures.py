"""Picture grids from image tensors; a picture or a plot that fails costs a warning, not the run or the page."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

_GAP = 2


@contextlib.contextmanager
def dispensable(what: str | Path) -> Iterator[None]:
    """Turn an error in drawing, writing or reading a picture into a warning; only a full disk is raised."""
    try:
        yield
    except Exception as error:
        from algorithms.checkpoints.published import FULL

        if isinstance(error, OSError) and error.errno in FULL:
            raise
        warnings.warn(
            f"{str(what)!r} is left out, because it failed: {type(error).__name__}: {error}. Everything else is there.",
            stacklevel=3,
        )


def check_picture_file(path: Path) -> None:
    """Raise ValueError for a file name whose ending is no picture format."""
    Image.init()
    if path.suffix.lower() not in Image.EXTENSION:
        raise ValueError(f"a picture's file must end in .png, .jpg or another format of Pillow's, got {str(path)!r}.")


def grid(images: Tensor, columns: int, scale: int = 1, gap: int = _GAP) -> Image.Image:
    """Lay images out row by row on white.

    Args:
        images: (n, 3, H, W), uint8.
        columns: images per row.
        scale: each pixel becomes scale x scale.
        gap: white pixels between images, before scaling.
    """
    import torch

    n, _, height, width = images.shape
    down, right = height + gap, width + gap
    sheet = torch.full((3, -(-n // columns) * down - gap, columns * right - gap), 255, dtype=torch.uint8)
    for index, image in enumerate(images.cpu()):
        top, left = (index // columns) * down, (index % columns) * right
        sheet[:, top : top + height, left : left + width] = image
    picture = Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy())
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def read_grid(path: Path, count: int, columns: int, size: Sequence[int]) -> Tensor:
    """Read the first images of a grid written at scale 1; (count, 3, H, W), uint8. ``size``: (H, W)."""
    import numpy as np
    import torch

    sheet = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
    height, width = size
    corners = [((i // columns) * (height + _GAP), (i % columns) * (width + _GAP)) for i in range(count)]
    return torch.stack([sheet[:, top : top + height, left : left + width] for top, left in corners])

"""JPEG file size as a reward: compressibility and incompressibility (Black et al. 2023, section 5.1)."""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_THREADS_FROM = 64  # below this many images a pool costs more than it saves


def jpeg_kilobytes(images: Tensor, quality: int = 95) -> Tensor:
    """Return the size of each image as a JPEG file in kB (1,000 bytes).

    Args:
        images: (n, 3, H, W), uint8.
        quality: Pillow's JPEG quality; the paper uses 95.

    Returns:
        (n,), float32, on the images' device.
    """
    arrays = images.permute(0, 2, 3, 1).contiguous().cpu().numpy()

    def size(array: np.ndarray) -> int:
        buffer = io.BytesIO()
        Image.fromarray(array).save(buffer, format="JPEG", quality=quality)
        return buffer.tell()

    if len(arrays) < _THREADS_FROM:
        sizes = [size(array) for array in arrays]
    else:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            sizes = list(pool.map(size, arrays))
    return torch.tensor(sizes, dtype=torch.float32, device=images.device) / 1000


class Compressibility:
    """Minus the JPEG size in kB at quality 95: pictures that compress well score high."""

    name = "compressibility"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return -kB, (n,)."""
        return -jpeg_kilobytes(images)


class Incompressibility:
    """The JPEG size in kB at quality 95: pictures full of detail score high."""

    name = "incompressibility"

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return kB, (n,)."""
        return jpeg_kilobytes(images)

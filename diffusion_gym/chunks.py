"""Forward passes in chunks of one size, so that a row's result does not depend on the number of rows."""

from collections.abc import Callable

import torch
from torch import Tensor


def in_chunks(function: Callable[[Tensor], Tensor], rows: Tensor, size: int) -> Tensor:
    """Apply a function to exactly ``size`` rows at a time, the last ones padded with copies of the last row.

    Kernels depend on the batch's shape. At one size a row's result does not depend on the number of rows, bit for bit,
    and on its place among them at most to rounding: nowhere where the numbers of values in a layer's row are multiples
    of 32, as in pictures.

    Args:
        function: (size, ...) -> (size, ...).
        rows: (n, ...), n >= 1.
        size: rows at a time.

    Returns:
        (n, ...), what the function made of the rows.
    """
    results = []
    for part in rows.split(size):
        index = torch.arange(size, device=rows.device).clamp(max=len(part) - 1)
        results.append(function(part[index])[: len(part)])
    return torch.cat(results)

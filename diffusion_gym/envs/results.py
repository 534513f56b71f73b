"""What the Markov decision process returns: of a step, and of scoring finished latents."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Scored:
    """Finished images and their rewards.

    Attributes:
        images: (n, 3, H, W), uint8.
        rewards: (n,), float32.
        parts: of a combined reward, name -> (n,), float32: each reward's own scores.
    """

    images: Tensor
    rewards: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Transitions:
    """What one step of some rows gave.

    Attributes:
        rewards: (n,), float32; 0 for rows that did not finish.
        finished: (n,), bool, on the CPU.
        images: (number finished, 3, H, W), uint8, or None where no row finished.
        parts: of a combined reward where rows finished, name -> (number finished,), float32: each reward's own scores.
    """

    rewards: Tensor
    finished: np.ndarray
    images: Tensor | None
    parts: Mapping[str, Tensor] = field(default_factory=dict)

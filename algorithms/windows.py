"""Windows: the few steps of an image that have noise of their own and are trained, the same for a group of images.

Where groups branch, the images of one prompt in a row share their first latents and all noise outside the window. Until
its first step they are one image, which is denoised once; there each draws its own noise. So a group compares what that
noise changed, and its first trained step is one row, whose Gaussian all its images were drawn from.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.chunks import Pass
from diffusion_gym.transitions import Transition


@dataclass(frozen=True)
class Windows:
    """Which steps of each image have noise of their own and are trained.

    Attributes:
        first: (m,), int64, the first step of each image's window, of the m images that are kept on this rank.
        groups: (m,), int64, rising, the group of each image; a group has one window.
        length: steps of a window.
        branched: whether a group is one image until its window's first step, and shares its noise after the window.
        transition: what steps in the window are drawn with; others with the policy's.
    """

    first: Tensor
    groups: Tensor
    length: int
    branched: bool
    transition: Transition

    def shared(self, step: int) -> Tensor | None:
        """Return which images share their noise with their group at this step, (m,), bool; None if none ever does."""
        return ~self.inside(step) if self.branched else None

    def inside(self, step: int) -> Tensor:
        """Return which images have this step in their window, (m,), bool."""
        return (self.first <= step) & (step < self.first + self.length)

    def passes(self, region: slice, step: int, size: int, inside: bool) -> Iterator[Pass]:
        """Yield the forward passes of one step for neighbouring images: of those in their window, or of the others.

        Args:
            region: whole groups; otherwise each part of one is denoised separately.
            step: from 0, the noisiest.
            size: rows per pass.
            inside: which images.
        """
        chosen = (self.inside(step)[region] == inside).nonzero().flatten()
        if not len(chosen):
            return
        images, row = chosen + region.start, self._rows(region, step)[chosen]
        rows, copies = row.unique(return_inverse=True)
        for start in range(0, len(rows), size):
            here = (copies >= start) & (copies < start + size)
            transition = self.transition if inside else None
            yield Pass(rows[start : start + size], images[here], copies[here] - start, transition)

    def num_rows(self, region: slice, step: int, inside: bool = False) -> int:
        """Return how many rows the passes of neighbouring images take: of all, or of those in their window."""
        own = self._rows(region, step) == torch.arange(region.start, region.stop)
        return int((own & self.inside(step)[region] if inside else own).sum())

    def _rows(self, region: slice, step: int) -> Tensor:
        """Return the image whose latents are the row of each image of a region, (k,), int64."""
        leader = torch.searchsorted(self.groups, self.groups[region]).clamp(min=region.start)  # the group's first here
        shared = self.branched & (self.first[region] >= step)
        return torch.where(shared, leader, torch.arange(region.start, region.stop))

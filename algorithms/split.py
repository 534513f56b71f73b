"""Which rank keeps which images of an iteration, and which rows of an update it works on."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from algorithms.distributed import ALONE, Ranks


@dataclass(frozen=True)
class Part:
    """A chunk of an update's rows that one rank works on.

    Attributes:
        rows: (k,), int64, positions among the update's rows.
        images: (k,), int64, the image of each, which lies here.
        weight: factor of its loss. Synchronised gradients are the ranks' mean where the loss's is their sum, so it is
            the number of ranks; 0 for a row that is there only to keep the others company.
        synchronises: whether its backward pass exchanges gradients: the last of the update's.
    """

    rows: Tensor
    images: Tensor
    weight: int
    synchronises: bool


@dataclass(frozen=True)
class Split:
    """n images over the ranks, equally many on each.

    Attributes:
        ranks: that share them.
        owner: (n,), int64, on the CPU: the rank that denoises each image, and trains on it.
    """

    ranks: Ranks
    owner: Tensor

    @classmethod
    def alone(cls, n: int) -> "Split":
        """All n images here."""
        return cls.evenly(ALONE, torch.arange(n))

    @classmethod
    def evenly(cls, ranks: Ranks, order: Tensor) -> "Split":
        """Deal the images out in an order, (n,): so any stretch of it is shared evenly.

        Raises:
            ValueError: the number of ranks does not divide n.
        """
        if len(order) % ranks.size:
            raise ValueError(f"{len(order)} images cannot be shared equally by {ranks.size} ranks.")
        owner = torch.empty(len(order), dtype=torch.long)
        owner[order.cpu()] = torch.arange(len(order)) % ranks.size
        return cls(ranks, owner)

    @property
    def kept(self) -> Tensor:
        """(m,), int64, on the CPU: the images that lie here, in their order."""
        return (self.owner == self.ranks.rank).nonzero().flatten()

    def local(self, images: Tensor) -> Tensor:
        """Return where images (k,), all of them here, lie among those that are kept.

        Raises:
            ValueError: one lies on another rank.
        """
        if self.ranks.size == 1:
            return images
        here = self.owner == self.ranks.rank
        asked = images.cpu()
        if not bool(here[asked].all()):
            raise ValueError(
                f"an image lies on another rank than {self.ranks.rank}; go through an update's rows with parts(), "
                "which gives each rank its own."
            )
        return (here.cumsum(0) - 1)[asked].to(images.device)

    def gather(self, values: Tensor) -> Tensor:
        """Return all ranks' values (n, ...) in the images' order, from those of the images here (m, ...)."""
        if self.ranks.size == 1:
            return values
        order = torch.cat([(self.owner == rank).nonzero().flatten() for rank in range(self.ranks.size)])
        gathered = torch.empty(len(self.owner), *values.shape[1:], dtype=values.dtype, device=values.device)
        gathered[order.to(values.device)] = self.ranks.gather(values)
        return gathered

    def parts(self, images: Tensor, size: int) -> Iterator[Part]:
        """Yield this rank's share of an update's rows, in parts of at most ``size``.

        Every rank yields equally many, so that passes through a module that synchronises meet; a rank without rows left
        works on a row of weight 0. With DDP such a row is also the one whose backward pass synchronises: before it
        every rank can tell whether its own rows' passes succeeded.

        Args:
            images: (k,), int64, the image of each row.
            size: rows of a part.
        """
        owners = self.owner[images.cpu()]
        count = max(1, -(-int(owners.bincount(minlength=self.ranks.size).max()) // size))
        mine = (owners == self.ranks.rank).nonzero().flatten().to(images.device)
        company = mine.new_zeros(1), self.kept[:1].to(images.device), 0
        for number in range(count):
            rows = mine[number * size : (number + 1) * size]
            synchronises = number == count - 1 and not self.ranks.votes
            if len(rows):
                yield Part(rows, images[rows], self.ranks.size, synchronises)
            else:
                yield Part(*company, synchronises)
        if self.ranks.votes:
            yield Part(*company, True)

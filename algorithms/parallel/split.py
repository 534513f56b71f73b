"""Which rank keeps which images of an iteration, and which rows of an update it works on."""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from algorithms.parallel.ranks import ALONE, Ranks

T = TypeVar("T")


@dataclass(frozen=True)
class RowChunk:
    """Rows of an update that one forward pass takes on this rank.

    Attributes:
        rows: (k,), int64, positions among the update's rows.
        images: (k,), int64, each row's image, one of all n; it is kept on this rank.
        weight: multiplies the chunk's loss; see :meth:`Split.in_step`.
    """

    rows: Tensor
    images: Tensor
    weight: int


@dataclass(frozen=True)
class Split:
    """n images over the ranks: image i is sampled, and trained on, by rank ``i % size``.

    Attributes:
        ranks: that share the images.
        n: number of images, a multiple of the number of ranks.
    """

    ranks: Ranks
    n: int

    def __post_init__(self) -> None:
        """Raise ValueError where the number of ranks does not divide n."""
        if self.n % self.ranks.size:
            raise ValueError(f"{self.n} images cannot be shared equally by {self.ranks.size} ranks.")

    @classmethod
    def alone(cls, n: int) -> "Split":
        """Return the split with all n images here."""
        return cls(ALONE, n)

    @functools.cached_property
    def kept(self) -> range:
        """The images that are kept here, in their order."""
        return range(self.ranks.rank, self.n, self.ranks.size)

    def here(self, values: Tensor) -> Tensor:
        """Return the values (m, ...) of the images kept here, from those of all images (n, ...)."""
        return values[self.ranks.rank :: self.ranks.size]

    def local(self, images: Tensor) -> Tensor:
        """Return the positions (k,) of images among those kept here.

        Raises:
            ValueError: an image is kept on another rank.
        """
        if self.ranks.size == 1:
            return images
        if bool((images % self.ranks.size != self.ranks.rank).any()):
            raise ValueError(
                f"an image is kept on another rank than {self.ranks.rank}; go through an update's rows with "
                "row_chunks(), which gives each rank its own."
            )
        return images // self.ranks.size

    def gather(self, values: Tensor) -> Tensor:
        """Return all ranks' values (n, ...) in the images' order, from those of the images kept here. Collective."""
        if self.ranks.size == 1:
            return values
        by_rank = self.ranks.gather(values).unflatten(0, (self.ranks.size, -1))
        return by_rank.transpose(0, 1).flatten(0, 1).contiguous()

    def runs(self, images: range, longest: int, round_size: int, rank: int | None = None) -> list[slice]:
        """Return the positions of images on a rank, as slices that one forward pass takes.

        Args:
            images: neighbours among all n.
            longest: images per slice.
            round_size: images that are sampled side by side; no slice reaches into two rounds.
            rank: this rank if None.
        """
        rank = self.ranks.rank if rank is None else rank
        first, stop = (len(range(rank, bound, self.ranks.size)) for bound in (images.start, images.stop))
        runs = []
        while first < stop:
            end = min(first + longest, stop, (first // round_size + 1) * round_size)
            runs.append(slice(first, end))
            first = end
        return runs

    def row_chunks(self, images: Tensor, size: int) -> Iterator[RowChunk]:
        """Yield this rank's share of an update's rows, at most ``size`` at a time.

        Args:
            images: (k,), int64, the image of each row.
            size: rows per chunk.
        """
        owners = images % self.ranks.size
        mine = (owners == self.ranks.rank).nonzero().flatten().split(size)
        chunks = [(rows, images[rows]) for rows in mine if len(rows)]
        padding = mine[0].new_zeros(1), images.new_full((1,), self.ranks.rank)
        for (rows, kept), weight in self.in_step(chunks, padding):
            yield RowChunk(rows, kept, weight)

    def in_step(self, chunks: Sequence[T], padding: T) -> Iterator[tuple[T, int]]:
        """Yield this rank's chunks (weight 1) and, with sharded weights, padding (weight 0). Collective.

        Every forward pass gathers sharded weights, so all ranks must make equally many passes.

        Args:
            chunks: of this rank.
            padding: the chunk to repeat where this rank has fewer than another.
        """
        most = max(self.ranks.gather_objects(len(chunks))) if self.ranks.sharded else 0
        yield from ((chunk, 1) for chunk in chunks)
        yield from ((padding, 0) for _ in range(most - len(chunks)))

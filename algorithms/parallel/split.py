"""Which rank keeps which images of an iteration, and which rows of an update it works on."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from algorithms.parallel.ranks import ALONE, Ranks


@dataclass(frozen=True)
class Part:
    """A chunk of an update's rows that one rank works on.

    Attributes:
        rows: (k,), int64, positions among the update's rows.
        images: (k,), int64, the image of each, which lies here.
        weight: factor of its loss. Synchronised gradients are the ranks' mean where the loss's is their sum, so it is
            the number of ranks; 0 for a dummy row, which keeps the ranks' passes in step.
        synchronises: whether its backward pass exchanges gradients: the last of the update's.
    """

    rows: Tensor
    images: Tensor
    weight: int
    synchronises: bool


@dataclass(frozen=True)
class Chunk:
    """Transitions of one step that were sampled in one forward pass, and are scored again in one.

    Attributes:
        images: where its images lie among those of this rank.
        step: index of the denoising step.
        weight: as :class:`Part`'s.
        synchronises: as :class:`Part`'s.
    """

    images: slice
    step: int
    weight: int
    synchronises: bool


@dataclass(frozen=True)
class Split:
    """n images over the ranks: image i is denoised, and trained on, by rank ``i % size``.

    Attributes:
        ranks: that share them.
        n: a multiple of the number of ranks.
    """

    ranks: Ranks
    n: int

    def __post_init__(self) -> None:
        """Raise ValueError where the number of ranks does not divide n."""
        if self.n % self.ranks.size:
            raise ValueError(f"{self.n} images cannot be shared equally by {self.ranks.size} ranks.")

    @classmethod
    def alone(cls, n: int) -> "Split":
        """All n images here."""
        return cls(ALONE, n)

    @property
    def kept(self) -> range:
        """The images that lie here, in their order."""
        return range(self.ranks.rank, self.n, self.ranks.size)

    def here(self, values: Tensor) -> Tensor:
        """Return the values (m, ...) of the images here, from those of all images (n, ...)."""
        return values[self.ranks.rank :: self.ranks.size]

    def local(self, images: Tensor) -> Tensor:
        """Return where images (k,), all of them here, lie among those that are kept.

        Raises:
            ValueError: one lies on another rank.
        """
        if self.ranks.size == 1:
            return images
        if bool((images % self.ranks.size != self.ranks.rank).any()):
            raise ValueError(
                f"an image lies on another rank than {self.ranks.rank}; go through an update's rows with parts(), "
                "which gives each rank its own."
            )
        return images // self.ranks.size

    def gather(self, values: Tensor) -> Tensor:
        """Return all ranks' values (n, ...) in the images' order, from those of the images here (m, ...)."""
        if self.ranks.size == 1:
            return values
        by_rank = self.ranks.gather(values).unflatten(0, (self.ranks.size, -1))
        return by_rank.transpose(0, 1).flatten(0, 1).contiguous()

    def runs(self, images: range, longest: int, round_size: int, rank: int | None = None) -> list[slice]:
        """Return where the images lie on a rank, as runs of neighbours that one forward pass takes.

        Args:
            images: neighbours among all n.
            longest: images of a run.
            round_size: images that are denoised side by side; no run reaches into two rounds.
            rank: this one if None.
        """
        rank = self.ranks.rank if rank is None else rank
        first, stop = (len(range(rank, bound, self.ranks.size)) for bound in (images.start, images.stop))
        runs = []
        while first < stop:
            end = min(first + longest, stop, (first // round_size + 1) * round_size)
            runs.append(slice(first, end))
            first = end
        return runs

    def parts(self, images: Tensor, size: int) -> Iterator[Part]:
        """Yield this rank's share of an update's rows, in parts of at most ``size``.

        Every rank yields equally many, so that passes through a module that synchronises meet; a rank that runs out
        works on dummy rows. With DDP such a row is also the one whose backward pass synchronises: before it every rank
        can say whether its own rows' passes succeeded.

        Args:
            images: (k,), int64, the image of each row.
            size: rows of a part.
        """
        owners = images % self.ranks.size
        count = max(1, -(-int(owners.bincount(minlength=self.ranks.size).max()) // size))
        mine = (owners == self.ranks.rank).nonzero().flatten()
        dummy = mine.new_zeros(1), images.new_full((1,), self.ranks.rank), 0
        for number in range(count):
            rows = mine[number * size : (number + 1) * size]
            synchronises = number == count - 1 and not self.ranks.votes
            if len(rows):
                yield Part(rows, images[rows], self.ranks.size, synchronises)
            else:
                yield Part(*dummy, synchronises)
        if self.ranks.votes:
            yield Part(*dummy, True)

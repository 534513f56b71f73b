"""Every random number of a run, keyed by what it is for: two runs never share starts, and a resumed run continues."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What a random number is for. The numbers are part of a run's identity: never renumber."""

    INITIAL_LATENTS = 0
    STEP_NOISE = 1
    PROMPTS = 2
    UPDATES = 3
    EVALUATION_LATENTS = 4
    EVALUATION_NOISE = 5
    INITIAL_WEIGHTS = 6


#: Which streams a rollout draws from: of the initial latents, and of the steps' noise.
Streams = tuple[Stream, Stream]
TRAINING_STREAMS: Streams = (Stream.INITIAL_LATENTS, Stream.STEP_NOISE)
EVALUATION_STREAMS: Streams = (Stream.EVALUATION_LATENTS, Stream.EVALUATION_NOISE)


def derive_seed(seed: int, stream: Stream, *key: int) -> int:
    """Return a 63-bit seed from the run's seed, a stream and a key (an image's global index, an iteration, ...)."""
    sequence = np.random.SeedSequence([seed, int(stream), *key])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(seed: int, stream: Stream, *key: int) -> torch.Generator:
    """Return a CPU generator for ``derive_seed``'s seed."""
    return torch.Generator().manual_seed(derive_seed(seed, stream, *key))


@dataclass(frozen=True)
class Noise:
    """Random numbers of a rollout, keyed by the run's number of each image.

    Attributes:
        seed: the run's seed.
        streams: of the initial latents and of the steps' noise.
        images: the run's number of each image.
        shared: images in a row, from a multiple of it on, that share their initial latents and :meth:`common` noise.
        antithetic: whether two images in a row have opposite noise, from an even one on.
    """

    seed: int
    streams: Streams
    images: Sequence[int]
    shared: int = 1
    antithetic: bool = False

    def seeds(self, which: Sequence[int]) -> list[int]:
        """Return the environments' seeds, which fix the initial latents."""
        return [derive_seed(self.seed, self.streams[0], self._first_of(i, self.shared)) for i in which]

    def sources(self, which: Sequence[int]) -> list[torch.Generator]:
        """Return a generator of each image's step noise, on the CPU."""
        pair = 2 if self.antithetic else 1
        return [generator(self.seed, self.streams[1], self._first_of(i, pair)) for i in which]

    def signs(self, which: Sequence[int]) -> list[int]:
        """Return 1 or -1, by which each image's step noise is multiplied."""
        return [-1 if self.antithetic and self.images[i] % 2 else 1 for i in which]

    def common(self, which: Sequence[int]) -> list[torch.Generator]:
        """Return a generator of the step noise that each image shares, on the CPU.

        For numbers below 2^32 it is that of the first image's own noise, because a trailing 0 does not change a seed; a
        step takes one of the two.
        """
        return [generator(self.seed, self.streams[1], self._first_of(i, self.shared), 0) for i in which]

    def _first_of(self, image: int, size: int) -> int:
        return self.images[image] - self.images[image] % size


class StepNoise:
    """The noise of a round's images, one step after the other."""

    def __init__(self, noise: Noise, which: Sequence[int], shape: Sequence[int]) -> None:
        """Args: noise; which images; shape: of one latent."""
        self._noise, self._which, self._shape = noise, which, shape
        self._sources, self._common = noise.sources(which), list[torch.Generator]()
        self._signs = torch.tensor(noise.signs(which)).reshape(-1, *[1] * len(shape))

    def draw(self, common: Tensor | None = None) -> Tensor:
        """Draw the next step's, (k, ...), standard normal, on the CPU.

        Args:
            common: (k,), bool, which images take what they share instead of their own; None, then at every step, if
                none does.
        """
        z = self._drawn(self._sources) * self._signs
        if common is None:
            return z
        self._common = self._common or self._noise.common(self._which)
        return torch.where(common.reshape(self._signs.shape), self._drawn(self._common), z)

    def _drawn(self, sources: Sequence[torch.Generator]) -> Tensor:
        return torch.stack([torch.randn(*self._shape, generator=source) for source in sources])


def prompt_order(
    seed: int,
    num_prompts: int,
    images_per_prompt: int,
    first: int,
    count: int,
    weights: Sequence[float] | None = None,
) -> list[int]:
    """Return the prompt index of the images ``first`` to ``first + count - 1`` of a run.

    Images come in groups of ``images_per_prompt`` of one prompt; groups go through all prompts in an order that is
    shuffled again for each round, so that after a round every prompt was used equally often. With weights, a round of
    N groups draws prompts by systematic sampling (equally spaced points on the weights' cumulative sum, from a random
    offset): each is used N times its share of the weights, rounded up or down so that it is right on average.
    """
    indices = []
    orders: dict[int, np.ndarray] = {}
    for image in range(first, first + count):
        group = image // images_per_prompt
        round_, position = divmod(group, num_prompts)
        if round_ not in orders:
            rng = np.random.default_rng(derive_seed(seed, Stream.PROMPTS, round_))
            if weights is None:
                orders[round_] = rng.permutation(num_prompts)
            else:
                orders[round_] = rng.permutation(_systematic(np.asarray(weights, dtype=np.float64), rng.random()))
        indices.append(int(orders[round_][position]))
    return indices


def _systematic(weights: np.ndarray, offset: float) -> np.ndarray:
    """Return N indices, index i about N w_i / sum(w) times; ``offset`` lies in [0, 1)."""
    n = len(weights)
    points = (np.arange(n) + offset) / n * weights.sum()
    return np.minimum(np.searchsorted(weights.cumsum(), points, side="right"), n - 1)

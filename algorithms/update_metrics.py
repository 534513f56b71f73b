"""Averages of what an update measures, over all ranks, kept on the device until they are read."""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from algorithms.parallel.ranks import ALONE, Ranks


class Meter:
    """Sums and maxima by name; nothing is copied to the CPU, or exchanged, before :meth:`means`."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        """Begin empty."""
        self._ranks = ranks
        self._sums: dict[str, list[Tensor]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._maxima: dict[str, list[Tensor]] = defaultdict(list)

    def add(self, rows: Mapping[str, Tensor], weight: int = 1) -> None:
        """Add values to averages over rows.

        Args:
            rows: name -> (m,), or one value (). Of a name that ends in ``_max`` the largest is kept instead.
            weight: of a chunk; with 0 nothing is added.
        """
        if not weight:
            return
        for name, values in rows.items():
            values = values.detach()
            if name.endswith("_max"):
                self._maxima[name].append(values.max())
            else:
                self._sums[name].append(values.sum())
                self._counts[name] += values.numel()

    def means(self) -> dict[str, float]:
        """Return averages and maxima over all ranks, with one copy from the device. Collective."""
        read = [*self._sums.values(), *self._maxima.values()]
        numbers = iter(torch.stack([value for values in read for value in values]).tolist() if read else [])
        sums = {name: sum(next(numbers) for _ in values) for name, values in self._sums.items()}
        maxima = {name: max(next(numbers) for _ in values) for name, values in self._maxima.items()}
        by_rank = self._ranks.gather_objects((sums, dict(self._counts), maxima))
        names = dict.fromkeys(name for theirs, _, _ in by_rank for name in theirs)
        means = {}
        for name in names:
            total = sum(theirs.get(name, 0.0) for theirs, _, _ in by_rank)
            means[name] = total / sum(counts.get(name, 0) for _, counts, _ in by_rank)
        largest = dict.fromkeys(name for _, _, theirs in by_rank for name in theirs)
        return means | {name: max(theirs[name] for *_, theirs in by_rank if name in theirs) for name in largest}

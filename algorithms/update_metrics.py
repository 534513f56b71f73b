"""Averages of what an update measures, over all ranks, kept on the device until they are read."""

from collections import defaultdict

import torch
from torch import Tensor

from algorithms.parallel.ranks import ALONE, Ranks


class Meter:
    """Sums of rows and maxima by name; nothing is copied to the CPU, or exchanged, before :meth:`means`."""

    def __init__(self, ranks: Ranks = ALONE) -> None:
        """Begin empty; :meth:`means` is collective."""
        self._ranks = ranks
        self._sums: dict[str, list[Tensor | float]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._maxima: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor | float) -> None:
        """Add one value to an average."""
        self._sums[name].append(value)
        self._counts[name] += 1

    def add_rows(self, name: str, rows: Tensor) -> None:
        """Add (m,) values to an average over rows."""
        self._sums[name].append(rows.sum())
        self._counts[name] += len(rows)

    def maximum(self, name: str, rows: Tensor) -> None:
        """Keep the largest value seen."""
        largest = rows.max()
        self._maxima[name] = torch.maximum(self._maxima[name], largest) if name in self._maxima else largest

    def means(self) -> dict[str, float]:
        """Return averages and maxima as numbers."""
        sums = {name: (sum(_numbers(values)), self._counts[name]) for name, values in self._sums.items()}
        maxima = {name: float(value) for name, value in self._maxima.items()}
        by_rank = self._ranks.gather_objects((sums, maxima))
        means = {}
        for name in dict.fromkeys(name for theirs, _ in by_rank for name in theirs):
            counted = [theirs[name] for theirs, _ in by_rank if name in theirs]
            means[name] = sum(total for total, _ in counted) / sum(count for _, count in counted)
        for name in dict.fromkeys(name for _, theirs in by_rank for name in theirs):
            means[name] = max(theirs[name] for _, theirs in by_rank if name in theirs)
        return means


def _numbers(values: list[Tensor | float]) -> list[float]:
    """Read the values with one copy from the device."""
    tensors = [value for value in values if isinstance(value, Tensor)]
    numbers = [value for value in values if not isinstance(value, Tensor)]
    return numbers + (torch.stack(tensors).tolist() if tensors else [])

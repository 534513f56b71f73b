"""Averages of what an update measures, kept on the device until they are read."""

from collections import defaultdict

import torch
from torch import Tensor


class Meter:
    """Sums of rows and maxima by name; nothing is copied to the CPU before :meth:`means`."""

    def __init__(self) -> None:
        """Begin empty."""
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
        averages = {
            name: float(sum(float(v) for v in values) / self._counts[name]) for name, values in self._sums.items()
        }
        return averages | {name: float(value) for name, value in self._maxima.items()}

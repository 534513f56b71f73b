"""Replacing weights for a while, and the exponential moving average (EMA) of the trained weights."""

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from algorithms.checkpoints.tensors import Named
from algorithms.parallel.sharding import is_sharded, laid_out_as


@contextlib.contextmanager
def weights_replaced(named: Named, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Give parameters other values inside the ``with`` block; only sharded ones are copied.

    A graph that was recorded outside must not go backward inside.

    Args:
        named: parameters by name.
        tensors: a value for each, of its shape, dtype and device, and in its parts.
    """
    before = {
        name: parameter.detach().clone() if is_sharded(parameter) else parameter.data
        for name, parameter in named.items()
    }
    try:
        _put(named, tensors)
        yield
    finally:
        _put(named, before)


@torch.no_grad()
def _put(named: Named, tensors: Mapping[str, Tensor]) -> None:
    for name, parameter in named.items():
        if is_sharded(parameter):  # FSDP gathers weights from a buffer of its own, which must be written to
            parameter.copy_(tensors[name])
        else:
            parameter.data = tensors[name]


class WeightAverage:
    """``average <- decay average + (1 - decay) weight`` after each update, begun at the starting weights.

    About the last ``1 / (1 - decay)`` updates count, and of the start ``decay^k`` is left after k updates.

    Attributes:
        tensors: the averages by the weights' names, each of its weight's shape, float32, beside it on its device, and
            in parts where it is.
    """

    def __init__(self, named: Named, decay: float) -> None:
        """Start at the present weights.

        Args:
            named: the trained weights; with adapters these alone.
            decay: in [0, 1).
        """
        self._named, self._decay = dict(named), decay
        self.tensors: dict[str, Tensor] = {}
        self.load(named)

    @torch.no_grad()
    def update(self, decay: float | None = None) -> None:
        """Average in the present weights, this time with another decay if one is given."""
        for name, value in self._named.items():
            self.tensors[name].lerp_(value, 1 - (self._decay if decay is None else decay))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from copies of other tensors: averages of an earlier run, or weights."""
        self.tensors = {name: laid_out_as(tensors[name], weight) for name, weight in self._named.items()}

    def applied(self) -> contextlib.AbstractContextManager[None]:
        """Give the policy the averages as weights inside a ``with`` block."""
        return weights_replaced(self._named, self.tensors)
